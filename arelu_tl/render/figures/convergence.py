"""Convergence: accuracy and loss of every arm at every rate, against steps and against seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon
from matplotlib.ticker import MaxNLocator

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.results import Cell, Comparison
from arelu_tl.render.figures.canvas import (
    INK,
    MUTED,
    ArmStyle,
    add_legend,
    add_title,
    arm_styles,
    drawable,
    house_style,
    legend_columns,
    new_figure,
    panel,
)

_WIDTH = 13.2
# Inches: left and right margins, gaps between panels, heading above a row, margin at the bottom.
_LEFT, _RIGHT, _GAP, _HEADING, _BELOW = 0.62, 0.15, (0.28, 0.72), 0.42, 0.5
_MOST_MARKERS = 14
_HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]


@house_style
def convergence_figure(comparison: Comparison, title: str) -> Figure:
    """A row of panels for each learning rate, with a line for each arm.

    A line is the mean over the arm's seeds; its band reaches from the least to the greatest seed.
    The columns are validation accuracy against steps, validation accuracy against seconds of
    training, and validation loss against steps. The target is marked, and the median step (or
    second) at which an arm reached it.
    """
    rates = sorted({cell.lr for cell in comparison.cells})
    styles = arm_styles(comparison.arms)
    seeds = max(len(cell.seeds) for cell in comparison.cells)
    labels = _labels(comparison, rates)
    more: list[Artist] = [Line2D([], [], color=MUTED, linestyle=":", linewidth=1, label="target")]
    if seeds > 1:
        more.append(
            Patch(color=MUTED, alpha=0.25, linewidth=0, label="least to greatest of the seeds")
        )
    if any(cell.probe_top1 is not None for cell in comparison.cells):
        more.append(Line2D([], [], color=MUTED, linewidth=0.9, dashes=(5, 3), label="linear probe"))
    # No layout engine: with thirty panels it would take longer than the drawing.
    lines = [*labels.values(), *(str(handle.get_label()) for handle in more)]
    top = 0.5 + 0.22 * -(-len(lines) // legend_columns(lines, _WIDTH))
    height = 3.5 if len(rates) == 1 else 2.5 if len(rates) <= 3 else 2.0
    total = top + len(rates) * (_HEADING + height) + _BELOW
    figure = new_figure(_WIDTH, total)
    panels = _panels(figure, len(rates), height, total - top)
    # The panels of a column share their x limits, and those of accuracy their y limits.
    for column, x in enumerate(("step", "seconds", "step")):
        panels[0][column].set_xlim(
            0, 1.04 * max(cell.curve[x][-1] for cell in comparison.cells) or 1.0
        )
    best = max(max(*cell.curve["top1_high"], cell.probe_top1 or 0.0) for cell in comparison.cells)
    panels[0][0].set_ylim(0, min(1.02, 1.08 * max(best, 0.05)))
    for row in panels[:-1]:
        for axes in row:
            _rule_only(axes, "x")
    for row in panels:
        _rule_only(row[1], "y")
    for row, lr in zip(panels, rates, strict=True):
        cells = [cell for arm in comparison.arms if (cell := comparison.cell(arm, lr)) is not None]
        _draw_row(row, cells, styles, lr)
    for axes, label in zip(
        panels[-1], ("optimiser step", "seconds of training", "optimiser step"), strict=True
    ):
        axes.set_xlabel(label)
    add_title(figure, _LEFT, title)
    add_legend(
        figure,
        styles,
        labels,
        *more,
        loc="upper left",
        bbox_to_anchor=(_LEFT / _WIDTH, 1 - 0.46 / total),
    )
    return figure


def _labels(comparison: Comparison, rates: Sequence[float]) -> dict[str, str]:
    """The arms' names; with a single rate, also the AULC, which the verdict is based on."""
    if len(rates) > 1:
        return {arm: arm for arm in comparison.arms}
    return {cell.arm: f"{cell.arm} (AULC {cell.aulc.mean:.3f})" for cell in comparison.cells}


def _panels(figure: Figure, rows: int, height: float, top: float) -> list[list[Axes]]:
    width = (_WIDTH - _LEFT - _RIGHT - sum(_GAP)) / 3
    lefts = [_LEFT, _LEFT + width + _GAP[0], _LEFT + 2 * width + sum(_GAP)]
    panels: list[list[Axes]] = []
    for row in range(rows):
        bottom = top - (row + 1) * (_HEADING + height)
        made: list[Axes] = []
        for column, left in enumerate(lefts):
            first = panels[0] if panels else made
            sharex = first[column] if panels else None
            sharey = first[0] if column < 2 and first else None
            axes = panel(figure, left, bottom, width, height, sharex=sharex, sharey=sharey)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_locator(MaxNLocator(5 if height > 2.1 else 4))
            axes.grid(True)
            axes.tick_params(length=3)
            made.append(axes)
        panels.append(made)
    return panels


