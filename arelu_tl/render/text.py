"""Escaping of foreign text (class names, paths) before it is shown."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from pathlib import Path

from arelu_tl.records.csv_table import UNSEEN

# Text, or text and its style.
Part = str | tuple[str, str]


def visible(text: object) -> str:
    """``text`` on one line, with invisible characters written as escapes."""
    raw = str(text)
    if raw.isprintable():
        return raw
    return "".join(c if unicodedata.category(c) not in UNSEEN else repr(c)[1:-1] for c in raw)


# What the library's messages write in backticks: a parameter, or one with its value.
_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=('?)([^`']*)\2)?`")


def as_options(message: str) -> str:
    """The library's ``message`` with its parameters written as options of the command line.

    >>> as_options("lower `lr`, or start with `init='near-relu'` and `pretrained=False`")
    'lower --lr, or start with --init near-relu and --no-pretrained'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[3]
        if value == "False":
            return f"--no-{name}"
        return f"--{name}" if value in (None, "True") else f"--{name} {value}"

    return _PARAMETER.sub(option, message)


def shorten(text: str, length: int) -> str:
    """``text``, or both its ends around an ellipsis if it is longer than ``length``."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def shell_word(word: str | Path) -> str:
    """``word`` quoted as one word of a shell command; a path never reads as an option."""
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if visible(text) == text:
        return shlex.quote(text)
    # Invisible characters and invalid text are written byte by byte, in the $'...' syntax of bash,
    # zsh and POSIX 2024.
    shown = (
        c if visible(c) == c else "".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in text
    )
    return "$'" + "".join(f"\\{c}" if c in "\\'" else c for c in shown) + "'"


def percent(share: float) -> str:
    """Format ``share`` (0..1) as a whole percentage."""
    return "under 1%" if 0 < share < 0.01 else f"{share:.0%}"
