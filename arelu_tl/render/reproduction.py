"""The paper's table of a reproduction: for a terminal, as GitHub's Markdown, and for spreadsheets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from arelu_tl.analysis.reproduction import ARELU, FIXED, LEARNABLE, Column, Entry, Reproduction
from arelu_tl.analysis.results import Spread
from arelu_tl.records.csv_table import csv_text
from arelu_tl.render import grid
from arelu_tl.render.console import Shown, line
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
