"""Cells trained by processes and by Ray: the same rows as one after the other, whatever dies or is interrupted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Started, start_command
from sweeps import TINY, Watching, grid, rows

from arelu_tl.data.folder import scan_folder
from arelu_tl.errors import ConfigError, StorageError
from arelu_tl.experiment.launch import ray_tasks
from arelu_tl.experiment.launch.cell import Cell
from arelu_tl.experiment.launch.processes import share_devices, share_threads
from arelu_tl.experiment.launch.ray_tasks import Share, share_cluster
from arelu_tl.experiment.sweep import sweep
from arelu_tl.records.config import SweepConfig
from arelu_tl.records.runs import StudyRecord, load_study
from arelu_tl.records.storage import hold_folder

LONG = 10  # epochs: time enough to be interrupted in


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder()
    return folder


@pytest.fixture(scope="module")
def alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    """The grid that the other launches are held to, one cell after the other."""
    return sweep(grid(pictures, tmp_path_factory.mktemp("alone"), epochs=LONG))


def same(study: StudyRecord, reference: StudyRecord) -> bool:
    """Whether every run is finished, and as the reference's but for its seconds and where it was trained."""
    expected = {run.path.name: run for run in reference.runs}
    moved = {"output", "name"}
    return all(
        run.status == "finished"
        and rows(run.path) == rows(expected[run.path.name].path)
        and run.config.model_dump(exclude=moved)
        == expected[run.path.name].config.model_dump(exclude=moved)
        for run in study.runs
    )


def children(pid: int) -> set[int]:
    """The processes whose parent is ``pid``, multiprocessing's resource tracker left out."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"resource_tracker" not in (place / "cmdline").read_bytes():
                found.add(int(place.name))
    return found


def alive(pid: int) -> bool:
    """Whether it still runs; whoever inherits a dead one may be slow to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (told := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return told


def steps(study: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in study.glob("*/metrics.jsonl"))


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_cell_only(
    pictures: Path, tmp_path: Path, alone: StudyRecord
) -> None:
    class Killing(Watching):
        """Kills the worker of the first cell that is left, once the other one has ended."""

        killed = ""

        def cell_ended(
            self,
            name: str,
            status: str,
            summary: dict[str, Any],
            done: int,
            cells: int,
            to_go: float,
        ) -> None:
            super().cell_ended(name, status, summary, done, cells, to_go)
            if not self.killed:
                study = tmp_path / "grid"
                (self.killed,) = (p.name for p in study.iterdir() if p.is_dir() and p.name != name)
                # Whose folder is open is who trains in it.
                os.kill(
                    next(pid for pid in children(os.getpid()) if holds(pid, study / self.killed)),
                    signal.SIGKILL,
                )

    def holds(pid: int, run: Path) -> bool:
        links = []
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                links.append(link.readlink())
        return run in links

    seen = Killing()
    study = sweep(grid(pictures, tmp_path, epochs=LONG, jobs=2), observer=seen)
    told = {run.path.name: run for run in study.runs}
    failed = told.pop(seen.killed)
    assert failed.status == "failed"
    assert "ended by SIGKILL" in failed.summary["error"]
    assert any(seen.killed in note and "SIGKILL" in note for note in seen.notes)
    assert sorted(status for status, _, _ in seen.ended) == [
        "failed",
        "finished",
        "finished",
        "finished",
    ]
    assert [done for _, done, _ in seen.ended] == [1, 2, 3, 4]
    for run in alone.runs:
        assert run.path.name == seen.killed or rows(run.path) == rows(told[run.path.name].path)
    again = Watching()
    assert same(
        sweep(grid(pictures, tmp_path, epochs=LONG), retry_failed=True, observer=again), alone
    )
    assert again.trained == [seen.killed]


@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("killed parent", marks=pytest.mark.slow)])
def test_ctrl_c_and_a_killed_parent_save_every_cell_and_the_same_command_goes_on(
    pictures: Path, tmp_path: Path, alone: StudyRecord, how: str
) -> None:
    settings = {
        **TINY,
        "data": str(pictures),
        "output": str(tmp_path),
        "epochs": LONG,
        "lrs": [1e-3],
        "jobs": 2,
    }
    config, study = tmp_path / "sweep.yaml", tmp_path / "grid"
    config.write_text(yaml.safe_dump(settings))

    def start_and_see_it_train() -> tuple[Started, set[int]]:
        """The sweep as a shell starts it, in a process group of its own, and its workers."""
        before = steps(study)
        process = start_command("sweep", "--config", config, cwd=tmp_path, group=True)
        wait_for(lambda: process.ended() or steps(study) >= before + 5)
        workers = children(process.pid)
        assert len(workers) == 2
        return process, workers

    process, workers = start_and_see_it_train()
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
        done = process.end(60)
        assert done.returncode == 130, done.stderr
        assert "sweep --resume" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert not any(alive(pid) for pid in workers)
        assert (
            "interrupted"
            in {run.status for run in load_study(study).runs}
            <= {"interrupted", "finished"}
        )
    else:
        process.send_signal(signal.SIGKILL)
        process.end()
    # Gone on with at once: whoever still saves is waited for.
    resumed = sweep(grid(pictures, tmp_path, epochs=LONG, lrs=[1e-3]))
    assert not any(alive(pid) for pid in workers)
    assert len(resumed.runs) == 2
    assert same(resumed, alone)


