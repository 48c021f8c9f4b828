"""The report of ``arelu-tl explain gradients``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from arelu_tl.explain.gradients.report import (
    GradientPoint,
    GradientReport,
    GradientSummary,
    found_in_gradients,
    summarise_gradients,
)
from arelu_tl.records.storage import make_folder, write_bytes, write_json
from arelu_tl.render.console import Shown, line
from arelu_tl.render.figures.canvas import (
    MUTED,
    ArmStyle,
    add_legend,
    add_title,
    arm_styles,
    house_style,
    new_figure,
    panel,
    png,
)
from arelu_tl.render.grid import Column, Grid
from arelu_tl.render.tables import or_dash

GRADIENTS = "gradients.json"
FIGURE = "gradients.png"


def gradients_report(report: GradientReport, written: Sequence[Path]) -> list[Shown]:
    """Show the table, the worst sites at the last point, and the findings."""
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
            f"{report.batches} batch{'es' * (report.batches != 1)} of up to {report.batch_size} "
            "training pictures, the same at every point"
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


def _cells(summary: GradientSummary) -> list[str]:
    return [
        summary.point.arm,
        str(summary.point.step),
        summary.point.what,
        or_dash(summary.norm, ".3g"),
        or_dash(summary.first_to_last, ".3g"),
        f"{summary.zero:.1%}",
        f"{summary.vanishing:.1%}",
        or_dash(summary.gain, ".3g"),
        or_dash(summary.relative, ".3g"),
    ]


def write_gradients(report: GradientReport, folder: Path) -> list[Path]:
    """Write gradients.png and gradients.json into ``folder``, which is created.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(folder)
    figure = gradients_figure(report, f"{report.model} on {report.data}: gradients by depth")
    write_bytes(folder / FIGURE, png(figure))
    write_json(folder / GRADIENTS, report.to_json(found_in_gradients(report)))
    return [folder / FIGURE, folder / GRADIENTS]


Floats = NDArray[np.float64]
_WIDTH = 13.2
# Inches: left and right margin, gap between columns, a panel's height, gap between rows, space
# above the first row and below the last.
_LEFT, _RIGHT, _GAP, _HEIGHT, _BETWEEN, _TOP, _BELOW = 0.95, 0.15, 0.55, 1.75, 0.42, 1.0, 0.55
# Inches for the name of an x axis between two rows.
_NAME = 0.22


@dataclass(frozen=True)
class _Row:
    """The content of a row of panels: one number per site, or per layer with weights."""

    label: str
    of: Callable[[GradientPoint], Floats]
    sites: bool = True
    log: bool = False
    share: bool = False


# Zeros become NaN: they have no place on a logarithmic axis.
_ROWS = (
    _Row(
        "gradient's norm\nat a site's input",
        lambda p: np.array([s.norm or np.nan for s in p.sites]),
        log=True,
    ),
    _Row(
        "vanishing elements\nof that gradient",
        lambda p: np.array([s.vanishing for s in p.sites]),
        share=True,
    ),
    _Row(
        "norm at a site's input\nover norm at its output",
        lambda p: np.array([s.gain or np.nan for s in p.sites]),
    ),
    _Row(
        "weight's gradient\nover weight (norms)",
        lambda p: np.array([w.relative or np.nan for w in p.weights]),
        False,
        True,
    ),
)


