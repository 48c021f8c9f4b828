"""Compiling: falls back before anything is trained, and changes nothing but speed and rounding where it works."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from commands import GIVEN
from sweeps import Watching, rows
from torch import nn

import arelu_tl
from arelu_tl.errors import Interrupted
from arelu_tl.experiment.finetune import finetune, resume_study
from arelu_tl.records.config import check_config
from arelu_tl.surgery.convert import convert
from arelu_tl.training.step import StepSettings
from arelu_tl.training.trials import compiling_fails

CPU = torch.device("cpu")


@pytest.fixture
def no_compiler() -> Iterator[None]:
    # What an earlier test has compiled needs no compiler.
    with torch._inductor.config.patch(
        {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    ):
        yield


def tiny_net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    convert(model, example_input=torch.zeros(1, 3, 8, 8))
    return model


BATCH = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


def test_why_nothing_can_be_compiled_is_one_line(no_compiler: None) -> None:
    told = compiling_fails(tiny_net(), BATCH, StepSettings(), CPU)
    assert told is not None
    assert "no-such-compiler" in told
    assert "\n" not in told


@pytest.mark.slow
def test_both_arms_go_on_without_compiling_where_it_fails(
    no_compiler: None, make_folder: Any, tmp_path: Path
) -> None:
    watching = Watching()
    config = check_config(
        {
            "data": make_folder(),
            "output": tmp_path,
            "model": "test_resnet",
            "pretrained": False,
            **GIVEN,
            "img_size": 32,
            "epochs": 1,
        }
        | {"batch_size": 8, "workers": 0, "device": "cpu", "compile": True}
    )
    study = finetune(config, observer=watching)
    assert (
        len(
            [
                note
                for note in watching.notes
                if note.startswith("--compile is left out for every arm: ")
            ]
        )
        == 1
    )
    assert [run.config.compile for run in study.runs] == [False, False]
    plain = finetune(config.model_copy(update={"compile": False}))
    for ours, theirs in zip(study.runs, plain.runs, strict=True):
        assert rows(ours.path) == rows(theirs.path)


@pytest.mark.slow
def test_a_compiled_study_is_saved_resumed_and_loaded_like_any_other(
    make_folder: Any, tmp_path: Path
) -> None:
    """Minutes of the C++ compiler's: two arms, each for training and for evaluation of whole and of left-over batches."""

    class Interrupting(Watching):
        def epoch_end(self, arm: str, row: dict[str, Any]) -> None:
            if arm == "arelu" and row["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGINT)

    config = check_config(
        {
            "data": make_folder(),
            "output": tmp_path,
            "model": "test_resnet",
            "pretrained": False,
            **GIVEN,
            "img_size": 32,
            "epochs": 2,
        }
        | {"batch_size": 8, "workers": 0, "device": "cpu", "compile": True, "model_ema": True}
    )
    watching = Watching()
    whole = finetune(config, observer=watching)
    assert not [note for note in watching.notes if "`compile`" in note]
    assert [run.config.compile for run in whole.runs] == [True, True]
    with pytest.raises(Interrupted):
        finetune(config.model_copy(update={"name": "halved"}), observer=Interrupting())
    halved = resume_study(tmp_path / "halved")
    eager = finetune(config.model_copy(update={"compile": False}))
    for ours, resumed, theirs in zip(whole.runs, halved.runs, eager.runs, strict=True):
        assert rows(ours.path) == rows(resumed.path)
        assert (ours.path / "best.safetensors").read_bytes() == (
            resumed.path / "best.safetensors"
        ).read_bytes()
        for mine, yours in zip(rows(ours.path), rows(theirs.path), strict=True):
            assert mine["loss"] == pytest.approx(yours["loss"], rel=0.05)
        model, _ = arelu_tl.load_model(ours.path)
        assert set(model.state_dict()) == set(arelu_tl.load_model(theirs.path)[0].state_dict())
