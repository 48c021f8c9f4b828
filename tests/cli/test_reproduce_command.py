"""arelu-tl reproduce: its files, its table, going on, and what compare makes of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import ENVIRONMENT, run_command
from tiny_digits import write_mnist

GRID = [
    "--activations",
    "relu,tanh,prelu,arelu",
    "--lrs",
    "1e-2,1e-3",
    "--seeds",
    "0,1",
    "-b",
    "32",
    "--name",
    "r",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reproduce")
    write_mnist(folder / "data")
    (folder / "elsewhere" / "empty").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def study(place: Path) -> tuple[Path, str]:
    """The study's folder, and what was printed."""
    done = run_command("reproduce", "--data", "data", *GRID, cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "runs" / "r", done.stdout


def test_the_studys_files_are_these(study: tuple[Path, str]) -> None:
    path, _ = study
    files = {
        "adam",
        "curves.png",
        "reproduction.json",
        "reproduction.yaml",
        "sgd",
        "table.csv",
        "table.md",
    }
    assert {file.name for file in path.iterdir()} == files
    run = {"environment.json", "metrics.jsonl", "results.csv", "run.yaml", "summary.json"}
    for opt in ("sgd", "adam"):
        assert {file.name for file in (path / opt / "arelu-lr0.001-s1").iterdir()} == run
    assert (path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_every_form_of_the_table_says_the_same(study: tuple[Path, str]) -> None:
    path, printed = study
    data = json.loads((path / "reproduction.json").read_text())
    column = next(each for each in data["columns"] if (each["opt"], each["lr"]) == ("adam", 0.01))
    shown = f"{100 * column['entries']['tanh']['first']['mean']:.2f} ± {100 * column['entries']['tanh']['first']['sd']:.2f}"
    assert shown in printed
    markdown = (path / "table.md").read_text()
    assert shown in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4 + 3
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].split(" | ")[2:] == ["SGD 0.01", "SGD 0.001", "Adam 0.01", "Adam 0.001 |"]
    bold = [line for line in lines if "**" in line]
    assert sum(line.count("**") for line in bold) == 2 * 2 * 4
    rows = list(csv.DictReader((path / "table.csv").open()))
    assert len(rows) == 16
    mine = next(
        row
        for row in rows
        if (row["opt"], row["lr"], row["activation"]) == ("adam", "0.01", "tanh")
    )
    assert float(mine["first_epoch_mean"]) == pytest.approx(
        column["entries"]["tanh"]["first"]["mean"], abs=1e-6
    )
    assert mine["group"] == "fixed"
    assert f"{100 * column['lead']['fixed']:+.2f}" in lines[-3]


def test_compare_reads_each_optimisers_runs(study: tuple[Path, str], place: Path) -> None:
    path, _ = study
    done = run_command("compare", path / "sgd", "--json", "--no-report", cwd=place)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {(each["arm"], each["lr"]) for each in told["rates"]} == {
        (a, lr) for a in ("arelu", "prelu", "tanh") for lr in (1e-2, 1e-3)
    }
    assert all(each["seeds"] == [0, 1] and each["aulc"]["pictures"] == 40 for each in told["rates"])
    mixed = run_command("compare", path, cwd=place)
    assert mixed.returncode == 2
    assert f"compare {path / 'adam'} or {path / 'sgd'}" in mixed.stderr


def test_going_on_trains_nothing_twice_and_the_grid_may_grow(
    study: tuple[Path, str], place: Path
) -> None:
    path, _ = study
    before = {file: file.stat().st_mtime_ns for file in path.rglob("summary.json")}
    again = run_command("reproduce", "--resume", path, "--json", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "0 steps to take" in again.stderr
    assert (
        json.loads(again.stdout)["columns"]
        == json.loads((path / "reproduction.json").read_text())["columns"]
    )
    assert {file: file.stat().st_mtime_ns for file in path.rglob("summary.json")} == before
    refused = run_command("reproduce", "--resume", path, "--lrs", "1e-2", cwd=place)
    assert (refused.returncode, "leave out: lrs" in refused.stderr) == (2, True)


def test_jobs_below_one_are_refused_when_it_goes_on_too(
    study: tuple[Path, str], place: Path
) -> None:
    path, _ = study
    done = run_command("reproduce", "--resume", path, "--jobs", "-3", cwd=place)
    assert done.returncode == 2
    assert "jobs" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_with_a_line_how_to_go_on(place: Path) -> None:
    """A real process, in the middle of a training that would take minutes."""
    words = [
        sys.executable,
        "-m",
        "arelu_tl",
        "reproduce",
        "--data",
        "data",
        "--epochs",
        "2000",
        "--name",
        "long",
        "--lrs",
        "1e-3",
    ]
    process = subprocess.Popen(
        words,
        cwd=place,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (place / "runs" / "long" / "adam" / "study.yaml").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1].endswith("go on with: arelu-tl reproduce --resume runs/long")
    assert not list((place / "runs" / "long").rglob("summary.json"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "nowhere"], "no such folder"),
        (["--data", "empty"], "--download"),
        (["--dataset", "svhn"], "--data"),
        (["--activations", "swish"], "swish"),
        (["--resume", "empty"], "no reproduction"),
        (["--pretrain-epochs", "3"], "--transfer"),
        (["--quick", "--config", "x.yaml"], "leave out"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    place: Path, arguments: list[Any], told: str
) -> None:
    done = run_command("reproduce", *arguments, cwd=place / "elsewhere")
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in (place / "elsewhere").iterdir()] == ["empty"]


@pytest.mark.slow
def test_offline_digits_at_the_papers_rates(place: Path) -> None:
    """The claim that the offline table rests on: at SGD 1e-4 an epoch of ReLU learns nothing and one of AReLU much."""
    arguments = ["--activations", "relu,arelu", "--opts", "sgd", "--lrs", "1e-4", "--seeds", "0,1"]
    done = run_command("reproduce", *arguments, "--name", "offline", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    (column,) = json.loads(done.stdout)["columns"]
    assert column["entries"]["relu"]["first"]["mean"] < 0.15
    assert column["entries"]["arelu"]["first"]["mean"] > 0.3


@pytest.mark.slow
def test_transfer_between_the_offline_sets(place: Path) -> None:
    arguments = ["--transfer", "--activations", "relu,arelu", "--seeds", "0", "--epochs", "1"]
    done = run_command("reproduce", *arguments, "--name", "transfer", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [column["study"] for column in told["columns"]] == [
        "digits-to-sklearn-digits",
        "sklearn-digits-to-digits",
    ]
    for column in told["columns"]:
        arelu = column["entries"]["arelu"]
        assert arelu["first"]["mean"] > arelu["before"]["mean"] > 0.15
