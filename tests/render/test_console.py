"""What a user's names are called is what is shown: no markup, no emoji codes, nothing that a terminal acts on."""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

import arelu_tl
from arelu_tl.cli.progress import StudyView
from arelu_tl.paper.view import ReproductionView
from arelu_tl.render.bar import PictureBar, stderr_bars
from arelu_tl.render.console import Output, line
from arelu_tl.render.grid import Column, Grid
from arelu_tl.render.text import shell_word, visible

STRANGE = [
    "[red]", "[/]", "x [v1]", ":smile:", "[link=x]y[/link]", "\x1b[31mx", "a\rb\nc\td", "\u202edlrow",
    "a\\", "\\[red]x", "日本" * 40, "y" * 200, os.fsdecode(b"caf\xe9"), "'; touch x; '", "-rf", "$(touch x)", "a  b", "\u2066!",
]  # fmt: skip


@pytest.fixture
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")


def test_rich_is_spoken_to_in_three_places_only() -> None:
    """Elsewhere text is a string, or made by ``line``: so none reaches a console that reads markup."""
    root = Path(arelu_tl.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "rich" for name in names):
                found.add(path.relative_to(root).as_posix())
    bars = {"render/bar.py", "cli/progress.py"}  # progress names a task's type
    assert found == {"render/console.py", "render/grid.py", *bars}


