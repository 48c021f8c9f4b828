"""CSV tables of foreign text that every reader splits into the same cells, no spreadsheet runs, and no terminal acts on.

Within a cell a backslash, and whatever cannot be seen, is written as Python writes it in a string (``\\\\``, ``\\n``, ``\\x1b``,
``\\udcff`` for a byte that is no UTF-8); a cell that a spreadsheet would take for a formula begins with an apostrophe, as it does
there. ``read_table`` takes both away again.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from arelu_tl.errors import ArtefactError

# Control and format characters, surrogates, and the separators that end a line: they move the cursor, hide or reorder text.
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# What starts a formula in one spreadsheet or another, and the mark itself.
_STARTS = ("=", "+", "-", "@", "'")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ESCAPE = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_SHORT = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A whole table; lines end in a line feed."""
    return "".join(csv_lines([header, *rows]))


def csv_lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Each row as one line of such a table, with its end."""
    for row in rows:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow(map(escape, row))
        yield out.getvalue()


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of such a file, {column: cell}, as they were before they were written.

    Raises:
        ArtefactError: it cannot be read, or a row has not the header's number of cells.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        return [dict(zip(header, map(unescape, row), strict=True)) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None


def escape(text: str) -> str:
    """A cell's text, visible on one line and no formula."""
    if "\\" in text or not text.isprintable():
        text = "".join(repr(c)[1:-1] if c == "\\" or unicodedata.category(c) in UNSEEN else c for c in text)
    return f"'{text}" if text.startswith(_STARTS) and not _NUMBER.fullmatch(text) else text


def unescape(text: str) -> str:
    """What ``escape`` was given."""
    text = text.removeprefix("'")
    return (
        text
        if "\\" not in text
        else _ESCAPE.sub(lambda found: _SHORT[found[1]] if found[1] else chr(int(found[2] or found[3] or found[4], 16)), text)
    )
