"""The table of a reproduction: for a terminal, in GitHub's Markdown, and for spreadsheets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from arelu_tl.analysis.results import Spread
from arelu_tl.paper.results import ARELU, FIXED, LEARNABLE, Column, Entry, Reproduction
from arelu_tl.records.csv_table import csv_text
from arelu_tl.render import grid
from arelu_tl.render.console import Shown, line
from arelu_tl.render.figures.canvas import (
    MUTED,
    ArmStyle,
    add_legend,
    arm_styles,
    house_style,
    new_figure,
    panel,
)
from arelu_tl.render.grid import Grid
from arelu_tl.render.text import visible

_FIRST = "epoch 1"
_LEAD = "AReLU − best "
# Columns of --transfer for each direction: accuracy before any step on the new set, at the end of
# the first epoch, and the mean over the course of training.
_MEASURES: dict[str, Callable[[Entry], Spread]] = {
    "before": lambda entry: entry.before,
    _FIRST: lambda entry: entry.first,
    "on the way": lambda entry: entry.aulc,
}


def reproduction_report(result: Reproduction) -> list[Shown]:
    """Return a table for each study, as wide as a usual terminal, and the notes."""
    parts: list[Shown] = []
    for study in dict.fromkeys(column.study for column in result.columns):
        parts += [_terminal_table(result, [c for c in result.columns if c.study == study]), ""]
    return [*parts, *map(line, [_marks(result, "*"), *result.notes])]


def reproduction_markdown(result: Reproduction, command: str) -> str:
    """Return table.md: the table, its notes, and the ``command`` that made it."""
    header, *rows = _table(result, result.columns, "**{}**")
    lines = [f"# {_title(result)}", "", f"    {visible(command)}", "", _row(header)]
    lines += [_row(["---", "---", *["---:"] * (len(header) - 2)]), *map(_row, rows), ""]
    return "\n".join(
        [*lines, *(f"- {note}" for note in [_marks(result, "bold"), *result.notes]), ""]
    )


def reproduction_csv(result: Reproduction) -> str:
    """Return table.csv: a line for each activation, optimiser and rate, with accuracies 0..1."""
    header = ["study", "opt", "lr", "activation", "group", "trainings", "diverged"]
    header += [
        f"{name}_{part}"
        for name in ("first_epoch", "best", "before", "aulc")
        for part in ("mean", "sd")
    ]
    rows = []
    for column in result.columns:
        for entry in column.entries.values():
            row = [
                column.study,
                column.opt,
                f"{column.lr:g}",
                entry.activation,
                result.groups[entry.activation],
            ]
            row += [str(len(entry.seeds)), str(entry.diverged)]
            for spread in (entry.first, entry.best, entry.before, entry.aulc):
                row += [f"{spread.mean:.6f}", "" if spread.sd is None else f"{spread.sd:.6f}"]
            rows.append(row)
    return csv_text(header, rows)


def _marks(result: Reproduction, best: str) -> str:
    """Explain the table's marks."""
    several = any(
        len(entry.seeds) > 1 for column in result.columns for entry in column.entries.values()
    )
    spread = "Mean ± standard deviation over the trainings (n − 1); " if several else ""
    once = "" if several else " Of one training each: another seed may place them otherwise."
    return f"{spread}{best}: the best fixed and the best learnable rival of a column.{once}"


def _title(result: Reproduction) -> str:
    if result.transfer:
        return (
            "Transfer: test accuracy (%) before the first step, after the first epoch, and on "
            "the way"
        )
    return "MNIST-Conv: test accuracy (%) after the first epoch"


def _heading(result: Reproduction, column: Column) -> str:
    rate = f"{column.optimiser} {column.lr:g}"
    return f"{column.direction}, {rate}" if result.transfer else rate


def _table(result: Reproduction, columns: Sequence[Column], bold: str) -> Iterator[list[str]]:
    """Yield the header and each row; ``bold`` formats the best of a group of rivals."""
    measures = list(_MEASURES) if result.transfer else [_FIRST]
    beside = [(column, measure) for column in columns for measure in measures]
    # The directions of a transfer are named if there are several.
    named = not result.transfer or len(columns) > 1
    yield [
        "",
        "activation",
        *(": ".join([_heading(result, c)] * named + [m] * result.transfer) for c, m in beside),
    ]
    before = None
    for name in result.activations:
        group = result.groups[name]
        shown = "" if group == before else group
        yield [
            shown,
            result.titles[name],
            *(_cell(column, name, measure, bold) for column, measure in beside),
        ]
        before = group
    for group in (FIXED, LEARNABLE):
        if any(group in column.lead for column in columns):
            leads = (
                f"{100 * c.lead[group]:+.2f}" if m == _FIRST and group in c.lead else ""
                for c, m in beside
            )
            yield ["", f"{_LEAD}{group}", *leads]
    if any(column.rank is not None for column in columns):
        yield [
            "",
            "AReLU's place",
            *(f"{c.rank} of {c.of}" if m == _FIRST and c.rank else "" for c, m in beside),
        ]


