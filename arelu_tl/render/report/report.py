"""Collect the page's content from top to bottom, and write it beside the convergence figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.analysis.results import BestRateComparison, Comparison, RateComparison
from arelu_tl.analysis.statistics import CONFIDENCE
from arelu_tl.data.listing import natural_key
from arelu_tl.records.runs import FIGURE, REPORT, RunRecord
from arelu_tl.records.storage import write_bytes, write_text
from arelu_tl.render.figures.canvas import png, svg
from arelu_tl.render.figures.confusion import MOST_COUNTED, Counts, confusion_matrix
from arelu_tl.render.figures.convergence import convergence_figure
from arelu_tl.render.report import drawings, results, sources
from arelu_tl.render.report.page import render_page
from arelu_tl.render.report.pictures import thumbnails
from arelu_tl.render.report.subjects import Verdicts, learning_run, read_verdicts, shown_pair
from arelu_tl.render.report.table import Column, Table, number, text, words
from arelu_tl.version import __version__

_MOST_CONFUSIONS = 25


def write_report_files(
    comparison: Comparison, runs: Sequence[RunRecord], folder: Path, *, title: str
) -> list[Path]:
    """Write convergence.png, convergence.svg and report.html into ``folder``; return their paths.

    Args:
        runs: all the compared runs.
        title: the model and the pictures.

    Raises:
        StorageError: ``folder`` cannot be written.
        ArtefactError: a file of a run or a study is corrupt.
    """
    figure = convergence_figure(comparison, title)
    pixels, vectors = png(figure), svg(figure)
    paths = [folder / FIGURE, (folder / FIGURE).with_suffix(".svg"), folder / REPORT]
    write_bytes(paths[0], pixels)
    write_bytes(paths[1], vectors)
    shown = drawings.convergence_drawing(comparison, figure, vectors, pixels)
    write_text(paths[2], _page(comparison, runs, title, shown))
    return paths


@dataclass(frozen=True)
class _ArmVerdicts:
    arm: str
    best: list[BestRateComparison]
    rates: list[RateComparison]


def _page(
    comparison: Comparison, runs: Sequence[RunRecord], title: str, convergence: drawings.Drawing
) -> str:
    by_path = {str(run.path): run for run in runs}
    pairs, common = results.pairs_table(comparison.rates)
    surgery, operated = sources.surgery_tables(comparison, by_path)
    learner = learning_run(comparison, by_path)
    arms = list(dict.fromkeys(found.arm for found in comparison.rates))
    verdicts = [
        _ArmVerdicts(
            arm,
            [b for b in comparison.best if b.arm == arm],
            [found for found in comparison.rates if found.arm == arm],
        )
        for arm in arms
    ]
    made = datetime.now().astimezone()
    content: dict[str, Any] = {
        "title": title,
        "version": __version__,
        "made": made.strftime("%Y-%m-%d %H:%M %Z"),
        "facts": _facts(comparison, made),
        "reference": BASELINE,
        "verdicts": verdicts,
        "tone": results.tone,
        "glance": results.glance_table(comparison),
        "warnings": comparison.warnings,
        "convergence": convergence,
        "rate_tables": [
            results.convergence_table(comparison.rates, "Convergence, rate by rate"),
            results.ends_table(comparison.rates),
            results.target_table(comparison.rates),
        ],
        "tests": results.tests_table(comparison.rates),
        "best": results.best_table(comparison),
        "rates_drawing": drawings.rates_drawing(comparison),
        "gain": comparison.gain,
        "controls": results.convergence_table(
            comparison.controls, "The full swap beside its controls", corrected=False
        ),
        "cells": results.cells_table(comparison.cells),
        "pairs": pairs,
        "common": common,
        "learnt": drawings.learnt_drawings(learner) if learner is not None else [],
        "learnt_run": learner.path.name if learner is not None else "",
        "surgery": surgery,
        "operated": operated,
        "datasets": sources.datasets(runs),
        "environments": sources.environments(runs),
        "configurations": sources.configurations(runs),
        "uncounted": sources.not_counted(comparison),
        "allowed": comparison.allowed,
        "confidence": f"{CONFIDENCE:.0%}",
        **_classes(comparison, by_path),
    }
    return render_page(**content, contents=_contents(content))


def _facts(comparison: Comparison, made: datetime) -> list[tuple[str, str]]:
    """The size of the comparison, as (number, unit)."""
    cells = comparison.cells
    rates, seeds = {cell.lr for cell in cells}, {seed for cell in cells for seed in cell.seeds}
    pictures = {found.aulc.pictures for found in comparison.rates} - {None}
    counts = [
        (sum(len(cell.runs) for cell in cells), "run"),
        (len(comparison.arms), "arm"),
        (len(rates), "learning rate"),
    ]
    facts = [
        (str(count), what if count == 1 else f"{what}s")
        for count, what in [*counts, (len(seeds), "seed")]
    ]
    facts.append((f"{max(cell.steps for cell in cells):,}", "steps"))
    if pictures:
        facts.append((f"{max(count for count in pictures if count):,}", "validation pictures"))
    return [
        *facts,
        (made.strftime("%Y-%m-%d"), ""),
        (f"arelu-tl {__version__}", ""),
    ]


def _contents(content: dict[str, Any]) -> list[tuple[str, str]]:
    sections = {
        "verdict": "Verdict",
        "convergence": "Convergence",
        "rates": "Best rates" if content["best"].rows or content["rates_drawing"] else "",
        "gain": "Whose the gain is" if content["gain"] or content["controls"].rows else "",
        "numbers": "All numbers",
        "learnt": "What the sites learnt" if content["learnt"] else "",
        "classes": "Classes and pictures",
        "sources": "Surgery, data, environment",
        "uncounted": "Left out",
        "reading": "How to read it",
    }
    return [(anchor, name) for anchor, name in sections.items() if name]


def _classes(comparison: Comparison, runs: dict[str, RunRecord]) -> dict[str, Any]:
    """Confusions and disagreements of the pair that ``shown_pair`` selects."""
    found = shown_pair(comparison)
    verdicts = read_verdicts(found[1], runs) if found is not None else None
    if found is None or verdicts is None:
        return {"pair": None}
    compared, pair = found
    run = runs[pair.run]
    folder = run.config.data
    names = (compared.reference, compared.arm)
    classes, matrices = _matrices(verdicts)
    gained, lost = verdicts.gained(), verdicts.lost()
    return {
        "pair": {
            "arm": compared.arm,
            "reference": compared.reference,
            "rate": f"{compared.lr:g}",
            "seed": pair.seed,
            "pictures": len(verdicts.pictures),
        },
        "confusion": drawings.confusion_drawing(names, matrices, classes),
        "confusions": _confusions(names, matrices, classes)
        if len(classes) > MOST_COUNTED
        else None,
        "gained": thumbnails(gained, folder),
        "gained_total": len(gained),
        "lost": thumbnails(lost, folder),
        "lost_total": len(lost),
        "folder": str(folder),
        "unseen": _unseen(folder),
    }


def _unseen(folder: Path | None) -> str:
    """Why no picture can be shown; "" if the folder exists."""
    if folder is None:
        return "The runs do not say where their pictures lie, so none can be shown."
    return (
        ""
        if folder.is_dir()
        else f"The folder of pictures, {folder}, is not there any more, so none can be shown."
    )


def _matrices(verdicts: Verdicts) -> tuple[list[str], list[Counts]]:
    """The classes that occur, and the confusion matrices of the reference and the arm."""
    shown = verdicts.pictures
    labels = [picture.label for picture in shown]
    ours, theirs = (
        [picture.predicted for picture in shown],
        [picture.reference_predicted for picture in shown],
    )
    classes = sorted({*labels, *ours, *theirs}, key=natural_key)
    return classes, [confusion_matrix(labels, predicted, classes) for predicted in (theirs, ours)]


def _confusions(names: Sequence[str], matrices: Sequence[Counts], classes: Sequence[str]) -> Table:
    """The most frequent confusions of both arms, for more classes than a figure can show."""
    total = sum(matrices)
    pairs = [
        (i, j)
        for i in range(len(classes))
        for j in range(len(classes))
        if i != j and total[i, j]  # type: ignore[index]
    ]
    pairs.sort(key=lambda place: -total[place])  # type: ignore[index]
    columns = [*words("true class", "taken for"), *(Column(name) for name in names)]
    rows = [
        [text(classes[i]), text(classes[j]), *(number(int(m[i, j]), "d") for m in matrices)]
        for i, j in pairs
    ]
    left_out = len(pairs) - _MOST_CONFUSIONS
    rest = f"{left_out} rarer ones are left out." if left_out > 0 else ""
    return Table("The most frequent confusions", columns, rows[:_MOST_CONFUSIONS], rest)
