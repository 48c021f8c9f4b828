"""The one sink of everything that the command line says."""

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
from arelu_tl.render.text import Part, visible

# What is printed: a line that is never broken (a command or a path, to be copied), a sentence, a table.
Shown = str | Text | Grid

# Of a pipe or a file: wider than any line.
_UNBOUNDED = 1_000_000
_INDENT = 2


def line(*parts: Part, style: str = "") -> Text:
    """A sentence of ``parts``, without control characters. Nothing else makes text to be printed: no markup is ever read."""
    made = Text(style=style)
    for part in parts:
        text, own = part if isinstance(part, tuple) else (part, "")
        made.append(visible(text), own or None)
    return made


class Output:
    """Reports go to stdout, as tables or, with ``as_json``, as one JSON document; everything else goes to stderr.

    A terminal's lines are as wide as it is, and its tables leave out columns where they must, unless ``wide`` asks for all.
    A pipe or a file gets everything in lines as long as they are, unless COLUMNS sets their width.

    ``quiet`` keeps the reports and drops the rest.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, wide: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.wide = wide
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr, quiet=quiet)
        # Where there is a progress bar, a warning must go through its console.
        self._warnings = _console(sys.stderr) if quiet else self.err

    def note(self, *parts: Part, shorter: Sequence[str] = (), whole: bool = False) -> None:
        """A sentence on stderr.

        Args:
            shorter: what to say instead where it does not fit into a line: the first of them that does, or the last.
            whole: never break it: it holds a command or a path.
        """
        said = [line(*parts), *map(line, shorter)]
        fitting = next((each for each in said if each.cell_len <= self.err.width), said[-1])
        _print(self.err, fitting, whole=whole)

    def warn(self, *parts: Part) -> None:
        """A sentence on stderr, ``quiet`` or not."""
        _print(self._warnings, line(*parts))

    def report(self, *shown: Shown, data: Any, paged: bool = False) -> None:
        """The command's result: ``data`` with --json, else ``shown``; ``paged`` where it is longer than the terminal."""
        if self.as_json:
            print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False), file=sys.stdout)
            return
        if paged and self.out.is_terminal and sys.stdin.isatty():
            with self.out.capture() as capture:
                self._print(shown)
            text = capture.get()
            if text.count("\n") >= self.out.height:
                # less, the usual pager, shows colours only when told to, and should leave the text on the screen.
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
                _print(self.out, line(item) if isinstance(item, str) else item, whole=isinstance(item, str))


def _console(file: TextIO, *, quiet: bool = False) -> Console:
    # The default of 80 would cut names that somebody wants to grep for.
    width = None if file.isatty() or "COLUMNS" in os.environ else _UNBOUNDED
    return Console(file=file, width=width, quiet=quiet, markup=False, emoji=False, highlight=False)


def _print(console: Console, said: Text, *, whole: bool = False) -> None:
    """Print a line; one that is not to stay whole breaks between words, and what follows is indented."""
    if whole or said.cell_len <= console.width:
        console.print(said, soft_wrap=True)
        return
    first, *rest = said.wrap(console, max(console.width - _INDENT, 1))
    for each in (first, *rest):
        each.rstrip()
        console.print(Text(" " * _INDENT * (each is not first)) + each, soft_wrap=True)
