"""A reproduction as a study: what is trained once, that an interrupted one ends as if it had not been, and transfer."""

from __future__ import annotations

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_digits import write_mnist

from arelu_tl.errors import ArtefactError, ConfigError, DataError, Interrupted
from arelu_tl.paper.config import ReproduceConfig
from arelu_tl.paper.digits import DigitSet, load_digit_set
from arelu_tl.paper.files import environment_notes
from arelu_tl.paper.reproduce import Watcher, reproduce, resumed
from arelu_tl.paper.units import Task, Unit, plan_units, train_unit
from arelu_tl.records.config import check_config, dump_yaml
from arelu_tl.records.runs import RunRecord, load_study

GRID = {
    "activations": "relu,rrelu,prelu,arelu",
    "opts": "sgd,adam",
    "lrs": "1e-2,1e-3",
    "seeds": "0,1",
    "batch_size": 32,
}


class Seen(Watcher):
    """Notes what it is told; ends the study by a signal after ``stop_after`` stacks."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.runs = self.done = self.planned_steps = self.steps = 0
        self.units: list[Unit] = []

    def planned(self, path: Path, tasks: Any, runs: int, done: int, net_steps: int) -> None:
        self.runs, self.done, self.planned_steps = runs, done, net_steps

    def advanced(self, net_steps: int) -> None:
        self.steps += net_steps

    def unit_done(self, unit: Unit) -> None:
        self.units.append(unit)
        if len(self.units) == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("data"))


def config(mnist: Path, output: Path, **settings: Any) -> ReproduceConfig:
    return check_config(
        {**GRID, "data": mnist, "output": output, "name": "r", "jobs": 2, **settings},
        ReproduceConfig,
    )


def told(run: RunRecord) -> Any:
    """All that a run says but how long it took and with how many others."""
    summary = {
        key: value
        for key, value in run.summary.items()
        if key not in ("seconds", "images_per_second", "stack")
    }
    return summary, [
        {key: value for key, value in row.items() if key != "seconds"} for row in run.rows
    ]


@pytest.fixture(scope="module")
def whole(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each run of the grid says, trained in one go."""
    seen = Seen()
    path, _, tasks = reproduce(config(mnist, tmp_path_factory.mktemp("whole")), watcher=seen)
    assert [task.folder for task in tasks] == ["sgd", "adam"]
    assert (seen.runs, seen.done) == (32, 0)
    assert seen.steps == seen.planned_steps == 32 * 3
    return {
        f"{opt}/{run.path.name}": told(run)
        for opt in ("sgd", "adam")
        for run in load_study(path / opt).runs
    }


def test_all_activations_of_a_seed_are_paired(whole: dict[str, Any]) -> None:
    assert len(whole) == 32
    for seed in (0, 1):
        pairings = {
            json.dumps(summary["pairing"])
            for name, (summary, _) in whole.items()
            if name.endswith(f"-s{seed}")
        }
        assert len(pairings) == 1
    assert (
        whole["sgd/relu-lr0.01-s0"][0]["pairing"]["head_init"]
        != whole["sgd/relu-lr0.01-s1"][0]["pairing"]["head_init"]
    )
    summary, rows = whole["sgd/arelu-lr0.01-s1"]
    assert (summary["status"], summary["steps"]) == ("finished", 3)
    assert [row["step"] for row in rows if row["split"] == "val"] == [0, 1, 2, 3]
    assert summary["final_top1"] == rows[-1]["top1"]


