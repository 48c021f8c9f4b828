"""The paper's table from the runs of a reproduction.

It shows the accuracy after the first epoch, and AReLU against its best rivals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from arelu_tl.analysis.results import Spread
from arelu_tl.records.runs import RunRecord

ARELU = "arelu"
FIXED, LEARNABLE = "fixed", "learnable"


@dataclass(frozen=True)
class Entry:
    """One activation in one column; accuracies are 0..1.

    Attributes:
        seeds: seeds of its trainings, in order; all ``values`` are in this order.
        first: accuracy after the first epoch.
        best: best accuracy at any evaluation.
        before: accuracy before the first step, which is of interest if the nets were pretrained.
        aulc: mean accuracy over the course of training.
        diverged: number of trainings that ended with a NaN or infinite loss; they count with the
            accuracy that was left.
        curve: "step", "mean", "low", "high", over all trainings at each evaluation.
    """

    activation: str
    seeds: list[int]
    first: Spread
    best: Spread
    before: Spread
    aulc: Spread
    diverged: int
    curve: dict[str, list[float]]


@dataclass(frozen=True)
class Column:
    """All activations under one optimiser and rate.

    Attributes:
        study: the folder of its runs.
        best: for each group of rivals, the one with the best mean after the first epoch; absent
            groups are left out.
        lead: AReLU's mean minus that rival's.
        rank: AReLU's rank among all, 1 for the best; None if it is absent.
        of: number of activations.
    """

    study: str
    opt: str
    lr: float
    entries: dict[str, Entry]
    best: dict[str, str]
    lead: dict[str, float]
    rank: int | None
    of: int

    @property
    def optimiser(self) -> str:
        """Its usual name."""
        return {"sgd": "SGD", "adam": "Adam"}[self.opt]

    @property
    def direction(self) -> str:
        """For a transfer, its source and target set."""
        return self.study.replace("-to-", " → ")


@dataclass(frozen=True)
class Reproduction:
    """The whole table.

    Attributes:
        activations: the rows, in the paper's order.
        groups: for each activation "fixed" or "learnable".
        titles: as printed in the paper.
        notes: what a reader must know, in sentences.
    """

    activations: list[str]
    groups: dict[str, str]
    titles: dict[str, str]
    columns: list[Column]
    notes: list[str]
    transfer: bool

    def to_json(self) -> dict[str, Any]:
        """Return the content of reproduction.json."""
        return asdict(self)


def tabulate(
    studies: Mapping[str, Sequence[RunRecord]],
    *,
    titles: Mapping[str, str],
    learnable: Sequence[str],
    notes: Sequence[str] = (),
    transfer: bool = False,
) -> Reproduction:
    """Make the table of the ended runs of each study, including diverged ones.

    Args:
        studies: runs by the study's name, each study with one optimiser.
        titles: titles of the activations, in the order of the rows.
        learnable: activations with learned parameters; AReLU is not its own rival.
        notes: sentences to put before the table's own notes.
        transfer: whether the studies are transfers between sets.
    """
    cells: dict[tuple[str, str, float], dict[str, list[RunRecord]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for study, members in studies.items():
        for run in sorted(members, key=lambda run: run.config.seed):
            if run.summary:
                cells[study, run.config.opt, run.config.lr][run.config.arm].append(run)
    groups = {name: LEARNABLE if name in learnable else FIXED for name in titles}
    order = list(studies)
    by_column = sorted(cells.items(), key=lambda cell: (order.index(cell[0][0]), -cell[0][2]))
    columns = [
        _column(*key, members, [name for name in titles if name in members], groups)
        for key, members in by_column
    ]
    there = [name for name in titles if any(name in column.entries for column in columns)]
    kept = {name: titles[name] for name in there}
    return Reproduction(
        there,
        {name: groups[name] for name in there},
        kept,
        columns,
        [*notes, *_loss_notes(columns)],
        transfer,
    )


def _column(
    study: str,
    opt: str,
    lr: float,
    members: Mapping[str, Sequence[RunRecord]],
    names: Sequence[str],
    groups: Mapping[str, str],
) -> Column:
    entries = {name: _entry(name, members[name]) for name in names}
    means = {name: entry.first.mean for name, entry in entries.items()}
    best = {}
    for group in (FIXED, LEARNABLE):
        rivals = [name for name in names if groups[name] == group and name != ARELU]
        if rivals:
            best[group] = max(rivals, key=lambda name: means[name])
    ours = means.get(ARELU)
    lead = {} if ours is None else {group: ours - means[name] for group, name in best.items()}
    rank = None if ours is None else 1 + sum(mean > ours for mean in means.values())
    return Column(study, opt, lr, entries, best, lead, rank, len(entries))


def _entry(activation: str, members: Sequence[RunRecord]) -> Entry:
    curves = [{row["step"]: row for row in run.curve("val")} for run in members]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step]["top1"] for step in steps] for curve in curves])
    # An epoch's end is always evaluated.
    first = [next(row["top1"] for row in curve.values() if row["epoch"] == 1) for curve in curves]
    return Entry(
        activation=activation,
        seeds=[run.config.seed for run in members],
        first=_spread(first),
        best=_spread(values.max(1).tolist()),
        before=_spread(values[:, 0].tolist()),
        aulc=_spread([run.summary["aulc"] for run in members]),
        diverged=sum(run.status == "failed" for run in members),
        curve={
            "step": [float(step) for step in steps],
            "mean": values.mean(0).tolist(),
            "low": values.min(0).tolist(),
            "high": values.max(0).tolist(),
        },
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(
        float(np.mean(values)),
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
        list(values),
    )


def _loss_notes(columns: Sequence[Column]) -> list[str]:
    lost = [
        f"{entry.activation} {column.study} {column.lr:g}: {entry.diverged} of {len(entry.seeds)}"
        for column in columns
        for entry in column.entries.values()
        if entry.diverged
    ]
    return [
        "† trainings whose loss became no finite number, counted with the accuracy that was "
        f"left: {'; '.join(lost)}."
    ] * bool(lost)
