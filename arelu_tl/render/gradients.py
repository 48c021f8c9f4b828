"""The report of ``arelu-tl explain gradients``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arelu_tl.analysis.gradients import GradientSummary, found_in_gradients, summarise_gradients
from arelu_tl.records.gradients import GradientReport
from arelu_tl.records.storage import make_folder, write_bytes, write_json
from arelu_tl.render.console import Shown, line
from arelu_tl.render.figures import gradients_figure, png
from arelu_tl.render.grid import Column, Grid
from arelu_tl.render.tables import or_dash

GRADIENTS = "gradients.json"
FIGURE = "gradients.png"


def gradients_report(report: GradientReport, written: Sequence[Path]) -> list[Shown]:
    """The table, the worst sites at the last point, and what was found."""
    table = Grid(
        [
            Column("arm", "name", once=True),
            Column("step"),
            Column("weights", "name", gives_way=3),
            Column("norm"),
            Column("first/last", gives_way=1),
            Column("exactly 0", gives_way=2),
            Column("vanishing"),
            Column("passed on", gives_way=1),
            Column("weights' grad/weight", gives_way=4),
        ]
    )
    for arm in report.arms:
        for point in report.of(arm):
            table.add(*_cells(summarise_gradients(point)))
    parts: list[Shown] = [
        line(
            f"{report.model} on {report.data}, lr {report.lr:g}, seed {report.seed}; "
            f"{report.batches} batch{'es' * (report.batches != 1)} of up to {report.batch_size} training pictures, "
            "the same at every point"
        ),
        "",
        table,
        "",
    ]
    for arm in report.arms:
        last = summarise_gradients(report.of(arm)[-1])
        worst = ", ".join(f"{site.name} {site.vanishing:.0%}" for site in last.worst)
        parts.append(line(f"most vanishing in {arm} at step {last.point.step}: {worst}"))
    parts += [line(sentence) for sentence in found_in_gradients(report)]
    parts.append(f"wrote {', '.join(map(str, written))}")
    return parts


def _cells(told: GradientSummary) -> list[str]:
    return [
        told.point.arm,
        str(told.point.step),
        told.point.what,
        or_dash(told.norm, ".3g"),
        or_dash(told.first_to_last, ".3g"),
        f"{told.zero:.1%}",
        f"{told.vanishing:.1%}",
        or_dash(told.gain, ".3g"),
        or_dash(told.relative, ".3g"),
    ]


def write_gradients(report: GradientReport, folder: Path) -> list[Path]:
    """Write gradients.png and gradients.json into ``folder``, which is made.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(folder)
    figure = gradients_figure(report, f"{report.model} on {report.data}: gradients by depth")
    write_bytes(folder / FIGURE, png(figure))
    write_json(folder / GRADIENTS, report.to_json(found_in_gradients(report)))
    return [folder / FIGURE, folder / GRADIENTS]
