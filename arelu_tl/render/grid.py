"""Tables for a terminal of any width. No number is ever cut.

A table that is too wide is narrowed in this order:

1. headings wrap between words;
2. names are shortened in the middle, and texts wrap between words, to a width that is still easy to
   read;
3. columns that may be dropped (``Column.gives_way``) are left out, and a line below the table names
   them. The largest ``gives_way`` goes first, columns of equal ``gives_way`` go together, and
   columns without any value go before all others;
4. names and texts are narrowed to their minimum;
5. each row becomes a block with a line for each value, and nothing is left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len, chop_cells
from rich.text import Text

from arelu_tl.render.text import Part, visible

Kind = Literal["number", "name", "text"]
_EASY: dict[Kind, int] = {"name": 24, "text": 32}
_LEAST: dict[Kind, int] = {"name": 10, "text": 16}
_GAP = 2
_NARROWEST = 20
# Cells that show no value.
_NOTHING = frozenset({"", "-", "·"})
# A number up to its decimal point, and what follows it.
_DECIMAL = re.compile(r"((?:[*>] )?[-+]?[\d,]+)((?:[.%e ].*)?)")


@dataclass(frozen=True)
class Column:
    """A column of a ``Grid``.

    Attributes:
        name: its heading.
        kind: a "number" is never cut, and the decimal points of a column are aligned; a "name" is
            shortened in its middle, or wrapped if two shortened names would look the same; a "text"
            wraps between words.
        gives_way: 0 is never left out; of the others, the largest are left out first.
        once: shown only if it differs from the row before; an empty line then precedes the row.
        optional: left out without notice if no row has a value.
    """

    name: str
    kind: Kind = "number"
    gives_way: int = 0
    once: bool = False
    optional: bool = False


@dataclass(frozen=True)
class _Row:
    cells: list[tuple[str, str]]
    style: str
    apart: bool


@dataclass(frozen=True)
class _Fitted:
    """The columns that are shown, and the width of each."""

    shown: list[int]
    widths: dict[int, int]


@dataclass
class Grid:
    """A table that adapts to the width of the terminal.

    Attributes:
        title, caption: lines above and below it.
        instead: a narrower table with the same content, shown if it fits whole and this one does
            not.
    """

    columns: Sequence[Column]
    title: str = ""
    caption: str = ""
    instead: Grid | None = None
    _rows: list[_Row] = field(default_factory=list)
    _apart: bool = False

    def add(self, *cells: Part, style: str = "") -> None:
        """Add a row with one cell per column.

        Raises:
            ValueError: the number of cells differs from the number of columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        texts = [
            (visible(cell[0]), cell[1]) if isinstance(cell, tuple) else (visible(cell), "")
            for cell in cells
        ]
        self._rows.append(_Row(texts, style, self._apart))
        self._apart = False

    def section(self) -> None:
        """Put an empty line before the next row."""
        self._apart = bool(self._rows)

    def lines(self, width: int | None = None, *, ascii_only: bool = False) -> list[Text]:
        """The table's lines, none wider than ``width``; None is an unlimited width."""
        room = None if width is None else max(width, _NARROWEST)
        fitted = self._fit(room)
        whole = fitted is not None and len(fitted.shown) == len(self._present())
        if self.instead is not None and not whole and self.instead.is_whole(room):
            return self.instead.lines(room, ascii_only=ascii_only)
        made = (
            [Text(part, style="italic") for part in _wrapped(visible(self.title), room)]
            if self.title
            else []
        )
        made += self._blocks(room) if fitted is None else self._table(fitted, ascii_only=ascii_only)
        if self.caption:
            made += [Text(part, style="italic") for part in _wrapped(visible(self.caption), room)]
        if fitted is not None and not whole:
            names = [
                self.columns[number].name
                for number in self._present()
                if number not in fitted.shown
            ]
            caption = (
                f"{len(names)} column{'s' * (len(names) > 1)} left out: {', '.join(names)}; "
                "--wide shows them"
            )
            made += [Text(part, style="dim") for part in _wrapped(visible(caption), room)]
        return made

    def is_whole(self, width: int | None) -> bool:
        """Whether all columns fit into ``width``."""
        fitted = self._fit(width)
        return fitted is not None and len(fitted.shown) == len(self._present())

    def _present(self) -> list[int]:
        """The columns to show: all but optional ones without a value."""
        return [
            number
            for number, column in enumerate(self.columns)
            if not column.optional
            or any(row.cells[number][0] not in _NOTHING for row in self._rows)
        ]

    def _fit(self, width: int | None) -> _Fitted | None:
        everything = self._present()
        cells = {i: max((cell_len(text) for text in self._texts(i)), default=0) for i in everything}
        headings = [visible(column.name) for column in self.columns]
        full = {i: max(cells[i], cell_len(headings[i])) for i in everything}
        if width is None or _total(full, everything) <= width:
            return _Fitted(everything, full)
        broken = {
            i: max(cells[i], *(cell_len(word) for word in headings[i].split() or [""]))
            for i in everything
        }
        ways = [column.gives_way for column in self.columns]
        # Empty columns are left out before all others.
        ways = [way + max(ways) * (way > 0 and self._is_empty(i)) for i, way in enumerate(ways)]
        shown = list(everything)
        for least in (_EASY, _LEAST):
            floors = {
                i: min(broken[i], least.get(self.columns[i].kind, broken[i])) for i in everything
            }
            while _total(floors, shown) > width:
                leaving = max((ways[i] for i in shown), default=0)
                if not leaving:
                    break
                shown = [i for i in shown if ways[i] < leaving]
            else:
                return _Fitted(shown, _shared(floors, broken, full, shown, width))
        return None

    def _is_empty(self, column: int) -> bool:
        return all(row.cells[column][0] in _NOTHING for row in self._rows)

    def _texts(self, column: int) -> list[str]:
        """A column's cells; numbers are padded to align their decimal points."""
        texts = [row.cells[column][0] for row in self._rows]
        if self.columns[column].kind != "number":
            return texts
        split = [_DECIMAL.fullmatch(text) for text in texts]
        numbers = [text for text in texts if any(c.isdigit() for c in text)]
        if sum(found is not None for found in split) < len(numbers):  # 64x7x7, or a range
            return texts
        before = max((len(found[1]) for found in split if found), default=0)
        after = max((len(found[2]) for found in split if found), default=0)
        return [
            text if found is None else f"{found[1]:>{before}}{found[2]:<{after}}"
            for text, found in zip(texts, split, strict=True)
        ]

    def _table(self, fitted: _Fitted, *, ascii_only: bool) -> list[Text]:
        cells = {
            i: self._laid_out(i, fitted.widths[i], "..." if ascii_only else "…")
            for i in fitted.shown
        }
        headings = {
            i: _wrapped(visible(self.columns[i].name), fitted.widths[i]) for i in fitted.shown
        }
        high = max(map(len, headings.values()))
        bold = dict.fromkeys(fitted.shown, ("", "bold"))
        made = []
        for number in range(high):
            at = {i: ([""] * (high - len(parts)) + parts)[number] for i, parts in headings.items()}
            made.append(self._line(fitted, at, bold))
        made.append(
            Text(("-" if ascii_only else "─") * _total(fitted.widths, fitted.shown), style="dim")
        )
        once = [i for i in fitted.shown if self.columns[i].once]
        for number, row in enumerate(self._rows):
            before = self._rows[number - 1] if number else None
            same = {i for i in once if before is not None and before.cells[i][0] == row.cells[i][0]}
            if row.apart or (before is not None and len(same) < len(once)):
                made.append(Text())
            shown = {i: [""] if i in same else cells[i][number] for i in fitted.shown}
            styles = {i: (row.style, row.cells[i][1]) for i in fitted.shown}
            for part in range(max(map(len, shown.values()))):
                made.append(
                    self._line(
                        fitted,
                        {i: parts[part] if part < len(parts) else "" for i, parts in shown.items()},
                        styles,
                    )
                )
        return made

    def _laid_out(self, column: int, width: int, ellipsis: str) -> list[list[str]]:
        """Each cell of a column as a list of lines."""
        texts, kind = self._texts(column), self.columns[column].kind
        if kind == "text":
            return [_wrapped(text, width) for text in texts]
        if kind == "name":
            short = {text: _shortened(text, width, ellipsis) for text in texts}
            if len(set(short.values())) == len(short):
                return [[short[text]] for text in texts]
            return [chop_cells(text, width) or [""] for text in texts]
        return [[text] for text in texts]

    def _line(
        self, fitted: _Fitted, cells: dict[int, str], styles: dict[int, tuple[str, str]]
    ) -> Text:
        made = Text()
        for number, i in enumerate(fitted.shown):
            space = " " * (fitted.widths[i] - cell_len(cells[i]))
            right = self.columns[i].kind == "number"
            made.append(" " * (_GAP * (number > 0)) + space * right)
            made.append(cells[i], " ".join(styles[i]).strip() or None)
            made.append(space * (not right))
        made.rstrip()
        return made

    def _blocks(self, width: int | None) -> list[Text]:
        made = []
        for number, row in enumerate(self._rows):
            if number:
                made.append(Text())
            entries = [
                (visible(column.name), *cell, column.kind)
                for column, cell in zip(self.columns, row.cells, strict=True)
                if cell[0] not in _NOTHING
            ]
            keys = max((cell_len(key) for key, *_ in entries), default=0)
            words = (
                word for _, text, _, kind in entries if kind == "number" for word in text.split()
            )
            beside = (
                width is None
                or keys + _GAP + max(_LEAST["text"], *map(cell_len, words), 0) <= width
            )
            for key, text, style, kind in entries:
                room = width if width is None else width - (keys + _GAP if beside else _GAP)
                values = (
                    chop_cells(text, room) if kind == "name" and room else _wrapped(text, room)
                ) or [""]
                if not beside:
                    made += [Text(part, style="bold") for part in _wrapped(key, width)]
                for place, value in enumerate(values):
                    shown = key if beside and not place else ""
                    made.append(
                        Text(shown + " " * (keys * beside - cell_len(shown) + _GAP), style="bold")
                    )
                    made[-1].append(value, f"not bold {row.style} {style}".strip())
        return made


