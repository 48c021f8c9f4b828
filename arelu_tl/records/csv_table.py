"""CSV tables of untrusted text, safe for every reader, spreadsheet and terminal.

Every reader splits them into the same cells, no spreadsheet executes a formula, and no terminal
interprets control characters. Backslashes and invisible characters in a cell are written as in a
Python string (``\\\\``, ``\\n``, ``\\x1b``, ``\\udcff`` for a byte that is not UTF-8). A cell that
a spreadsheet would treat as a formula gets an apostrophe in front, as in spreadsheets.
``read_table`` reverses both.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from arelu_tl.errors import ArtefactError

# Control and format characters, surrogates, and line separators: they move the cursor, or hide or
# reorder text.
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# What starts a formula in some spreadsheet, and the apostrophe itself.
_STARTS = ("=", "+", "-", "@", "'")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ESCAPE = re.compile(r"\\(?:([\\nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_SHORT = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a whole table; lines end with a line feed."""
    return "".join(csv_lines([header, *rows]))


def csv_lines(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield each row as one line of such a table, with its line feed."""
    for row in rows:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow(map(escape, row))
        yield out.getvalue()


def read_table(path: Path) -> list[dict[str, str]]:
    """Read the rows of such a file as {column: cell}, unescaped.

    Raises:
        ArtefactError: it cannot be read, or a row has more or fewer cells than the header.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        return [dict(zip(header, map(unescape, row), strict=True)) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None


def escape(text: str) -> str:
    """Escape a cell's text so that it is visible, on one line, and not a formula."""
    if "\\" in text or not text.isprintable():
        text = "".join(
            repr(c)[1:-1] if c == "\\" or unicodedata.category(c) in UNSEEN else c for c in text
        )
    return f"'{text}" if text.startswith(_STARTS) and not _NUMBER.fullmatch(text) else text


def unescape(text: str) -> str:
    """Reverse ``escape``."""
    text = text.removeprefix("'")
    return (
        text
        if "\\" not in text
        else _ESCAPE.sub(
            lambda found: (
                _SHORT[found[1]] if found[1] else chr(int(found[2] or found[3] or found[4], 16))
            ),
            text,
        )
    )
