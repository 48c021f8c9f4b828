"""The library's messages name parameters; only the command line turns them into options."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run_command
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.main import get_command

from arelu_tl.cli.app import COMMANDS, VERBS, _application
from arelu_tl.render.text import as_options

PACKAGE = Path(__file__).parents[2] / "arelu_tl"
NAMED = re.compile(r"`([a-z][a-z0-9_]*)(?:=[^`]*)?`")
# Written for the terminal and nothing else; a command to copy; another program's option.
TERMINAL = ("cli", "render")
ELSEWHERE = {
    "explain/sites/show.py",
    "models/tables.py",
    "records/config.py",
    "records/config_values.py",
    "paper/config.py",
    "paper/files.py",
    "activation/native.py",
}


def texts(path: Path) -> Iterator[str]:
    """Every string of a module but its docstrings; an f-string's parts one by one."""
    tree = ast.parse(path.read_text())
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documented
        ):
            yield node.value


def library() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in TERMINAL
        and path.relative_to(PACKAGE).as_posix() not in ELSEWHERE
    ]


def options() -> set[str]:
    """All options of all commands."""
    found = set()
    for words in [[name] for name in COMMANDS] + [[k, v] for k, vs in VERBS.items() for v in vs]:
        command = get_command(_application(words))
        for word in words:
            command = command.commands[word]  # type: ignore[attr-defined]
        for each in command.params:
            found |= {*each.opts, *each.secondary_opts}
    return found


def test_no_message_of_the_library_names_an_option() -> None:
    for path in library():
        for text in texts(path):
            found = re.findall(r"(?<!\w)--[a-z][a-z-]+", text)
            copied = re.search(
                r"arelu-tl |pip install|torchrun|finetune --resume|^ --(resume|data) ", text
            )
            assert copied or not found, f"{path}: {text!r}"


def test_every_parameter_that_a_message_names_is_an_option() -> None:
    known, named = options(), set()
    for path in library():
        if path.name == "hub_card.py":  # Markdown, not a message
            continue
        for text in texts(path):
            for match in NAMED.finditer(text):
                option = as_options(match[0]).split()[0]
                named.add(option)
                assert option in known, f"{path}: {match[0]}"
    assert {"--lr", "--no-pretrained", "--cache", "--exclude"} <= named


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("lower `lr`", "lower --lr"),
        ("`grad_accum_steps=4`, or `cache='off'`", "--grad-accum-steps 4, or --cache off"),
        ("`pretrained=False` or `amp=True`", "--no-pretrained or --amp"),
        ("log in with `hf auth login`", "log in with `hf auth login`"),
        ("`images=FOLDER`", "--images FOLDER"),
    ],
)
def test_parameters_become_options(message: str, shown: str) -> None:
    assert as_options(message) == shown


@given(st.text(alphabet=st.characters(exclude_characters="`")))
def test_a_message_without_parameters_stays_as_it_is(message: str) -> None:
    assert as_options(message) == message


def test_an_error_is_shown_with_options(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (60 * number, 0, 9)).save(
                tmp_path / "data" / name / f"{name}{number}.png"
            )
    asked = ("finetune", "data", "--model", "test_resnet", "--pretrained-path", "none.pth")
    done = run_command(*asked, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        f"arelu-tl: --pretrained-path {tmp_path / 'none.pth'}: no such file"
    )
