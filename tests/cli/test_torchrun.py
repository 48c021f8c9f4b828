"""torchrun -m arelu_tl: real processes of the command line that train one study together."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from commands import ENVIRONMENT, GIVEN_WORDS, run_command
from together import worlds

from arelu_tl.records.storage import read_rows

PLAIN = [
    "--model",
    "test_resnet",
    "--no-pretrained",
    *GIVEN_WORDS,
    "--img-size",
    "32",
    "-j",
    "0",
    "--calibration-images",
    "8",
]


@pytest.fixture(scope="module")
def data(make_folder: Any) -> Path:
    path: Path = make_folder(val=5)
    return path


class Together:
    """``torchrun --nproc-per-node 2 -m arelu_tl ARGUMENTS`` under way; its output is read at its end."""

    def __init__(self, *arguments: str | Path, cwd: Path) -> None:
        self.told = cwd / "told"
        run = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "arelu_tl",
        ]
        with open(cwd / "out", "wb") as out, open(self.told, "wb") as err:
            self.process = subprocess.Popen(
                [*run, *map(str, arguments)],
                cwd=cwd,
                env={**os.environ, **ENVIRONMENT},
                stdout=out,
                stderr=err,
            )

    def end(self, seconds: float = 120) -> tuple[int, str, list[str]]:
        """(exit code, standard output, our own lines of standard error) once it has ended."""
        code = self.process.wait(seconds)
        lines = [
            line for line in self.told.read_text().splitlines() if line.startswith("arelu-tl: ")
        ]
        return code, (self.told.parent / "out").read_text(), lines

    def process_of(self, rank: int) -> int:
        """Its process number."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == self.process.pid and f"RANK={rank}".encode() in (
                    path / "environ"
                ).read_bytes().split(b"\0"):
                    return int(path.name)
            except OSError:  # it has ended meanwhile
                continue
        raise AssertionError(f"no process of rank {rank}")