def test_an_interrupted_study_ends_as_if_it_had_not_been(
    mnist: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    """Stacks that are cut otherwise, for their seeds are missing one by one, and other activations first."""
    given = config(mnist, tmp_path, jobs=1, seeds="0")
    with pytest.raises(Interrupted, match="--resume") as stopped:
        reproduce(given, watcher=Seen(stop_after=3))
    assert stopped.value.exit_code == 130
    study = load_study(tmp_path / "r" / "sgd")
    assert 3 <= len({run.config.arm for run in study.runs}) <= 4
    assert all(run.status == "finished" for run in study.runs)
    grown = Seen()
    path, _, _ = reproduce(config(mnist, tmp_path, seeds="1"), watcher=grown)
    assert grown.runs == 32
    assert grown.done >= 6
    assert {
        f"{opt}/{run.path.name}": told(run)
        for opt in ("sgd", "adam")
        for run in load_study(path / opt).runs
    } == whole
    again = Seen()
    reproduce(resumed(path), watcher=again)
    assert (again.done, again.planned_steps, again.units) == (32, 0, [])


def test_a_run_that_was_not_written_to_its_end_is_trained_again(
    mnist: Path, tmp_path: Path
) -> None:
    path, _, _ = reproduce(config(mnist, tmp_path, opts="sgd", seeds="0"))
    run = path / "sgd" / "arelu-lr0.01-s0"
    before = (run / "metrics.jsonl").read_text()
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").write_text(before[:100])
    seen = Seen()
    reproduce(resumed(path), watcher=seen)
    assert [(unit.activation, unit.nets) for unit in seen.units] == [("arelu", [(0.01, 0)])]
    assert (run / "summary.json").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == len(before.splitlines())


def test_other_settings_under_the_same_name_are_refused_before_anything_changes(
    mnist: Path, tmp_path: Path
) -> None:
    (tmp_path / "r").mkdir()
    with pytest.raises(ConfigError, match="no reproduction"):
        reproduce(config(mnist, tmp_path))
    (tmp_path / "r").rmdir()
    path, _, _ = reproduce(
        config(mnist, tmp_path, activations="relu", opts="sgd", lrs="1e-3", seeds="0")
    )
    before = (path / "reproduction.yaml").read_text()
    with pytest.raises(ConfigError, match="batch_size 32 there and 16 here"):
        reproduce(config(mnist, tmp_path, batch_size=16))
    assert (path / "reproduction.yaml").read_text() == before


def test_other_pictures_in_the_folder_are_noticed(tmp_path: Path) -> None:
    few = {"activations": "relu", "opts": "sgd", "lrs": "1e-3", "seeds": "0"}
    data = write_mnist(tmp_path / "data")
    reproduce(config(data, tmp_path, **few))
    shutil.rmtree(data)
    write_mnist(data, test=50)
    with pytest.raises(DataError, match="begin a new study"):
        reproduce(config(data, tmp_path, **few))


def test_a_refused_command_leaves_the_study_as_it_was(mnist: Path, tmp_path: Path) -> None:
    few = {"activations": "relu", "opts": "sgd", "lrs": "1e-3", "seeds": "0"}
    path, _, _ = reproduce(config(mnist, tmp_path, **few))
    before = (path / "reproduction.yaml").read_text()
    with pytest.raises(DataError, match="begin a new study"):
        reproduce(config(write_mnist(tmp_path / "others", test=50), tmp_path, **few))
    with pytest.raises(ConfigError, match="dataset mnist there and digits here"):
        reproduce(config(mnist, tmp_path, **few).model_copy(update={"data": None}))
    assert (path / "reproduction.yaml").read_text() == before
    assert reproduce(resumed(path))[0] == path


def test_a_transfer_goes_on_with_its_optimiser_and_sets_only(mnist: Path, tmp_path: Path) -> None:
    begun = check_config(
        {"transfer": True, "opts": "sgd", "output": tmp_path, "name": "t"}, ReproduceConfig
    )
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "reproduction.yaml").write_text(dump_yaml(begun))
    with pytest.raises(ConfigError, match=r"opts \['sgd'\] there and \['adam'\] here"):
        reproduce(begun.model_copy(update={"opts": ["adam"]}))
    with pytest.raises(ConfigError, match="data None there"):
        reproduce(begun.model_copy(update={"data": mnist}))


def test_a_study_goes_on_under_whatever_name_it_was_given_since(
    mnist: Path, tmp_path: Path
) -> None:
    few = {"activations": "relu", "opts": "sgd", "lrs": "1e-3", "seeds": "0"}
    path, _, _ = reproduce(config(mnist, tmp_path, **few))
    moved = path.rename(tmp_path / "my run, 2nd")
    seen = Seen()
    assert reproduce(resumed(moved), watcher=seen)[0] == moved
    assert (seen.runs, seen.done) == (1, 1)


