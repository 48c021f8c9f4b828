"""Foreign text (class names, paths) made harmless before anything shows it."""

from __future__ import annotations

import os
import shlex
import unicodedata
from pathlib import Path

from arelu_tl.records.csv_table import UNSEEN

# Text, or text and the style that it is shown in.
Part = str | tuple[str, str]


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


def shell_word(word: str | Path) -> str:
    """``word`` as one word of a command line that can be pasted; a path is no option, whatever it begins with."""
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if visible(text) == text:
        return shlex.quote(text)
    # What cannot be seen or is no valid text, byte by byte, as bash, zsh and POSIX's 2024 shell read it.
    shown = (c if visible(c) == c else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in text)
    return "$'" + "".join(f"\\{c}" if c in "\\'" else c for c in shown) + "'"


def percent(share: float) -> str:
    return "under 1%" if 0 < share < 0.01 else f"{share:.0%}"
