"""The home folder in paths that no shell has seen: in YAML files, in quotes, and behind ``--option=``."""

from __future__ import annotations

import os

_LOCAL = "local-dir:"


def at_home(text: str) -> str:
    """A path, or a model's ``local-dir:PATH``, with the ``~`` or ``~user`` that it begins with as a shell would have it."""
    scheme = _LOCAL if text.startswith(_LOCAL) else ""
    # Path's own raises where there is no such user; a shell leaves the word as it is.
    return scheme + os.path.expanduser(text.removeprefix(scheme))  # noqa: PTH111


def argument_at_home(argument: str) -> str:
    """The same for a word of the command line, which may be ``--option=PATH``."""
    option, equals, value = argument.partition("=")
    return f"{option}={at_home(value)}" if equals and option.startswith("-") else at_home(argument)