@pytest.mark.parametrize("name", STRANGE, ids=ascii)
@pytest.mark.usefixtures("wide_terminal")
def test_what_is_printed_is_what_it_is_called(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output()
    grid = Grid([Column("x", "name"), Column("y"), Column("z", "text")], title=name, caption=name)
    grid.add(name, (name, "bold"), name, style="red")
    output.report(name, line(name, (name, "bold")), grid, data=None)
    output.note(name, (name, "bold"))
    output.warn(name)
    told = capsys.readouterr()
    shown = visible(name)
    assert (told.out.count(shown), told.err.count(shown)) == (8, 3)
    assert told.out.splitlines()[0] == shown
    assert all(c.isprintable() or c == "\n" for c in told.out + told.err)


class Told:
    """Every event of a study and of a reproduction, with strange names wherever the user's can be."""

    def __init__(self, name: str) -> None:
        self.name = name

    def to(self, view: StudyView) -> None:
        name = self.name
        folder: Any = SimpleNamespace(
            splits={"train": [1]}, root=Path("/nowhere", name), classes=[name], warnings=lambda: [name],
            rejected=[SimpleNamespace(path=name, reason=name)], endings=lambda: name,
        )  # fmt: skip
        view.study_started(Path(name), folder, ["relu"])
        view.sweep_planned(4, 3, 5.0)
        view.cell_started(1, 2, name)
        view.cell_ended(
            name, "finished", {"final_top1": 0.5, "best_top1": 0.6, "seconds": 3.0}, 1, 4, 7.0
        )
        view.cell_ended(name, "failed", None, 1, 4, 7.0)
        view.run_started("relu", 10, 1, name, None)
        view.progress("relu", 1, 0.5, 0.5, 100.0)
        view.evaluated("relu", {"step": 0, "loss": 0.5, "top1": 0.25})
        view.epoch_end(
            "relu",
            {"epoch": 1, "train_loss": 0.5, "train_top1": 0.5, "val_loss": 0.5, "val_top1": 0.75},
        )
        view.run_finished("relu", {"stopped_early": True})
        view.note(name)


@pytest.mark.parametrize("name", STRANGE, ids=ascii)
@pytest.mark.usefixtures("wide_terminal")
def test_a_study_that_runs_shows_names_as_they_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with StudyView(Output()) as view:
        Told(name).to(view)
    with ReproductionView(Output()) as shown:
        target: Any = SimpleNamespace(name=name, description=name)
        shown.planned(Path(name), [SimpleNamespace(target=target)], 3, 1, 12345)  # type: ignore[list-item]
    told = capsys.readouterr().err
    assert told.count(visible(name)) == 14
    assert "accuracy 0.500 (best 0.600), 3 s; 1 of 4" in told
    assert all(c.isprintable() or c == "\n" for c in told)


@pytest.mark.parametrize("name", [*STRANGE, "new\nline"], ids=ascii)
def test_a_printed_word_is_read_back_by_the_shell_as_it_was(name: str, tmp_path: Path) -> None:
    for word in (name, Path("runs", name), Path(name)):
        told = shell_word(word)
        assert told == visible(told)
        done = subprocess.run(
            ["bash", "-c", f"printf %s {told}"], capture_output=True, cwd=tmp_path, check=True
        )
        assert Path(os.fsdecode(done.stdout)) == Path(word)
        assert not list(tmp_path.iterdir())
    assert shell_word(Path("-rf")) == "./-rf"  # a path is no option
    assert shlex.split(shell_word("runs [v1]")) == ["runs [v1]"]


SENTENCE = "a sentence of words that goes on and on until no line of a terminal has room for it, with 0.123456789 at its end"
COMMAND = "  arelu-tl predict 'runs [v1]/a study with a long name/arelu-lr0.0001-s0' PICTURE   # and what it is for"


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_sentences_break_between_words_and_commands_never(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    output = Output()
    output.report(line(SENTENCE), COMMAND, data=None)
    output.note(SENTENCE)
    output.note(COMMAND, whole=True)
    for told in capsys.readouterr():
        assert COMMAND in told.splitlines()
        rest = [part for part in told.splitlines() if part != COMMAND]
        assert max(map(len, rest)) <= width
        assert " ".join(" ".join(rest).split()) == SENTENCE


def test_a_pipe_gets_everything_in_one_line_and_columns_set_its_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = Grid([Column("x", "name"), Column("y", gives_way=1), Column("z")])
    grid.add("n" * 300, "1" * 60, "2" * 60)

    def shown(**asked: bool) -> str:
        Output(**asked).report(grid, line(SENTENCE), data=None)
        return capsys.readouterr().out

    monkeypatch.delenv("COLUMNS", raising=False)
    piped = shown()
    assert piped.splitlines()[-1] == SENTENCE
    assert "n" * 300 in piped
    monkeypatch.setenv("COLUMNS", "100")
    assert "1 column left out: y; --wide shows them" in shown()
    wide = shown(wide=True)
    assert ("n" * 300 in wide, "left out" in wide) == (True, False)
    assert (
        max(map(len, wide.splitlines()[-2:])) <= 100
    )  # sentences are as wide as the terminal all the same


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_bar_cuts_no_number(width: int) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False)
    output = Output()
    output.err = terminal
    told = ["loss 12.345", "acc 0.67", "1234.5 img/s"]
    bars = stderr_bars(output)
    bars.add_task("arelu-frozen", total=12345, completed=6789, fields=told)
    terminal.print(bars.get_renderable())
    (shown,) = [
        part
        for part in re.sub(r"\x1b\[[\d;]*m", "", terminal.file.getvalue()).splitlines()
        if part.strip()
    ]  # type: ignore[attr-defined]
    assert cell_len(shown) <= width
    assert "6789/12345" in shown
    numbers = set(re.findall(r"\d[\d.]*", shown))
    assert numbers <= {"6789", "12345", "12.345", "0.67", "1234.5", "0", "00"}
    assert width < 60 or "loss 12.345" in shown
    assert width < 80 or "acc 0.67" in shown
    assert width < 100 or "1234.5 img/s" in shown
    assert "…" not in shown


def test_a_bar_reads_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    output = Output()
    output.err = Console(file=file, force_terminal=True, width=120, legacy_windows=False)
    with PictureBar(output, "checking [red]x[/] :smile:") as bar:
        bar(1, 3)
    assert "checking [red]x[/] :smile:" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", file.getvalue())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_an_epochs_line_fits(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with StudyView(Output()) as view:
        Told("x").to(view)
    (told,) = [part for part in capsys.readouterr().err.splitlines() if "epoch 1/1" in part]
    assert len(told) <= width
    assert "acc 0.750" in told
    assert ("train  0.500" in told) == (width >= 80)
