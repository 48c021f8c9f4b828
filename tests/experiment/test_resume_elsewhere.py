"""A run that goes on, here or on another machine: how it began is what it recorded, not what would be computed now."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from commands import GIVEN, run_alone
from safetensors.torch import save_file
from sweeps import Watching, rows

from arelu_tl.analysis.comparison import compare_runs
from arelu_tl.errors import ArtefactError, Interrupted
from arelu_tl.experiment.finetune import finetune, resume_study
from arelu_tl.records.config import FinetuneConfig, check_config
from arelu_tl.records.runs import load_study
from arelu_tl.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint


class Stopping(Watching):
    """Stops the training after the first epoch of ``arm``."""

    def __init__(self, arm: str = "arelu") -> None:
        super().__init__()
        self.arm = arm
        self.reports: list[dict[str, Any] | None] = []

    def run_started(
        self, arm: str, total_steps: int, total_epochs: int, weights: str, report: Any
    ) -> None:
        self.reports.append(None if report is None else report.to_json())

    def epoch_end(self, arm: str, row: dict[str, Any]) -> None:
        if arm == self.arm and row["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder()
    return folder


def local_model(place: Path) -> Path:
    """Weights in a folder that names arguments which no tensor's shape tells of, dropout among them."""
    place.mkdir()
    torch.manual_seed(0)
    save_file(
        timm.create_model("test_resnet", output_stride=16).state_dict(),
        str(place / "model.safetensors"),
    )
    arguments = {"output_stride": 16, "drop_rate": 0.3}
    config = {"architecture": "test_resnet", "num_classes": 1000, "model_args": arguments}
    described = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    (place / "config.json").write_text(json.dumps({**config, "pretrained_cfg": described}))
    return place


def settings(pictures: Path, place: Path, model: Path, **more: Any) -> FinetuneConfig:
    chosen = {
        "data": pictures,
        "output": place,
        "model": f"local-dir:{model}",
        "epochs": 2,
        "batch_size": 8,
        "workers": 0,
    }
    return check_config(
        {**chosen, "name": "study", "baseline": False, "device": "cpu", "lr": 1e-3, **more}
    )


def interrupted(config: FinetuneConfig) -> Path:
    with pytest.raises(Interrupted):
        finetune(config, observer=Stopping(config.arm))
    assert config.name is not None
    return config.output / config.name


@pytest.mark.parametrize(
    "more",
    [
        {"inplace": False, "drop": 0.1, "model_ema": True},
        pytest.param({"arm": "recalibrated"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_without_its_backbone_and_with_another_calibration_it_ends_as_if_nothing_had_been(
    more: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    model = local_model(tmp_path / "model")
    seen = Stopping("none")
    whole = finetune(settings(pictures, tmp_path / "whole", model, **more), observer=seen).runs[0]
    study = interrupted(settings(pictures, tmp_path / "halved", model, **more))
    shutil.rmtree(model)
    (run,) = (each.path for each in load_study(study).runs)
    # Surgery that was performed anew would come to other numbers by this.
    for path in (study / "study.yaml", run / "run.yaml"):
        path.write_text(
            yaml.safe_dump({**yaml.safe_load(path.read_text()), "calibration_images": 3})
        )
    recorded = (run / "surgery.json").read_bytes()
    again = Stopping("none")
    resumed = resume_study(study, observer=again).runs[0]
    assert rows(resumed.path) == rows(whole.path)
    assert (run / "best.safetensors").read_bytes() == (whole.path / "best.safetensors").read_bytes()
    assert (
        (run / "surgery.json").read_bytes()
        == recorded
        == (whole.path / "surgery.json").read_bytes()
    )
    assert resumed.summary["pairing"] == whole.summary["pairing"]
    assert again.reports == seen.reports


def test_a_fair_pair_compares_although_one_was_resumed_where_rounding_differs(
    pictures: Path, tmp_path: Path
) -> None:
    chosen = {
        "data": pictures,
        "output": tmp_path,
        "name": "study",
        "model": "test_resnet",
        "pretrained": False,
        **GIVEN,
        "img_size": 32,
    }
    config = check_config(
        {**chosen, "epochs": 2, "batch_size": 8, "workers": 0, "lr": 1e-3, "device": "cpu"}
    )
    study = interrupted(config)
    # torch's plain loops instead of those for this processor: another machine's numbers, heads' initial values included.
    done = run_alone(
        "finetune", "--resume", study, "--quiet", cwd=tmp_path, ATEN_CPU_CAPABILITY="default"
    )
    assert done.returncode == 0, done.stderr
    runs = load_study(study).runs
    assert {run.status for run in runs} == {"finished"}
    assert runs[0].summary["pairing"] == runs[1].summary["pairing"]
    assert len(compare_runs(runs).rates) == 1


def test_a_state_that_does_not_say_how_its_run_began_is_one_line(
    pictures: Path, tmp_path: Path
) -> None:
    study = interrupted(settings(pictures, tmp_path / "runs", local_model(tmp_path / "model")))
    (run,) = (each.path for each in load_study(study).runs)
    newest, _ = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    weights, state = load_checkpoint(newest)
    start = state.pop("start")
    for broken in (
        {},
        {"start": {**start, "backbone": {}}},
        {"start": {**start, "backbone": {"architecture": "hf-hub:a/b"}}},
    ):
        save_checkpoint(run / "checkpoints", 3, weights, {**state, **broken})
        with pytest.raises(ArtefactError, match="how its run began"):
            resume_study(study)