@pytest.fixture
def together(tmp_path: Path) -> Iterator[Any]:
    started: list[Together] = []

    def start(*arguments: str | Path) -> Together:
        started.append(Together(*arguments, cwd=tmp_path))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def wait_for(path: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


def files(study: Path) -> set[str]:
    return {path.relative_to(study).as_posix() for path in study.rglob("*") if path.is_file()}


def pair(*arguments: str | Path, cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """The command in two processes, connected as torchrun does it, but without its seconds, and its end of one by another's."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda env: run_command(*arguments, cwd=cwd, **env), worlds(2)))


@pytest.mark.parametrize("launcher", ["by hand", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_are_the_same_experiment_as_one(
    launcher: str, data: Path, tmp_path: Path, together: Any
) -> None:
    options = [
        *PLAIN,
        "-b",
        "6",
        "--epochs",
        "2",
        "--lr",
        "1e-3",
        "--freeze",
        "backbone",
        "--clip-grad",
        "1",
        "--json",
    ]
    words = ["finetune", data, *options, "--output", "two", "--name", "study"]
    if launcher == "torchrun":
        code, out, lines = together(*words).end()
        told = (tmp_path / "told").read_text().splitlines()
        assert lines == [], told
    else:
        first, second = pair(*words, cwd=tmp_path)
        code, out, told = first.returncode, first.stdout, first.stderr.splitlines()
        assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    one = run_command(
        "finetune", data, *options, "--output", "one", "--name", "study", cwd=tmp_path
    )
    assert code == 0, told
    assert one.returncode == 0, one.stderr
    assert json.loads(out).keys() == json.loads(one.stdout).keys()
    assert sum("study folder" in line for line in told) == 1
    assert sum("arelu  epoch 2/2" in line for line in told) == 1

    ours, alone = tmp_path / "two" / "study", tmp_path / "one" / "study"
    assert files(ours) == files(alone)
    assert [p.name for p in (tmp_path / "two").iterdir()] == ["study"]
    for name in ("relu-lr0.001-s0", "arelu-lr0.001-s0"):
        for row, expected in zip(
            *(read_rows(s / name / "metrics.jsonl") for s in (ours, alone)), strict=True
        ):
            assert {k: row[k] for k in ("step", "epoch", "split", "lr")} == {
                k: expected[k] for k in ("step", "epoch", "split", "lr")
            }
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)
            assert row["top1"] == pytest.approx(expected["top1"], abs=0.07)  # one picture in a tie
        summaries = [json.loads((s / name / "summary.json").read_text()) for s in (ours, alone)]
        assert summaries[0]["pairing"] == summaries[1]["pairing"]
        with (
            open(ours / name / "predictions.csv", newline="") as mine,
            open(alone / name / "predictions.csv", newline="") as its,
        ):
            assert [row["path"] for row in csv.DictReader(mine)] == [
                row["path"] for row in csv.DictReader(its)
            ]
        environment = json.loads((ours / name / "environment.json").read_text())
        assert environment["processes"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="finds its processes in /proc")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, id="first"), pytest.param(1, id="second")])
def test_one_process_killed_ends_the_other_with_a_line_and_one_process_goes_on(
    data: Path, tmp_path: Path, together: Any, rank: int
) -> None:
    run = together(
        "finetune",
        data,
        *PLAIN,
        "-b",
        "6",
        "--epochs",
        "15",
        "--no-baseline",
        "--output",
        "runs",
        "--name",
        "study",
    )
    wait_for(tmp_path / "runs/study/arelu-lr0.0001-s0/checkpoints/step-4/manifest.json")
    os.kill(run.process_of(rank), signal.SIGKILL)
    began = time.monotonic()
    code, _, lines = run.end(60)
    assert time.monotonic() - began < 30
    assert code == 1
    assert len(lines) == 1, run.told.read_text()
    assert "another process of this training has ended" in lines[0]
    assert (
        "go on with: torchrun --nproc-per-node 2 -m arelu_tl finetune --resume runs/study"
        in lines[0]
    )
    after = run_command("finetune", "--resume", "runs/study", cwd=tmp_path)
    assert after.returncode == 0, after.stderr
    assert after.stderr.count("resumable, not bitwise") == 1
    summary = json.loads((tmp_path / "runs/study/arelu-lr0.0001-s0/summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_and_two_processes_go_on_to_the_bit(
    data: Path, tmp_path: Path, together: Any, number: int
) -> None:
    options = [
        *PLAIN,
        "-b",
        "6",
        "--epochs",
        "10",
        "--no-baseline",
        "--output",
        "runs",
        "--drop",
        "0.2",
    ]
    run = together("finetune", data, *options, "--name", "cut")
    checkpoints = tmp_path / "runs/cut/arelu-lr0.0001-s0/checkpoints"
    wait_for(checkpoints / "step-4/manifest.json")
    run.process.send_signal(number)
    code, _, lines = run.end(60)
    assert code != 0
    assert len(lines) == 1, run.told.read_text()
    assert "stopped after step" in lines[0]
    assert json.loads((checkpoints.parent / "summary.json").read_text())["status"] == "interrupted"
    assert together("finetune", "--resume", "runs/cut").end()[0] == 0
    assert together("finetune", data, *options, "--name", "whole").end()[0] == 0
    whole = tmp_path / "runs/whole/arelu-lr0.0001-s0"
    for name in ("checkpoints/step-40/model.safetensors", "predictions.csv", "best.safetensors"):
        assert (whole / name).read_bytes() == (checkpoints.parent / name).read_bytes(), name


def test_a_bad_option_is_one_line_and_one_exit_code(data: Path, tmp_path: Path) -> None:
    first, second = pair("finetune", data, *PLAIN, "--lr", "-1", cwd=tmp_path)
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.count("\n") == 1
    assert "lr = " in first.stderr
    assert (second.stderr, second.stdout) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ["finetune", "DATA", *PLAIN, "-b", "7"],
            "--batch-size 7 is all processes' pictures in a step",
        ),
        (["finetune", "DATA", *PLAIN, "-b", "32"], "pass 24, or start another number of processes"),
        (["finetune", "DATA", *PLAIN, "-b", "6", "--opt", "nonesuch"], "nonesuch"),
        (
            ["finetune", "DATA", *PLAIN, "-b", "6", "--device", "cpu", "--sync-bn"],
            "--sync-bn needs GPUs",
        ),
        (["finetune", "DATA", *PLAIN, "-b", "6", "--device", "cuda:1"], "one GPU each"),
        (["sweep", "DATA", *PLAIN, "-b", "6"], "run it without torchrun"),
    ],
)
def test_what_is_wrong_before_training_is_one_line(
    data: Path, tmp_path: Path, together: Any, command: list[str], told: str
) -> None:
    run = together(*(data if word == "DATA" else word for word in command))
    code, out, lines = run.end()
    assert code == 1  # torchrun's own
    assert len(lines) == 1, run.told.read_text()
    assert told in lines[0]
    assert out == ""
    assert "exitcode  : 2" in run.told.read_text()
    assert not list(tmp_path.glob("runs/*"))