def test_a_run_that_somebody_else_trains_ends_the_sweep(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arelu_tl.experiment.launch.cell.PATIENCE_SECONDS", 0.2)
    config = grid(pictures, tmp_path, epochs=1)
    held = tmp_path / "grid" / "relu-lr0.001-s0"
    sweep(grid(pictures, tmp_path, epochs=1, arms=["arelu"]))
    held.mkdir()
    with (
        hold_folder(held),
        pytest.raises(StorageError, match="is being trained by another process"),
    ):
        sweep(config)


def test_threads_are_shared_unless_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [share_threads(jobs) for jobs in (1, 3, 20)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert share_threads(3) == 8


def test_gpus_are_given_out_in_turn_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_devices("cpu", 2) == ["cpu", "cpu"]
    monkeypatch.setattr(
        "arelu_tl.experiment.launch.processes.choose_device",
        lambda name: torch.device(name or "cuda"),
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert share_devices(None, 3) == share_devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert share_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]


# Ray


@pytest.mark.parametrize(
    ("nodes", "jobs", "gpus", "share"),
    [
        ([{"CPU": 2}], None, True, Share(2, 0, 1)),
        ([{"CPU": 16}, {"CPU": 6}, {"node:x": 1}], None, True, Share(4, 0, 5)),
        ([{"CPU": 16}, {"CPU": 8}], 6, True, Share(4, 0, 6)),
        ([{"CPU": 8}, {"CPU": 8}], 1, True, Share(8, 0, 1)),
        ([{"CPU": 2}], 5, True, Share(1, 0, 5)),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 4}], None, True, Share(2, 1, 4)),
        ([{"CPU": 64, "GPU": 2}], None, True, Share(4, 1, 2)),
        ([{"CPU": 8, "GPU": 8}], None, False, Share(4, 0, 2)),
        ([], None, True, Share(1, 0, 1)),
    ],
)
def test_a_cluster_is_divided_among_cells(
    nodes: list[dict[str, float]], jobs: int | None, gpus: bool, share: Share
) -> None:
    assert share_cluster(nodes, jobs=jobs, use_gpus=gpus) == share


def test_ray_that_is_missing_or_not_there_is_told_in_a_line(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="needs launcher ray"):
        SweepConfig(ray_address="auto")

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(ray_tasks.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'arelu-tl\[ray\]'"):
        sweep(grid(pictures, tmp_path, launcher="ray"))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"no Ray cluster at 127\.0\.0\.1:1: "):
        sweep(grid(pictures, tmp_path, launcher="ray", ray_address="127.0.0.1:1"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ray_trains_the_same_runs_and_a_failing_one_alone_fails(
    pictures: Path, tmp_path: Path
) -> None:
    seen = Watching()
    settings = {"arms": ["relu"], "lrs": [1e30, 1e-3], "opt": "sgd"}
    study = sweep(
        grid(pictures, tmp_path / "ray", **settings, launcher="ray", jobs=2), observer=seen
    )
    told = {run.config.lr: run for run in study.runs}
    assert (told[1e30].status, told[1e-3].status) == ("failed", "finished")
    assert told[1e30].summary["exit_code"] == 4
    assert sorted(seen.ended)[0][0] == "failed"
    assert len(seen.ended) == 2
    here = sweep(grid(pictures, tmp_path / "here", **settings))
    assert rows(told[1e-3].path) == rows(here.path / told[1e-3].path.name)


def test_a_node_that_lacks_the_pictures_or_the_study_says_so(
    pictures: Path, tmp_path: Path
) -> None:
    (config,) = grid(pictures, tmp_path, arms=["relu"], lrs=[1e-3]).cells()
    folder = scan_folder(pictures)
    cell = Cell(1, config, tmp_path / "nowhere" / "run", "missing")
    told = ray_tasks._train(folder, cell, "cpu", 1)
    assert (told.status, told.exit_code) == ("failed", 2)
    assert "the study's folder" in told.error
    assert "a path that all nodes share" in told.error
    elsewhere = replace(folder, root=Path("/nowhere/pictures"))
    assert "the pictures /nowhere/pictures" in ray_tasks._train(elsewhere, cell, "cpu", 1).error
    assert isinstance(ray_tasks._rehearse(elsewhere, config, "cpu", 1), ValueError)
    assert not (tmp_path / "nowhere").exists()
