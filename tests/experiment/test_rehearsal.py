"""What is found before a study begins holds for all its arms, is written down, and is said in a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import GIVEN
from sweeps import Watching, grid, rows

import arelu_tl
from arelu_tl.analysis.comparison import compare_runs
from arelu_tl.data.folder import scan_folder
from arelu_tl.errors import AreluTlError, ConfigError
from arelu_tl.experiment.devices import slow_mixed_precision
from arelu_tl.experiment.finetune import finetune
from arelu_tl.experiment.rehearsal import Rehearsal, agree, rehearse
from arelu_tl.experiment.sweep import sweep
from arelu_tl.records.config import FinetuneConfig, check_config
from arelu_tl.records.runs import load_run
from arelu_tl.training.memory import BatchSize

TINY = {
    "model": "test_resnet",
    "pretrained": False,
    **GIVEN,
    "img_size": 32,
    "epochs": 1,
    "workers": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder(train=12, val=2)
    return folder


def tiny(pictures: Path, place: Path, **settings: Any) -> FinetuneConfig:
    return check_config({**TINY, "data": pictures, "output": place, **settings})


def test_a_batch_size_that_was_found_is_the_number_that_both_arms_and_the_study_have(
    pictures: Path, tmp_path: Path
) -> None:
    watching = Watching()
    study = finetune(tiny(pictures, tmp_path, batch_size="auto"), observer=watching)
    assert [note for note in watching.notes if note.startswith("batch size 4: ")]
    assert yaml.safe_load((study.path / "study.yaml").read_text())["batch_size"] == 4
    assert [run.config.batch_size for run in study.runs] == [4, 4]
    assert {run.summary["steps"] for run in study.runs} == {9}
    named = finetune(tiny(pictures, tmp_path, batch_size=4, baseline=False))
    assert rows(named.runs[0].path) == rows(study.path / "arelu-lr0.0001-s0")


def test_a_sweep_finds_its_batch_size_once_and_keeps_it(pictures: Path, tmp_path: Path) -> None:
    settings = {**TINY, "batch_size": "auto", "lrs": [1e-3]}
    first, second = Watching(), Watching()
    study = sweep(grid(pictures, tmp_path, **settings), observer=first)
    assert [note for note in first.notes if note.startswith("batch size 4: ")]
    assert {run.config.batch_size for run in study.runs} == {4}
    grown = sweep(grid(pictures, tmp_path, **{**settings, "lrs": [1e-2]}), observer=second)
    assert {run.config.batch_size for run in grown.runs} == {4}
    assert len(grown.runs) == 4
    assert not [note for note in second.notes if "batch size" in note]


def found(size: int, why: str = "why", **more: Any) -> Rehearsal:
    return Rehearsal(1.0, 0.1, BatchSize(size, why), **more)


def test_arms_agree_on_the_least_that_any_of_them_has_room_for() -> None:
    notes: list[str] = []
    config = check_config({"batch_size": "auto", "compile": True})
    arms = [
        found(64),
        found(16, "little room", micro_batch=8),
        found(64, micro_batch=16, not_compiled="no compiler"),
    ]
    settled = agree(config, arms, notes.append)
    assert (settled.batch_size, settled.micro_batch, settled.compile) == (16, 8, False)
    assert len(notes) == 3
    assert notes[0] == "batch size 16: little room"
    assert "8 pictures at a time" in notes[1]
    assert notes[2].endswith("no compiler")
    assert agree(settled, [found(16, micro_batch=8)], notes.append) == settled
    assert len(notes) == 3


@contextmanager
def room_for(pictures: int) -> Iterator[None]:
    """Torch's own error, from a hook on every convolution, for more than so many pictures in training."""

    def too_much(module: torch.nn.Module, given: Any, output: Any) -> None:
        if module.training and isinstance(module, torch.nn.Conv2d) and len(given[0]) > pictures:
            raise torch.OutOfMemoryError(f"{len(given[0])} pictures")

    handle = torch.nn.modules.module.register_module_forward_hook(too_much)
    try:
        yield
    finally:
        handle.remove()


def test_parts_are_found_where_memory_is_short(pictures: Path) -> None:
    folder, cpu = scan_folder(pictures), torch.device("cpu")
    with room_for(4):
        assert (
            rehearse(tiny(pictures, pictures.parent, batch_size=12), folder, cpu).micro_batch == 3
        )
        told = rehearse(tiny(pictures, pictures.parent, batch_size="auto"), folder, cpu)
        assert (told.batch_size.size, told.micro_batch) == (4, None)
    with room_for(0), pytest.raises(ConfigError, match="not the memory for a single picture"):
        rehearse(tiny(pictures, pictures.parent, batch_size=12, arm="relu"), folder, cpu)


