"""What ``auto`` stands for: each arm's own, chosen on training pictures alone, recorded, kept on resuming."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from arelu_tl.analysis.comparison import compare
from arelu_tl.data.folder import PictureFolder, scan_folder
from arelu_tl.errors import Interrupted
from arelu_tl.experiment import run as run_module
from arelu_tl.experiment.build import begin
from arelu_tl.experiment.choices import Pilot, make_choices
from arelu_tl.experiment.finetune import finetune, resume_study
from arelu_tl.experiment.observer import Observer
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.head_rate import HeadRate

CPU = torch.device("cpu")


def settings(root: Path, **more: Any) -> FinetuneConfig:
    given = {
        "data": root, "model": "test_resnet", "pretrained": False, "img_size": 32, "batch_size": 8,
        "epochs": 2, "workers": 0, "device": "cpu", "cache": "off",
    }  # fmt: skip
    return FinetuneConfig(**{**given, **more})


def chosen(config: FinetuneConfig, folder: PictureFolder) -> HeadRate | None:
    return make_choices(config, folder, begin(config, folder, CPU).backbone, CPU).chosen.head_lr


def test_it_is_chosen_on_training_pictures_alone(make_folder: Any) -> None:
    root = make_folder(train=8, val=4)
    config = settings(root)
    expected = chosen(config, scan_folder(root))
    assert expected is not None
    assert expected.pictures <= 24
    assert len(expected.tried) >= 4
    folder = scan_folder(root)
    for path in (root / "val").rglob("*.png"):
        Image.new("RGB", (8, 8)).save(path)  # after the scan, so that only training could see it
    assert chosen(config, folder) == expected
    for path in (root / "train").rglob("*.png"):
        Image.new("RGB", (8, 8)).save(path)
    assert chosen(config, folder) != expected


def test_the_model_and_the_generators_stay_as_they_were(make_folder: Any) -> None:
    root = make_folder()
    folder = scan_folder(root)
    config = settings(root, arm="arelu", drop_path=0.2, drop=0.3)
    backbone = begin(config, folder, CPU).backbone
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    modes = [module.training for module in backbone.model.modules()]
    state = torch.get_rng_state()
    make_choices(config, folder, backbone, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in backbone.model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"head_lr": 0.01}, None),
        ({"head_lr": None}, None),
        ({"freeze": "backbone"}, None),
        ({"model": "levit_128s", "img_size": 224}, HeadRate(1e-3, [], 0, 0, 0)),
    ],
    ids=["given", "the backbone's", "frozen", "two heads"],
)
def test_where_there_is_nothing_to_choose(
    make_folder: Any, more: dict[str, Any], expected: HeadRate | None
) -> None:
    root = make_folder(train=2, val=1)
    config = settings(root, arm="relu", **more)
    assert chosen(config, scan_folder(root)) == expected


def test_each_arm_has_its_own_and_the_pair_compares(make_folder: Any, tmp_path: Path) -> None:
    notes: list[str] = []

    class Listening(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    config = settings(make_folder(), output=tmp_path, name="study")
    study = finetune(config, observer=Listening())
    for run in study.runs:
        tried = json.loads((run.path / runs.CHOICES).read_text())
        assert {each["bn_stats"] for each in tried} == {"batch", "frozen"}
        (chosen,) = (each for each in tried if each["chosen"])
        assert chosen["loss"] == min(each["loss"] for each in tried)
        assert (run.config.head_lr, run.config.bn_stats) == ("auto", "auto")
        settled = {"head_lr": chosen["head_lr"]["lr"], "bn_stats": chosen["bn_stats"]}
        assert run.settled == settled
        assert {key: run.summary[key] for key in settled} == settled
        name = run.config.arm
        assert any(f"{name}: head rate {settled['head_lr']:g}" in note for note in notes)
        assert any(f"{name}: BatchNorm's statistics {settled['bn_stats']}" in n for n in notes)
    (found,) = compare([study.path]).rates
    assert len(found.pairs) == 1


def test_a_resumed_run_keeps_the_rate_it_began_with(
    make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(Observer):
        def epoch_end(self, arm: str, row: Any) -> None:
            if row["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGINT)

    root = make_folder()
    whole = finetune(settings(root, output=tmp_path, name="whole", baseline=False))
    config = settings(root, output=tmp_path, name="halved", baseline=False)
    with pytest.raises(Interrupted):
        finetune(config, observer=Interrupting())

    def fail(*_: Any) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr(run_module, "make_choices", fail)
    resumed = resume_study(tmp_path / "halved")
    (one,), (other,) = whole.runs, resumed.runs
    assert other.summary["head_lr"] == one.summary["head_lr"]
    assert [row["loss"] for row in other.rows] == [row["loss"] for row in one.rows]


@pytest.mark.parametrize(
    ("more", "tried"),
    [
        ({}, ["batch", "frozen"]),
        ({"bn_stats": "frozen"}, ["frozen"]),
        ({"bn_stats": "batch"}, ["batch"]),
        ({"freeze": "backbone"}, ["batch"]),
        ({"batch_size": 64}, ["batch"]),  # a single batch
        ({"model": "test_vit"}, ["batch"]),  # no BatchNorm
    ],
    ids=["both", "frozen", "batch", "frozen backbone", "one batch", "no BatchNorm"],
)
def test_statistics_are_tried_where_there_is_a_choice(
    make_folder: Any, more: dict[str, Any], tried: list[str]
) -> None:
    root = make_folder()
    folder, config = scan_folder(root), settings(root, arm="relu", **more)
    choices = make_choices(config, folder, begin(config, folder, CPU).backbone, CPU)
    assert [each.bn_stats for each in choices.tried] == tried
    assert all((each.loss is None) == (len(tried) == 1) for each in choices.tried)


def test_statistics_that_fit_no_picture_are_not_kept(make_folder: Any) -> None:
    """Running statistics a thousand times too large let no picture through but by the batch's own."""
    root = make_folder(train=24, val=2)
    folder, config = scan_folder(root), settings(root, arm="relu", lr=1e-3)

    def choice(factor: float) -> Pilot:
        backbone = begin(config, folder, CPU).backbone
        for module in backbone.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.mul_(factor)
        choices = make_choices(config, folder, backbone, CPU)
        losses = [each.loss for each in choices.tried]
        assert choices.chosen.loss == min(losses)
        return choices.chosen

    assert choice(1e6).bn_stats == "batch"


def test_a_pilot_that_breaks_is_not_chosen_and_two_leave_what_is_usual(make_folder: Any) -> None:
    root = make_folder()
    folder, config = scan_folder(root), settings(root, arm="relu", lr=1e25, opt="sgd", head_lr=1e25)
    choices = make_choices(config, folder, begin(config, folder, CPU).backbone, CPU)
    assert [each.loss for each in choices.tried] == [float("inf")] * 2
    assert choices.chosen.bn_stats == "batch"
    assert [each["loss"] for each in choices.to_json()] == [None, None]
    assert "no finite value" in next(choices.lines())
