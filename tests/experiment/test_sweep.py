"""A sweep: every cell trained once, whatever comes between, and nothing but its cells."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sweeps import Watching, grid, rows

from arelu_tl.analysis.comparison import compare_runs
from arelu_tl.data.folder import scan_folder
from arelu_tl.errors import ConfigError, DataError, Interrupted, StorageError
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.run import train_run
from arelu_tl.experiment.sweep import plan_cells, resumed_config, sweep
from arelu_tl.records.config import SweepConfig
from arelu_tl.records.storage import hold_folder


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder()
    return folder


def test_every_cell_is_trained_once_and_a_grown_grid_trains_what_is_new(
    pictures: Path, tmp_path: Path
) -> None:
    first, second, third = Watching(), Watching(), Watching()
    study = sweep(grid(pictures, tmp_path), observer=first)
    names = ["relu-lr0.001-s0", "arelu-lr0.001-s0", "relu-lr0.01-s0", "arelu-lr0.01-s0"]
    assert first.trained == names
    assert {run.path.name: run.status for run in study.runs} == dict.fromkeys(names, "finished")
    assert [found.lr for found in compare_runs(study.runs).rates] == [1e-3, 1e-2]
    assert first.planned is not None
    assert first.planned[:2] == (4, 4)
    assert first.planned[2] > 0
    before = {name: (tmp_path / "grid" / name / "summary.json").read_bytes() for name in names}
    sweep(grid(pictures, tmp_path), observer=second)
    assert second.trained == []
    sweep(grid(pictures, tmp_path, arms=["leaky"], lrs=[1e-3]), observer=third)
    # The grid stays a grid: a new arm is trained at every rate that the others were.
    assert third.trained == ["leaky-lr0.001-s0", "leaky-lr0.01-s0"]
    assert {
        name: (tmp_path / "grid" / name / "summary.json").read_bytes() for name in names
    } == before
    with pytest.raises(ConfigError, match="epochs 2 there and 3 here"):
        sweep(grid(pictures, tmp_path, epochs=3))


def test_an_interrupted_sweep_goes_on_and_ends_as_if_it_had_not_been(
    pictures: Path, tmp_path: Path
) -> None:
    class Interrupting(Watching):
        def epoch_end(self, arm: str, row: dict[str, Any]) -> None:
            if len(self.trained) == 2 and row["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGINT)

    whole = sweep(grid(pictures, tmp_path / "whole"))
    with pytest.raises(Interrupted, match="sweep --resume") as caught:
        sweep(grid(pictures, tmp_path / "halved"), observer=Interrupting())
    assert caught.value.exit_code == 130
    path = tmp_path / "halved" / "grid"
    cells = plan_cells(path, grid(pictures, tmp_path / "halved"))
    assert [cell.status for cell in cells] == ["finished", "interrupted", "missing", "missing"]
    again = Watching()
    resumed = sweep(resumed_config(path, {}), observer=again)
    assert again.trained == [cell.path.name for cell in cells[1:]]
    assert [run.status for run in resumed.runs] == ["finished"] * 4
    for one, other in zip(whole.runs, resumed.runs, strict=True):
        assert rows(one.path) == rows(other.path)


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(pictures: Path, tmp_path: Path) -> None:
    config = grid(pictures, tmp_path, lrs=[1e30, 1e-3], opt="sgd", arms=["relu"])
    study = sweep(config)
    told = {run.config.lr: run for run in study.runs}
    assert (told[1e30].status, told[1e-3].status) == ("failed", "finished")
    assert told[1e30].summary["exit_code"] == 4
    stale = told[1e30].path / "checkpoints" / "step-1"
    stale.mkdir(parents=True)
    quiet, again = Watching(), Watching()
    sweep(config, observer=quiet)
    assert quiet.trained == []
    sweep(config, retry_failed=True, observer=again)
    assert again.trained == [told[1e30].path.name]
    assert not stale.exists()  # it diverged: to go on from where it was would only repeat it


def test_other_pictures_are_refused(pictures: Path, tmp_path: Path, make_folder: Any) -> None:
    config = grid(pictures, tmp_path, arms=["relu"], lrs=[1e-3], epochs=1)
    study = sweep(config)
    moved = config.model_copy(update={"data": make_folder(train=9)})
    with pytest.raises(DataError, match="pictures are not those"):
        sweep(moved)
    record = study.path / "dataset.json"
    record.write_text(record.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(DataError, match="begin a new study"):
        sweep(config)


def test_a_grid_may_be_written_with_commas_and_names_no_value_twice() -> None:
    config = SweepConfig(arms="relu, arelu,leaky", lrs="1e-5,1e-4", seeds="0,1,2")  # type: ignore[arg-type]
    assert (config.arms, config.lrs, config.seeds) == (
        ["relu", "arelu", "leaky"],
        [1e-5, 1e-4],
        [0, 1, 2],
    )
    assert len(config.cells()) == 18
    assert {(cell.arm, cell.baseline) for cell in config.cells()} == {
        ("relu", False),
        ("arelu", False),
        ("leaky", False),
    }
    with pytest.raises(ValueError, match="twice"):
        SweepConfig(seeds=[1, 1])
    assert SweepConfig(lrs=[1e-2], min_lr=1e-3).min_lr == 1e-3
    with pytest.raises(ValueError, match="min_lr"):
        SweepConfig(lrs=[1e-2, 1e-4], min_lr=1e-3)


def test_where_and_how_long_is_no_part_of_a_study(pictures: Path, tmp_path: Path) -> None:
    here = grid(pictures, tmp_path, arms=["relu"])
    there = grid(
        pictures,
        tmp_path,
        arms=["relu"],
        jobs=3,
        launcher="ray",
        ray_address="auto",
        time_budget="1h30m",
    )
    assert there.cells() == here.cells()
    study = sweep(grid(pictures, tmp_path, arms=["relu"], lrs=[1e-3], epochs=1, time_budget="1h"))
    again = sweep(grid(pictures, tmp_path, arms=["relu"], lrs=[1e-3], epochs=1, jobs=2))
    assert isinstance(again.config, SweepConfig)
    assert (again.config.jobs, again.config.time_budget) == (2, None)
    resumed = resumed_config(study.path, {"time_budget": "2h"})
    assert (resumed.jobs, resumed.time_budget, resumed.name) == (2, "2h", "grid")
    assert (
        resumed_config(study.path, {"launcher": "ray", "ray_address": "auto"}).ray_address == "auto"
    )
    with pytest.raises(ConfigError, match="needs launcher ray"):
        resumed_config(study.path, {"ray_address": "auto"})


def test_a_time_budget_ends_with_whole_blocks_and_the_same_command_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_long = grid(pictures, tmp_path, epochs=10**6, time_budget="1h")
    with pytest.raises(ConfigError, match="`time_budget` 1h: a run of every arm takes about"):
        sweep(too_long)
    assert list(tmp_path.iterdir()) == []
    seen = Watching()
    # A clock on which nothing is over but by being asked for the time: six times in the budget, on a machine of any speed.
    monkeypatch.setattr(
        "arelu_tl.experiment.sweep.time",
        SimpleNamespace(monotonic=itertools.count(step=600).__next__),
    )
    config = grid(pictures, tmp_path, epochs=1, seeds=list(range(50)), time_budget="1h")
    study = sweep(config, observer=seen)
    trained = {(run.config.lr, run.config.seed, run.config.arm) for run in study.runs}
    assert 2 <= len(trained) < 200
    assert trained == {(lr, seed, arm) for lr, seed, _ in trained for arm in ("relu", "arelu")}
    assert f"no room for {200 - len(trained)} more runs" in seen.notes[-1]
    grown = sweep(config)
    assert trained < {(run.config.lr, run.config.seed, run.config.arm) for run in grown.runs}


def test_one_trainer_a_run_folder(pictures: Path, tmp_path: Path) -> None:
    (config,) = grid(pictures, tmp_path, arms=["relu"], lrs=[1e-3], epochs=1).cells()
    folder, path = scan_folder(pictures), tmp_path / "run"
    given = (path, config, folder, torch.device("cpu"), Observer())
    path.mkdir()
    with (
        hold_folder(path),
        pytest.raises(StorageError, match=r"run is being trained by another process") as caught,
    ):
        train_run(*given, patience=0.2)
    assert caught.value.exit_code == 5
    first = train_run(*given, patience=0.0)
    # Whoever waited for the other one finds nothing left to do.
    written = (path / "summary.json").stat().st_mtime_ns
    assert train_run(*given) == first
    assert (path / "summary.json").stat().st_mtime_ns == written
