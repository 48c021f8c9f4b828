"""The one sink of everything that the command line says."""

from __future__ import annotations

import json
import os
import pydoc
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape

from arelu_tl.render.text import visible


def plain(text: object) -> str:
    """Foreign text (class names, paths) made harmless for a terminal: no markup, no control characters, one line."""
    shown = visible(text)
    # A backslash right before our own closing tag would swallow it.
    return escape(shown + " ")[:-1] if shown.endswith("\\") else escape(shown)


class Output:
    """Reports go to stdout, as tables or, with ``as_json``, as one JSON document; everything else goes to stderr.

    ``quiet`` keeps the reports and drops the rest.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        # A pipe or a file has no width; the default of 80 would cut names that somebody wants to grep for.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
        self.out = Console(file=sys.stdout, highlight=False, width=width)
        self.err = Console(file=sys.stderr, highlight=False, quiet=quiet)
        # Where there is a progress bar, a warning must go through its console.
        self._warnings = Console(file=sys.stderr, highlight=False) if quiet else self.err

    def note(self, text: str) -> None:
        """A line on stderr, in rich markup."""
        self.err.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line on stderr, in rich markup, ``quiet`` or not."""
        self._warnings.print(text, soft_wrap=True)

    def report(self, *shown: RenderableType, data: Any, paged: bool = False) -> None:
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

    def _print(self, shown: Sequence[RenderableType]) -> None:
        for item in shown:
            self.out.print(item, soft_wrap=isinstance(item, str))
