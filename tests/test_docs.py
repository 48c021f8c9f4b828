"""What the documentation shows is true: commands parse, Python runs, links lead somewhere, the README stays short."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import arelu_tl
from arelu_tl.cli.app import _application

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# Made by ``reproduce`` and ``make bench``.
WRITTEN = [page for page in PAGES if "reproduction" not in page.parts]
every_page = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of ours in a page: lines of code, and what stands in backticks in tables."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        if line.startswith("|"):
            found = re.findall(r"`(arelu-tl [^`]*)`", line)
        else:
            found = [line.strip()] if re.match(r"\s*arelu-tl \S", line) else []
        for command in found:
            if command.endswith("(an error)"):  # what cost.md times is that it is refused
                continue
            words = shlex.split(command.replace("...", "x"), comments=True)
            yield words[1:]


def parse(words: list[str]) -> None:
    """Parse a command without running it.

    Raises:
        Exception: the command line refuses it.
    """
    command = typer.main.get_command(_application([w for w in words if not w.startswith("-")]))
    while hasattr(command, "commands"):
        name, *words = words
        if name.startswith("-"):
            return
        command = command.commands[name]
    command.make_context(command.name, list(words))


@every_page
def test_every_command_parses(page: Path) -> None:
    for words in commands(page.read_text()):
        if "--help" not in words:
            try:
                parse(words)
            except Exception as error:
                raise AssertionError(f"arelu-tl {shlex.join(words)}: {error}") from error


def test_a_wrong_command_is_noticed() -> None:
    for wrong in ("finetune X --learning-rate 3", "inspekt resnet18", "sweep X --lrs"):
        with pytest.raises(Exception, match=r".+"):
            parse(shlex.split(wrong))


PYTHON = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in WRITTEN
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_runs_or_where_it_needs_files_or_the_hub_names_what_exists(block: str) -> None:
    code = compile(block, "docs", "exec")
    for name in re.findall(r"arelu_tl\.(\w+)", block):
        assert hasattr(arelu_tl, name), name
    if not re.search(r"pretrained=True|runs/|argv", block):
        exec(code, {})


def test_some_python_is_run() -> None:
    assert any(not re.search(r"pretrained=True|runs/|argv", p.values[0]) for p in PYTHON)


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 6 * 1024