def _total(widths: dict[int, int], shown: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + _GAP * (len(shown) - 1)


def _shared(
    floors: dict[int, int],
    broken: dict[int, int],
    full: dict[int, int],
    shown: Sequence[int],
    width: int,
) -> dict[int, int]:
    """The width of each column: at least its floor.

    The remaining width goes to the narrowest column that needs more: first up to ``broken`` (cells
    whole, headings wrapped), then up to ``full`` (headings whole).
    """
    widths = {i: floors[i] for i in shown}
    left = width - _total(widths, shown)
    for wanted in (broken, full):
        while left and (wanting := [i for i in shown if widths[i] < wanted[i]]):
            widths[min(wanting, key=lambda i: widths[i])] += 1
            left -= 1
    return widths


def _wrapped(text: str, width: int | None) -> list[str]:
    """Wrap ``text`` between words, and within words that are wider than ``width``."""
    if width is None or cell_len(text) <= width:
        return [text]
    made = [""]
    for word in text.split(" "):
        longer = f"{made[-1]} {word}" if made[-1] else word
        if cell_len(longer) <= width:
            made[-1] = longer
        else:
            made = [part for part in made if part] + chop_cells(word, width)
    return made


def _shortened(text: str, width: int, ellipsis: str) -> str:
    """``text``, or both its ends around an ellipsis if it is wider than ``width``."""
    if cell_len(text) <= width:
        return text
    room = width - cell_len(ellipsis)
    start = len(text)
    while start and cell_len(text[start - 1 :]) <= room // 3:
        start -= 1
    # A combining mark belongs to the letter before it.
    while start < len(text) and unicodedata.combining(text[start]):
        start += 1
    return chop_cells(text, room - cell_len(text[start:]))[0] + ellipsis + text[start:]
