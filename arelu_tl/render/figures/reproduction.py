"""Accuracy against steps of every activation, a panel for each optimiser and rate: AReLU and ReLU stand out of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from arelu_tl.analysis.reproduction import ARELU, Column, Reproduction
from arelu_tl.render.figures.canvas import MUTED, ArmStyle, add_legend, arm_styles, house_style, new_figure, panel

_WIDTH, _HEIGHT = 12.0, 2.1
_OTHERS = "#c3c9d0"
# In a panel of its own look, whichever activations they are.
_RIVALS = {"fixed": ArmStyle("#009E73", (0, (6, 1.5, 1.2, 1.5)), "^"), "learnable": ArmStyle("#CC79A7", (0, (1.4, 1.2)), "D")}


@house_style
def reproduction_figure(told: Reproduction) -> Figure:
    """Means over the trainings, the band from the least to the greatest for AReLU and ReLU; the best rivals are named."""
    studies = dict.fromkeys(column.study for column in told.columns)
    rows = [[column for column in told.columns if column.study == study] for study in studies]
    if max(map(len, rows)) == 1:
        rows = [told.columns]
    across = max(map(len, rows))
    left, right, bottom, top, gap, between = 0.75, 0.25, 0.5, 0.85, 0.28, 0.62
    # One or two panels would be wider than they are good for.
    width = _WIDTH if across > 2 else 8.6
    wide = (width - left - right - (across - 1) * gap) / across
    height = bottom + len(rows) * _HEIGHT + (len(rows) - 1) * between + top
    figure = new_figure(width, height)
    for r, columns in enumerate(rows):
        for c, column in enumerate(columns):
            x = left + c * (wide + gap)
            y = bottom + (len(rows) - 1 - r) * (_HEIGHT + between)
            axes = panel(figure, x, y, wide, _HEIGHT)
            _draw(axes, told, column)
            if c:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel("test accuracy")
            if r == len(rows) - 1:
                axes.set_xlabel("step")
    styles = {name: replace(style, marker="") for name, style in arm_styles([ARELU, "relu"]).items() if name in told.activations}
    more = [Line2D([], [], label=f"best {group} rival", **_line(style)) for group, style in _RIVALS.items()]
    more.append(Line2D([], [], label="others", color=_OTHERS, linewidth=0.9))
    add_legend(
        figure, styles, {name: told.titles[name] for name in styles}, *more,
        loc="upper left", bbox_to_anchor=(left / width, 1 - 0.1 / height),
    )  # fmt: skip
    return figure


def _line(style: ArmStyle) -> dict[str, Any]:
    return style.line(marker="", linewidth=1.5)


def _draw(axes: Axes, told: Reproduction, column: Column) -> None:
    known = arm_styles([ARELU, "relu"])
    best = {name: group for group, name in column.best.items()}
    for name, entry in column.entries.items():
        steps, mean = entry.curve["step"], entry.curve["mean"]
        if name in known:
            axes.fill_between(steps, entry.curve["low"], entry.curve["high"], color=known[name].color, alpha=0.15, linewidth=0)
            axes.plot(steps, mean, zorder=5, **_line(known[name]))
        elif name not in best:
            axes.plot(steps, mean, color=_OTHERS, linewidth=0.9, zorder=2)
        if name in best:
            axes.plot(steps, mean, zorder=4, **_line(_RIVALS[best[name]]))
    title = column.direction if told.transfer else f"{column.optimiser}, learning rate {column.lr:g}"
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold", pad=15)
    named = "; ".join(f"best {group}: {told.titles[name]}" for name, group in best.items())
    axes.text(0, 1.02, named, transform=axes.transAxes, fontsize=7.5, color=MUTED, va="bottom")
    axes.set(xlim=(0, max(steps)), ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(True)
