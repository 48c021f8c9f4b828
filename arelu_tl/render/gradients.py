"""The report of ``arelu-tl explain gradients``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from arelu_tl.analysis.gradients import GradientSummary, found_in_gradients, summarise_gradients
from arelu_tl.records.gradients import GradientReport
from arelu_tl.records.storage import make_folder, write_bytes, write_json
from arelu_tl.render.console import plain
from arelu_tl.render.figures import gradients_figure, png
from arelu_tl.render.tables import or_dash

GRADIENTS = "gradients.json"
FIGURE = "gradients.png"


def gradients_report(report: GradientReport, written: Sequence[Path]) -> list[RenderableType]:
    """The table, the worst sites at the last point, and what was found."""
    table = Table()
    for heading in (
        "arm",
        "step",
        "weights",
        "norm",
        "first/last",
        "exactly 0",
        "vanishing",
        "passed on",
        "weights' grad/weight",
    ):
        table.add_column(heading, justify="left" if heading in ("arm", "weights") else "right")
    for arm in report.arms:
        for point in report.of(arm):
            table.add_row(*_cells(summarise_gradients(point)))
        table.add_section()
    # No title of the table's: rich would break it at the width of the table.
    parts: list[RenderableType] = [
        f"{plain(report.model)} on {plain(report.data)}, lr {report.lr:g}, seed {report.seed}; "
        f"{report.batches} batches of up to {report.batch_size} training pictures, the same at every point",
        table,
    ]
    for arm in report.arms:
        last = summarise_gradients(report.of(arm)[-1])
        worst = ", ".join(f"{plain(site.name)} {site.vanishing:.0%}" for site in last.worst)
        parts.append(f"most vanishing in {plain(arm)} at step {last.point.step}: {worst}")
    parts += [Text(sentence) for sentence in found_in_gradients(report)]
    parts.append(f"wrote {', '.join(plain(path) for path in written)}")
    return parts


def _cells(told: GradientSummary) -> list[str]:
    return [
        plain(told.point.arm),
        str(told.point.step),
        plain(told.point.what),
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
