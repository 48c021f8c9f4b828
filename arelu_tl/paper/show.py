"""The paper's table of a reproduction: for a terminal, as GitHub's Markdown, and for spreadsheets."""

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
from arelu_tl.render.figures.canvas import MUTED, ArmStyle, add_legend, arm_styles, house_style, new_figure, panel
from arelu_tl.render.grid import Grid
from arelu_tl.render.text import visible

_FIRST = "epoch 1"
_LEAD = "AReLU − best "
# What --transfer shows of each direction: before any step on the new set, at the first epoch's end, and the mean on the way.
_MEASURES: dict[str, Callable[[Entry], Spread]] = {
    "before": lambda entry: entry.before,
    _FIRST: lambda entry: entry.first,
    "on the way": lambda entry: entry.aulc,
}


def reproduction_report(told: Reproduction) -> list[Shown]:
    """A table for each study, which is as wide as a terminal mostly is, and the notes."""
    parts: list[Shown] = []
    for study in dict.fromkeys(column.study for column in told.columns):
        parts += [_terminal_table(told, [c for c in told.columns if c.study == study]), ""]
    return [*parts, *map(line, [_marks(told, "*"), *told.notes])]


def reproduction_markdown(told: Reproduction, command: str) -> str:
    """table.md: the table, its notes, and the ``command`` that made it."""
    header, *rows = _table(told, told.columns, "**{}**")
    lines = [f"# {_title(told)}", "", f"    {visible(command)}", "", _row(header)]
    lines += [_row(["---", "---", *["---:"] * (len(header) - 2)]), *map(_row, rows), ""]
    return "\n".join([*lines, *(f"- {note}" for note in [_marks(told, "bold"), *told.notes]), ""])


def reproduction_csv(told: Reproduction) -> str:
    """table.csv: a line for each activation, optimiser and rate, accuracies 0..1."""
    header = ["study", "opt", "lr", "activation", "group", "trainings", "diverged"]
    header += [f"{name}_{part}" for name in ("first_epoch", "best", "before", "aulc") for part in ("mean", "sd")]
    rows = []
    for column in told.columns:
        for entry in column.entries.values():
            row = [column.study, column.opt, f"{column.lr:g}", entry.activation, told.groups[entry.activation]]
            row += [str(len(entry.seeds)), str(entry.diverged)]
            for spread in (entry.first, entry.best, entry.before, entry.aulc):
                row += [f"{spread.mean:.6f}", "" if spread.sd is None else f"{spread.sd:.6f}"]
            rows.append(row)
    return csv_text(header, rows)


def _marks(told: Reproduction, best: str) -> str:
    """What the table's marks mean."""
    several = any(len(entry.seeds) > 1 for column in told.columns for entry in column.entries.values())
    spread = "Mean ± standard deviation over the trainings (n − 1); " if several else ""
    once = "" if several else " Of one training each: another seed may place them otherwise."
    return f"{spread}{best}: the best fixed and the best learnable rival of a column.{once}"


def _title(told: Reproduction) -> str:
    if told.transfer:
        return "Transfer: test accuracy (%) before the first step, after the first epoch, and on the way"
    return "MNIST-Conv: test accuracy (%) after the first epoch"


def _heading(told: Reproduction, column: Column) -> str:
    rate = f"{column.optimiser} {column.lr:g}"
    return f"{column.direction}, {rate}" if told.transfer else rate


def _table(told: Reproduction, columns: Sequence[Column], bold: str) -> Iterator[list[str]]:
    """The header and each row; ``bold`` marks the best of a group of rivals."""
    measures = list(_MEASURES) if told.transfer else [_FIRST]
    beside = [(column, measure) for column in columns for measure in measures]
    # A transfer's directions are named where there are several.
    named = not told.transfer or len(columns) > 1
    yield ["", "activation", *(": ".join([_heading(told, c)] * named + [m] * told.transfer) for c, m in beside)]
    before = None
    for name in told.activations:
        group = told.groups[name]
        shown = "" if group == before else group
        yield [shown, told.titles[name], *(_cell(column, name, measure, bold) for column, measure in beside)]
        before = group
    for group in (FIXED, LEARNABLE):
        if any(group in column.lead for column in columns):
            leads = (f"{100 * c.lead[group]:+.2f}" if m == _FIRST and group in c.lead else "" for c, m in beside)
            yield ["", f"{_LEAD}{group}", *leads]
    if any(column.rank is not None for column in columns):
        yield ["", "AReLU's place", *(f"{c.rank} of {c.of}" if m == _FIRST and c.rank else "" for c, m in beside)]


def _cell(column: Column, name: str, measure: str, bold: str) -> str:
    if name not in column.entries:
        return ""
    entry = column.entries[name]
    spread = _MEASURES[measure](entry)
    text = f"{100 * spread.mean:.2f}" + ("" if spread.sd is None else f" ± {100 * spread.sd:.2f}") + "†" * (entry.diverged > 0)
    return bold.format(text) if measure == _FIRST and name in column.best.values() else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _terminal_table(told: Reproduction, columns: Sequence[Column]) -> Grid:
    header, *rows = _table(told, columns, "* {}")
    direction = f", {_heading(told, columns[0])}" if told.transfer and len(columns) == 1 else ""
    # An accuracy is what the table is for: rather a block for each activation than a rate left out.
    headings = [grid.Column("group", "name", gives_way=1, once=True), *(grid.Column(name, "name") for name in header[1:2])]
    table = Grid([*headings, *map(grid.Column, header[2:])], title=_title(told) + direction)
    names = [(told.groups[name], told.titles[name]) for name in told.activations]
    # Below the activations: where AReLU stands among them.
    names += [("AReLU", row[1].removeprefix("AReLU").removeprefix("'s").strip()) for row in rows[len(names) :]]
    for (group, activation), (_, _, *cells) in zip(names, rows, strict=True):
        best = [(cell, "bold" * cell.startswith("*")) for cell in cells]
        table.add(group, activation, *best, style="bold" * (activation == told.titles.get(ARELU)))
    return table


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