def _rule_only(axes: Axes, which: Literal["x", "y"]) -> None:
    """Replace an axis that a neighbour shows by its grid lines.

    Ticks take most of the drawing time of a figure with many panels.
    """
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    at = [
        value for value in axis.get_major_locator().tick_values(low, high) if low <= value <= high
    ]
    axis.set_visible(False)
    rule = {
        "color": mpl.rcParams["grid.color"],
        "linewidth": mpl.rcParams["grid.linewidth"],
        "zorder": 0.5,
    }
    if which == "x":
        axes.vlines(at, 0, 1, transform=axes.get_xaxis_transform(), **rule)
    else:
        axes.hlines(at, 0, 1, transform=axes.get_yaxis_transform(), **rule)


def _draw_row(
    panels: Sequence[Axes], cells: Sequence[Cell], styles: dict[str, ArmStyle], lr: float
) -> None:
    by_step, by_second, loss = panels
    for number, cell in enumerate(cells):
        curve, style = cell.curve, styles[cell.arm]
        for axes, x, key in (
            (by_step, "step", "top1"),
            (by_second, "seconds", "top1"),
            (loss, "step", "loss"),
        ):
            every = max(1, -(-len(curve[x]) // _MOST_MARKERS))
            # Stagger the arms' markers, so that those of overlapping curves are side by side.
            start = number * every // len(cells)
            axes.plot(curve[x], curve[key], markevery=(start, every), zorder=3, **style.line())
            if len(cell.seeds) > 1:
                there = [*zip(curve[x], curve[f"{key}_low"], strict=True)]
                back = [*zip(curve[x], curve[f"{key}_high"], strict=True)][::-1]
                axes.add_artist(
                    Polygon(there + back, color=style.color, alpha=0.16, linewidth=0, zorder=2)
                )
        for axes, level in ((by_step, cell.probe_top1), (loss, cell.probe_loss)):
            if level is not None:
                axes.axhline(level, color=style.color, linewidth=0.9, dashes=(5, 3), zorder=1.5)
    _mark_target(
        by_step,
        [(c.arm, styles[c.arm], c.steps_to_target) for c in cells],
        cells[0].target,
        "step {:.0f}",
    )
    _mark_target(
        by_second,
        [(c.arm, styles[c.arm], c.seconds_to_target) for c in cells],
        cells[0].target,
        "{:.3g} s",
    )
    # A fixed position (y) skips the automatic placement, a third of the drawing time.
    by_step.set_title(
        f"learning rate {lr:g}", loc="left", fontsize=10, fontweight="bold", y=1.0, pad=7
    )
    by_step.set_ylabel("validation accuracy")
    loss.set_ylabel("validation loss (nats)")
    highest = max(max(cell.curve["loss_high"]) for cell in cells)
    lowest = min(min(cell.curve["loss_low"]) for cell in cells)
    # A loss that blew up for a while would flatten all curves on a linear scale.
    if highest > 4 * max(cell.curve["loss"][0] for cell in cells) and lowest > 0:
        loss.set_yscale("log")
        loss.set_ylim(lowest / 1.1, highest * 1.1)
    else:
        loss.set_ylim(0, 1.05 * highest or 1.0)


def _mark_target(
    axes: Axes, reached: Sequence[tuple[str, ArmStyle, TimeToTarget]], target: float, form: str
) -> None:
    """Draw the target's line, and a line down to the axis at each arm's median time to reach it."""
    axes.axhline(target, color=MUTED, linewidth=1, linestyle=":", zorder=1)
    # Above the line at the left: the curves reach this height only later.
    axes.annotate(
        f"target {target:.1%}", (0, target), xycoords=("axes fraction", "data"),
        xytext=(5, 3), textcoords="offset points",
        fontsize=7.5, color=MUTED, path_effects=_HALO, zorder=4,
    )  # fmt: skip
    # Above a low target the panel is free: the curves get there late or never.
    low = target < 0.45 * axes.get_ylim()[1]
    top, place, align = (axes.get_ylim()[1], 0.98, "top") if low else (target, 0.03, "bottom")
    together: dict[float, list[str]] = defaultdict(list)
    for arm, style, time in reached:
        if time.median is not None:
            axes.plot(
                [time.median] * 2,
                [0, top],
                color=style.color,
                linewidth=1,
                linestyle=(0, (1, 1.5)),
                zorder=2,
            )
            together[time.median].append(arm)
    end = axes.get_xlim()[1]
    width = 0.04 * end
    taken = -np.inf  # the right end of the labels so far
    places = sorted(together)
    for at, following in zip(places, [*places[1:], np.inf], strict=True):
        # Left of its line if the next line, or the panel's end, is too near on the right.
        left = at - taken >= width and min(following, end) - at < width
        if not left and at < taken:
            continue  # no room for a label: the line shows it, and the table has the number
        taken = at if left else at + width
        axes.annotate(
            drawable(f"{form.format(at)}  {', '.join(together[at])}", 34), (at, place),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if left else 3, 0), textcoords="offset points",
            fontsize=7.5, color=INK, rotation=90, va=align, ha="right" if left else "left",
            path_effects=_HALO, zorder=5, parse_math=False,
        )  # fmt: skip