def test_threads_are_as_many_afterwards_as_before(mnist: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        reproduce(config(mnist, tmp_path, activations="relu", opts="sgd", lrs="1e-3", seeds="0"))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_a_damaged_dataset_file_is_told(mnist: Path, tmp_path: Path) -> None:
    few = {"activations": "relu", "opts": "sgd", "lrs": "1e-3", "seeds": "0"}
    path, _, _ = reproduce(config(mnist, tmp_path, **few))
    (path / "sgd" / "dataset.json").write_text("{}")
    with pytest.raises(ArtefactError, match="no fingerprint"):
        reproduce(config(mnist, tmp_path, **few))


def test_runs_of_several_environments_are_told_of_once(mnist: Path, tmp_path: Path) -> None:
    path, _, _ = reproduce(
        config(mnist, tmp_path, activations="relu", opts="sgd", lrs="1e-2,1e-3", seeds="0")
    )
    runs = load_study(path / "sgd").runs
    assert environment_notes(runs) == []
    file = runs[0].path / "environment.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "convolutions": "portable: no C compiler"})
    )
    (note,) = environment_notes(runs)
    assert "1 with" in note
    assert "portable convolutions" in note


def test_a_net_that_diverges_is_a_failed_run_with_its_accuracy(mnist: Path, tmp_path: Path) -> None:
    path, _, _ = reproduce(
        config(mnist, tmp_path, activations="relu,slaf", opts="sgd", lrs="1e30,1e-3", seeds="0")
    )
    runs = {run.path.name: run for run in load_study(path / "sgd").runs}
    lost = runs["slaf-lr1000000000000000000000000000000-s0"]
    assert (lost.status, lost.summary["exit_code"]) == ("failed", 4)
    assert lost.summary["final_top1"] <= 0.2
    assert runs["slaf-lr0.001-s0"].status == "finished"


def test_stacks_are_of_one_activation_and_no_larger_than_the_cache_is_good_for(mnist: Path) -> None:
    digits = load_digit_set("mnist", mnist)
    given = check_config({}, ReproduceConfig)
    tasks = [Task(opt, opt, digits) for opt in given.opts]
    units = plan_units(given, tasks, set())
    assert sum(len(unit.nets) for unit in units) == 760
    assert max(len(unit.nets) for unit in units) == 8
    # The activations of a cell follow each other.
    assert [unit.activation for unit in units[:19]] == given.activations
    assert {unit.seeds for unit in units[:19]} == {(0, 1)}
    done = {("sgd", "relu", lr, seed) for lr in given.lrs for seed in given.seeds} - {
        ("sgd", "relu", 1e-4, 3)
    }
    left = [
        unit
        for unit in plan_units(given, tasks, done)
        if (unit.task.opt, unit.activation) == ("sgd", "relu")
    ]
    assert [unit.nets for unit in left] == [[(1e-4, 3)]]


def test_transfer_begins_with_what_the_other_set_left(mnist: Path, tmp_path: Path) -> None:
    """Fine-tuned at a rate that changes nothing, a net is as good as it is on what it was trained on."""
    digits = load_digit_set("mnist", mnist)
    other = DigitSet("other", "", digits.test, digits.train, whole=True)
    given = check_config(
        {"opts": "sgd", "lrs": "1e-12", "seeds": "0,1", "batch_size": 8}, ReproduceConfig
    )

    def accuracy(source: DigitSet | None) -> torch.Tensor:
        unit = Unit(Task("a-to-b", "sgd", other, source), "arelu", (0, 1), (1e-12,))
        outcome = train_unit(
            given, unit, torch.device("cpu"), stopped=lambda: False, advanced=lambda steps: None
        )
        assert outcome is not None
        first, *_, last = outcome.curves.evaluations
        assert torch.equal(first.correct, last.correct)
        return last.correct.float().mean(1)

    assert (accuracy(None) < 0.3).all()
    assert (accuracy(digits) > accuracy(None) + 0.1).all()