@house_style
def gradients_figure(report: GradientReport, title: str) -> Figure:
    """Draw the gradients by depth and along training.

    The rows are the sites' norm, vanishing share and gain, and the weights' relative norm. The
    columns are the start by depth, the last point by depth with the earlier ones in pale, and the
    median along training; if nothing was trained, only the start.
    """
    styles = arm_styles(report.arms)
    trained = any(len(report.of(arm)) > 1 for arm in report.arms)
    rows = [row for row in _ROWS if row.sites or any(point.weights for point in report.points)]
    names = _NAME if len(rows) == len(_ROWS) else 0.0
    total = _TOP + len(rows) * _HEIGHT + (len(rows) - 1) * _BETWEEN + names + _BELOW
    figure = new_figure(_WIDTH, total)
    columns = 3 if trained else 1
    width = (_WIDTH - _LEFT - _RIGHT - (columns - 1) * _GAP) / columns
    for number, row in enumerate(rows):
        bottom = (
            _BELOW + (len(rows) - 1 - number) * (_BETWEEN + _HEIGHT) + (names if row.sites else 0.0)
        )
        panels = [
            panel(figure, _LEFT + n * (width + _GAP), bottom, width, _HEIGHT)
            for n in range(columns)
        ]
        for arm, style in styles.items():
            _draw(panels, row, report.of(arm), style)
        _finish(panels, row)
        if number == 0:
            for axes, heading in zip(panels, _headings(report), strict=False):
                axes.set_title(heading, loc="left", fontsize=10, fontweight="bold", y=1.0, pad=7)
        if number + 1 == len(rows) or row.sites != rows[number + 1].sites:
            for axes in panels[:2]:
                axes.set_xlabel(f"{'site' if row.sites else 'layer'}, first to last")
    if trained:
        panels[2].set_xlabel("optimiser step")
    more: list[Artist] = [
        Line2D([], [], color=MUTED, linestyle=":", linewidth=1.2, label="exactly 0")
    ]
    if trained:
        more.append(
            Line2D([], [], color=MUTED, linewidth=0.8, alpha=0.5, label="earlier in training")
        )
        more.append(
            Patch(color=MUTED, alpha=0.25, linewidth=0, label="middle half of the sites or layers")
        )
    add_title(figure, _LEFT, title)
    labels = {arm: arm for arm in styles}
    add_legend(
        figure,
        styles,
        labels,
        *more,
        loc="upper left",
        bbox_to_anchor=(_LEFT / _WIDTH, 1 - 0.46 / total),
    )
    return figure


def _headings(report: GradientReport) -> list[str]:
    ends = {arm: report.of(arm)[-1].step for arm in report.arms if len(report.of(arm)) > 1}
    steps = {str(step) for step in ends.values()}
    last = (
        ", ".join(f"{step} ({arm})" for arm, step in ends.items())
        if len(steps) > 1
        else "".join(steps)
    )
    return ["at the start", f"after {last} steps", "along training (median)"]


def _draw(
    panels: Sequence[Axes], row: _Row, points: Sequence[GradientPoint], style: ArmStyle
) -> None:
    ends = [points[0], points[-1]] if len(points) > 1 else [points[0]]
    for axes, point in zip(panels[:2], ends, strict=False):
        values = row.of(point)
        size = 4.5 if len(values) <= 40 else 2.5 if len(values) <= 120 else 0
        axes.plot(values, zorder=3, **style.line(linewidth=1.3, markersize=size))
        if row.share:
            axes.plot(
                [site.zero for site in point.sites],
                color=style.color,
                linewidth=1.2,
                linestyle=":",
                zorder=2,
            )
    if len(panels) == 1:
        return
    for point in points[1:-1]:
        panels[1].plot(row.of(point), color=style.color, linewidth=0.8, alpha=0.3)
    known = []
    for point in points:
        values = row.of(point)
        if row.sites:
            values = values[[site.gain is not None for site in point.sites]]
        if np.isfinite(values).any():
            known.append((point.step, np.nanpercentile(values, (25, 50, 75))))
    if known:
        steps = [step for step, _ in known]
        low, middle, high = np.array([quartiles for _, quartiles in known]).T
        panels[2].fill_between(
            steps, low, high, color=style.color, alpha=0.16, linewidth=0, zorder=2
        )
        panels[2].plot(steps, middle, zorder=3, **style.line())


def _finish(panels: Sequence[Axes], row: _Row) -> None:
    panels[0].set_ylabel(row.label)
    for axes in panels:
        axes.grid(True)
        axes.tick_params(length=3)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        if row.log:
            axes.set_yscale("log")
        if row.share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    # One scale for the row, so that its columns can be compared.
    limits = [(-0.03, 1.03)] if row.share else [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
