"""Pages of --help for any terminal width: names are never cut, and no text is read as markup."""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from typing import Any

from typer.core import TyperCommand, TyperGroup

_LONGEST_NAME = 30
_INDENT, _GAP = 2, 2


class Command(TyperCommand):
    """A command whose page of help lists its options by panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands, each listed with its whole summary."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self, ctx, formatter)
        rows = [
            (name, command.help or "")
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name))
        ]
        _write_section(formatter, "Commands", rows)


def _write_parameters(command: Command | Group, ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None) or (
                "Arguments" if argument else "Options"
            )
            panels[panel].append(_without_long_choice(*record))
    for name in sorted(
        panels,
        key=lambda name: (
            ("Arguments", "Options").index(name) if name in ("Arguments", "Options") else 2
        ),
    ):
        _write_section(formatter, name, panels[name])


def _without_long_choice(names: str, text: str) -> tuple[str, str]:
    """An option's names and help; a long list of choices moves into the help, which wraps."""
    found = re.fullmatch(r"(.*) <([^<>]*\|[^<>]*)>", names)
    if found is None or len(names) <= 2 * _LONGEST_NAME:
        return names, text
    return f"{found[1]} <one of these>", f"{text} These are: {', '.join(found[2].split('|'))}."


def _write_section(formatter: Any, name: str, rows: list[tuple[str, str]]) -> None:
    column = min(max(len(first) for first, _ in rows), _LONGEST_NAME) + _INDENT + _GAP
    formatter.write(f"\n{name}:\n")
    for first, text in rows:
        start = " " * _INDENT + first
        beside = len(start) + _GAP <= column
        lines = textwrap.wrap(
            text, formatter.width,
            initial_indent=(start if beside else "").ljust(column), subsequent_indent=" " * column,
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        formatter.write("\n".join([*[start] * (not beside), *(lines or [start] * beside)]) + "\n")