def test_memory_that_runs_out_in_one_arm_alone_is_told_by_its_summary_and_by_compare(
    pictures: Path, tmp_path: Path
) -> None:
    class Shrinking(Watching):
        """Another process takes the memory once the second arm has begun."""

        def run_started(self, arm: str, *rest: Any) -> None:
            if arm == "arelu":
                memory.enter_context(room_for(4))

    watching = Shrinking()
    with ExitStack() as memory:
        study = finetune(tiny(pictures, tmp_path, batch_size=6, epochs=2), observer=watching)
    assert (
        len([note for note in watching.notes if "goes on with 3, their gradients added up" in note])
        == 1
    )
    told = {run.config.arm: run.summary for run in study.runs}
    assert {arm: summary["micro_batch"] for arm, summary in told.items()} == {
        "relu": None,
        "arelu": 3,
    }
    assert told["relu"]["pairing"] == told["arelu"]["pairing"]
    (uneven,) = compare_runs(study.runs).uneven
    assert "arelu-lr0.0001-s0 in parts of 3" in uneven


def test_not_even_one_picture_ends_a_run_in_one_line(pictures: Path, tmp_path: Path) -> None:
    class Gone(Watching):
        def run_started(self, arm: str, *rest: Any) -> None:
            memory.enter_context(room_for(0))

    with (
        ExitStack() as memory,
        pytest.raises(AreluTlError, match="out of memory on cpu: lower") as caught,
    ):
        finetune(tiny(pictures, tmp_path, batch_size=6, arm="relu", name="x"), observer=Gone())
    assert caught.value.exit_code == 1
    assert load_run(tmp_path / "x" / "relu-lr0.0001-s0").status == "failed"


def test_a_batch_size_that_nobody_has_found_yet_is_no_number() -> None:
    with pytest.raises(ConfigError, match="auto"):
        _ = arelu_tl.FinetuneConfig(batch_size="auto").pictures_in_a_batch


@pytest.mark.parametrize(("value", "size"), [("16", 16), (16, 16), ("auto", "auto")])
def test_a_batch_size_is_a_number_or_auto(value: Any, size: Any) -> None:
    assert check_config({"batch_size": value}).batch_size == size


@pytest.mark.parametrize("value", ["many", 0, -1, 1.5, True, None])
def test_any_other_batch_size_is_refused_in_a_line(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"batch_size = .*: a whole number of at least 1 is wanted, or auto$"
    ):
        check_config({"batch_size": value})


def test_mixed_precision_is_said_to_be_slow_only_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, asked = torch.device("cpu"), check_config({"amp": True})
    for units, slow in (
        ({"avx2": True}, True),
        ({"avx512_bf16": True}, False),
        ({"amx_bf16": True}, False),
        ({"bf16": True}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert (slow_mixed_precision(cpu, asked) is not None) == slow
        assert slow_mixed_precision(cpu, check_config({})) is None
    assert slow_mixed_precision(torch.device("meta"), asked) is None


def test_a_frozen_backbone_sees_pictures_that_never_vary_once(
    pictures: Path, tmp_path: Path
) -> None:
    """The whole command: alone where the arm has nothing to learn, with the same pairing as the arm that has."""
    watching = Watching()
    study = finetune(
        tiny(pictures, tmp_path, batch_size=6, epochs=3, freeze="backbone", no_aug=True, lr=1e-2),
        observer=watching,
    )
    assert [note for note in watching.notes if "pass the frozen backbone once" in note] == [
        "relu: only the head learns, on pictures that never vary: they pass the frozen backbone once"
    ]
    told = {run.config.arm: run for run in study.runs}
    assert {arm: run.summary["on_features"] for arm, run in told.items()} == {
        "relu": True,
        "arelu": False,
    }
    assert told["relu"].summary["pairing"]["epochs"] == told["arelu"].summary["pairing"]["epochs"]
    model, _ = arelu_tl.load_model(told["relu"].path)
    assert sum(p.numel() for p in model.parameters()) > 10_000
    varied = finetune(
        tiny(pictures, tmp_path, batch_size=6, freeze="backbone", arm="relu"), observer=watching
    )
    assert varied.runs[0].summary["on_features"] is False


def test_a_run_with_checkpointing_has_the_rows_of_one_without(
    pictures: Path, tmp_path: Path
) -> None:
    plain, saving = (
        finetune(tiny(pictures, tmp_path, batch_size=6, arm="relu", grad_checkpointing=on)).runs[0]
        for on in (False, True)
    )
    assert rows(plain.path) == rows(saving.path)


def test_a_backbone_without_checkpointing_is_refused_before_a_study_is_made(
    pictures: Path, tmp_path: Path
) -> None:
    config = tiny(pictures, tmp_path, batch_size=4, model="selecsls42", grad_checkpointing=True)
    with pytest.raises(ConfigError, match="no gradient checkpointing"):
        finetune(config)
    assert not list(tmp_path.glob("*/*"))


def test_a_sweep_that_was_begun_without_compiling_goes_on_without(
    pictures: Path, tmp_path: Path
) -> None:
    """As where the compiler failed when it began: the same command must go on."""
    settings = {**TINY, "lrs": [1e-3], "arms": ["relu"], "batch_size": 8}
    sweep(grid(pictures, tmp_path, **settings))
    again = sweep(grid(pictures, tmp_path, **settings, compile=True))
    assert [run.config.compile for run in again.runs] == [False]
    with pytest.raises(ConfigError, match="channels_last None there and False here"):
        sweep(grid(pictures, tmp_path, **settings, channels_last=False))
