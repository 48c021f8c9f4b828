"""Expand ``~`` in paths that no shell has expanded: in YAML, in quotes, after ``--option=``."""

from __future__ import annotations

import os

_LOCAL = "local-dir:"


def at_home(text: str) -> str:
    """Expand a leading ``~`` or ``~user`` of a path, or of a model's ``local-dir:PATH``."""
    scheme = _LOCAL if text.startswith(_LOCAL) else ""
    # Path.expanduser raises if there is no such user; a shell leaves the word unchanged.
    return scheme + os.path.expanduser(text.removeprefix(scheme))  # noqa: PTH111


def argument_at_home(argument: str) -> str:
    """Expand a word of the command line, which may be ``--option=PATH``; see ``at_home``."""
    option, equals, value = argument.partition("=")
    return f"{option}={at_home(value)}" if equals and option.startswith("-") else at_home(argument)