def _cell(column: Column, name: str, measure: str, bold: str) -> str:
    if name not in column.entries:
        return ""
    entry = column.entries[name]
    spread = _MEASURES[measure](entry)
    text = (
        f"{100 * spread.mean:.2f}"
        + ("" if spread.sd is None else f" ± {100 * spread.sd:.2f}")
        + "†" * (entry.diverged > 0)
    )
    return bold.format(text) if measure == _FIRST and name in column.best.values() else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _terminal_table(result: Reproduction, columns: Sequence[Column]) -> Grid:
    header, *rows = _table(result, columns, "* {}")
    direction = f", {_heading(result, columns[0])}" if result.transfer and len(columns) == 1 else ""
    # Accuracies matter most: if space is short, use a block per activation rather than omit a rate.
    headings = [
        grid.Column("group", "name", gives_way=1, once=True),
        *(grid.Column(name, "name") for name in header[1:2]),
    ]
    table = Grid([*headings, *map(grid.Column, header[2:])], title=_title(result) + direction)
    names = [(result.groups[name], result.titles[name]) for name in result.activations]
    # Below the activations: AReLU's rank among them.
    names += [
        ("AReLU", row[1].removeprefix("AReLU").removeprefix("'s").strip())
        for row in rows[len(names) :]
    ]
    for (group, activation), (_, _, *cells) in zip(names, rows, strict=True):
        best = [(cell, "bold" * cell.startswith("*")) for cell in cells]
        table.add(group, activation, *best, style="bold" * (activation == result.titles.get(ARELU)))
    return table


_WIDTH, _HEIGHT = 12.0, 2.1
_OTHERS = "#c3c9d0"
# Each in its own style, whichever activations they are in a panel.
_RIVALS = {
    "fixed": ArmStyle("#009E73", (0, (6, 1.5, 1.2, 1.5)), "^"),
    "learnable": ArmStyle("#CC79A7", (0, (1.4, 1.2)), "D"),
}


@house_style
def reproduction_figure(result: Reproduction) -> Figure:
    """Draw the means over the trainings; the best rivals are named.

    AReLU and ReLU have a band from minimum to maximum.
    """
    studies = dict.fromkeys(column.study for column in result.columns)
    rows = [[column for column in result.columns if column.study == study] for study in studies]
    if max(map(len, rows)) == 1:
        rows = [result.columns]
    across = max(map(len, rows))
    left, right, bottom, top, gap, between = 0.75, 0.25, 0.5, 0.85, 0.28, 0.62
    # One or two panels would be too wide.
    width = _WIDTH if across > 2 else 8.6
    wide = (width - left - right - (across - 1) * gap) / across
    height = bottom + len(rows) * _HEIGHT + (len(rows) - 1) * between + top
    figure = new_figure(width, height)
    for r, columns in enumerate(rows):
        for c, column in enumerate(columns):
            x = left + c * (wide + gap)
            y = bottom + (len(rows) - 1 - r) * (_HEIGHT + between)
            axes = panel(figure, x, y, wide, _HEIGHT)
            _draw(axes, result, column)
            if c:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel("test accuracy")
            if r == len(rows) - 1:
                axes.set_xlabel("step")
    styles = {
        name: replace(style, marker="")
        for name, style in arm_styles([ARELU, "relu"]).items()
        if name in result.activations
    }
    more = [
        Line2D([], [], label=f"best {group} rival", **_line(style))
        for group, style in _RIVALS.items()
    ]
    more.append(Line2D([], [], label="others", color=_OTHERS, linewidth=0.9))
    add_legend(
        figure, styles, {name: result.titles[name] for name in styles}, *more,
        loc="upper left", bbox_to_anchor=(left / width, 1 - 0.1 / height),
    )  # fmt: skip
    return figure


def _line(style: ArmStyle) -> dict[str, Any]:
    return style.line(marker="", linewidth=1.5)


def _draw(axes: Axes, result: Reproduction, column: Column) -> None:
    known = arm_styles([ARELU, "relu"])
    best = {name: group for group, name in column.best.items()}
    for name, entry in column.entries.items():
        steps, mean = entry.curve["step"], entry.curve["mean"]
        if name in known:
            axes.fill_between(
                steps,
                entry.curve["low"],
                entry.curve["high"],
                color=known[name].color,
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(steps, mean, zorder=5, **_line(known[name]))
        elif name not in best:
            axes.plot(steps, mean, color=_OTHERS, linewidth=0.9, zorder=2)
        if name in best:
            axes.plot(steps, mean, zorder=4, **_line(_RIVALS[best[name]]))
    title = (
        column.direction if result.transfer else f"{column.optimiser}, learning rate {column.lr:g}"
    )
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold", pad=15)
    named = "; ".join(f"best {group}: {result.titles[name]}" for name, group in best.items())
    axes.text(0, 1.02, named, transform=axes.transAxes, fontsize=7.5, color=MUTED, va="bottom")
    axes.set(xlim=(0, max(steps)), ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(True)
