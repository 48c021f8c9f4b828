"""All output of the command line."""

from __future__ import annotations

import json
import os
import pydoc
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from arelu_tl.render.grid import Grid
from arelu_tl.render.text import Part, as_options, visible

# What can be printed: a command or path to copy, never wrapped; a sentence; a table.
Shown = str | Text | Grid

# The width of a pipe or a file: wider than any line.
_UNBOUNDED = 1_000_000
_INDENT = 2


def line(*parts: Part, style: str = "") -> Text:
    """Join ``parts`` into a sentence without control characters.

    All printed text is made here; markup is never parsed.
    """
    made = Text(style=style)
    for part in parts:
        text, own = part if isinstance(part, tuple) else (part, "")
        made.append(visible(text), own or None)
    return made


def message(*parts: Part, style: str = "") -> Text:
    """``line`` of a message that may come from the library, which names parameters."""
    texts = [(part, "") if isinstance(part, str) else part for part in parts]
    return line(*((as_options(text), own) for text, own in texts), style=style)


class Output:
    """Reports go to stdout, as tables or (``as_json``) one JSON document; the rest to stderr.

    On a terminal, lines wrap at its width, and tables leave out columns that do not fit, unless
    ``wide`` is set. In a pipe or a file, lines have any length, unless COLUMNS sets a width.

    ``quiet`` keeps the reports and drops everything else.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, wide: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.wide = wide
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr, quiet=quiet)
        # Beside a progress bar, a warning must go through the bar's console.
        self._warnings = _console(sys.stderr) if quiet else self.err

    def note(self, *parts: Part, shorter: Sequence[str] = (), whole: bool = False) -> None:
        """Print a sentence on stderr.

        Args:
            shorter: alternatives for a line that is too long. The first that fits is printed,
                otherwise the last.
            whole: never wrap it, because it holds a command or a path.
        """
        texts = [message(*parts), *map(message, shorter)]
        fitting = next((each for each in texts if each.cell_len <= self.err.width), texts[-1])
        _print(self.err, fitting, whole=whole)

    def warn(self, *parts: Part) -> None:
        """Print a sentence on stderr, even if ``quiet``."""
        _print(self._warnings, message(*parts))

    def report(self, *shown: Shown, data: Any, paged: bool = False) -> None:
        """Print the command's result.

        Args:
            shown: what to print.
            data: what to print instead with --json.
            paged: use a pager if the result is longer than the terminal.
        """
        if self.as_json:
            print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False), file=sys.stdout)
            return
        if paged and self.out.is_terminal and sys.stdin.isatty():
            with self.out.capture() as capture:
                self._print(shown)
            text = capture.get()
            if text.count("\n") >= self.out.height:
                # less, the usual pager, needs these to show colours and to leave the text on the
                # screen.
                os.environ.setdefault("LESS", "-RFX")
                pydoc.pager(text)
                return
        self._print(shown)

    def _print(self, shown: Sequence[Shown]) -> None:
        width = None if self.wide or self.out.width == _UNBOUNDED else self.out.width
        for item in shown:
            if isinstance(item, Grid):
                for each in item.lines(width, ascii_only=self.out.options.ascii_only):
                    _print(self.out, each, whole=True)
            else:
                _print(
                    self.out,
                    line(item) if isinstance(item, str) else item,
                    whole=isinstance(item, str),
                )


def _console(file: TextIO, *, quiet: bool = False) -> Console:
    # Rich's default of 80 columns would cut names that a user may grep for.
    width = None if file.isatty() or "COLUMNS" in os.environ else _UNBOUNDED
    return Console(file=file, width=width, quiet=quiet, markup=False, emoji=False, highlight=False)


def _print(console: Console, text: Text, *, whole: bool = False) -> None:
    """Print a line. Unless ``whole``, wrap it between words and indent the continuation lines."""
    if whole or text.cell_len <= console.width:
        console.print(text, soft_wrap=True)
        return
    first, *rest = text.wrap(console, max(console.width - _INDENT, 1))
    for each in (first, *rest):
        each.rstrip()
        console.print(Text(" " * _INDENT * (each is not first)) + each, soft_wrap=True)
