"""Foreign text (class names, paths) made harmless before anything shows it."""

from __future__ import annotations

import unicodedata

from arelu_tl.records.csv_table import UNSEEN


def visible(text: object) -> str:
    """``text`` on one line, with what cannot be seen written as an escape."""
    told = str(text)
    if told.isprintable():
        return told
    return "".join(c if unicodedata.category(c) not in UNSEEN else repr(c)[1:-1] for c in told)


def shorten(text: str, length: int) -> str:
    """``text``, or both its ends around an ellipsis where it is longer."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
