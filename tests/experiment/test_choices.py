"""What ``auto`` stands for: each arm's own, chosen on training pictures alone, recorded, kept on resuming."""

import json
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import GIVEN
from PIL import Image
from sweeps import plain
from torch import nn

from arelu_tl.activation.arelu import named_arelus
from arelu_tl.analysis.comparison import compare
from arelu_tl.data.folder import PictureFolder, scan_folder
from arelu_tl.errors import Interrupted
from arelu_tl.experiment import run as run_module
from arelu_tl.experiment.build import RunStart, SavedRun, begin, go_on
from arelu_tl.experiment.choices import Choices, choose_start
from arelu_tl.experiment.finetune import finetune, resume_study
from arelu_tl.experiment.observer import Observer
from arelu_tl.exporting.export import export
from arelu_tl.models.load import load_model as load_run_model
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.checkpoint import list_checkpoints, load_checkpoint
from arelu_tl.training.head_rate import HeadRate

CPU = torch.device("cpu")
# 33 steps: as many as a pilot asks for.
settings = partial(plain, epochs=11, head_init="random")


def choices_of(
    config: FinetuneConfig, folder: PictureFolder, change: Callable[[nn.Module], object] = id
) -> Choices:
    """What is chosen for an arm whose starts were changed by ``change`` before."""

    def build(own: FinetuneConfig) -> RunStart:
        start = begin(own, folder, CPU)
        change(start.backbone.model)
        return start

    return choose_start(config, folder, CPU, build)[1]


def chosen(config: FinetuneConfig, folder: PictureFolder) -> HeadRate | None:
    return choices_of(config, folder).chosen.head_lr


def test_it_is_chosen_on_training_pictures_alone(make_folder: Any) -> None:
    root = make_folder(train=8, val=4)
    config = settings(root, arm="relu")
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
    config = settings(root, arm="arelu", init="calibrated", drop_path=0.2, drop=0.3)
    start = begin(config, folder, CPU)
    backbone = start.backbone
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    modes = [module.training for module in backbone.model.modules()]
    state = torch.get_rng_state()
    choose_start(config, folder, CPU, lambda _: start)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in backbone.model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"head_lr": 0.01}, None),
        ({"head_lr": None}, None),
        ({"freeze": "backbone"}, None),
        (
            {"model": "levit_128s", "img_size": 224},
            HeadRate(1e-3, [], 0, 0, 0, informed=False),
        ),
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
        record = json.loads((run.path / runs.CHOICES).read_text())
        tried, settled = record["tried"], record["settings"]
        first = None if run.config.arm == "relu" else "near-relu"
        assert [(each["init"], each["bn_stats"]) for each in tried[:2]] == [
            (first, "batch"),
            (first, "frozen"),
        ]
        # The second start is tried with the statistics that suited the first.
        suited = min(tried[:2], key=lambda each: each["loss"])["bn_stats"]
        assert [(each["init"], each["bn_stats"]) for each in tried[2:]] == (
            [("calibrated", suited)] if first else []
        )
        best = min(tried, key=lambda each: each["loss"])
        expected = {"bn_stats": best["bn_stats"], "head_lr": best["head_lr"]["lr"]}
        expected["head_init"] = "random"
        own = {"init": best["init"]} if best["init"] else {}
        assert settled == expected | own
        assert {getattr(run.config, key) for key in settled} == {"auto", "random"}
        assert run.settled == settled
        assert (run.summary["head_lr"], run.summary["bn_stats"]) == (
            settled["head_lr"],
            settled["bn_stats"],
        )
        if run.surgery is not None:
            assert run.surgery["init"] == best["init"]
        name = run.config.arm
        assert any(f"{name}: head rate {settled['head_lr']:g}" in note for note in notes)
        start = f"{best['init']}, " if best["init"] else ""
        assert any(f"{name}: {start}{best['bn_stats']} statistics: loss " in n for n in notes)
    (found,) = compare([study.path]).rates
    assert len(found.pairs) == 1


def test_controls_take_from_the_other_arm_what_they_control_for(make_folder: Any) -> None:
    folder = scan_folder(root := make_folder())

    def enlarge(model: nn.Module) -> None:
        """Features so large that AReLU's head needs a smaller rate than the unmodified net's."""
        if any(named_arelus(model)):
            norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
            with torch.no_grad():
                norms[-1].weight.mul_(1e3)

    of = {
        arm: choices_of(settings(root, arm=arm, bn_stats="batch"), folder, enlarge).settings()
        for arm in ("relu", "arelu", "head-matched", "head-of-relu", "norm-rate")
    }
    assert of["relu"]["head_lr"] != of["arelu"]["head_lr"]
    assert of["head-matched"]["head_lr"] == of["arelu"]["head_lr"]
    assert of["head-of-relu"]["head_lr"] == of["relu"]["head_lr"]
    assert of["norm-rate"] == of["relu"]
    config = settings(root, arm="stats-frozen")
    choices = choices_of(config, folder)
    assert [each.bn_stats for each in choices.tried] == ["frozen"]
    assert choices.settings()["bn_stats"] == "frozen"
    given = settings(root, arm="head-matched", head_lr=0.01, bn_stats="batch")
    assert "head_lr" not in choices_of(given, folder).settings()


def test_the_controls_of_a_study_are_trained_and_say_what_is_left(
    make_folder: Any, tmp_path: Path
) -> None:
    config = settings(
        make_folder(),
        output=tmp_path,
        name="s",
        epochs=1,
        controls=True,
        init="near-relu",
        arelu_lr=0.01,
    )
    study = finetune(config)
    arms = ["arelu-frozen", "leaky", "gain-only", "recalibrated"]
    arms += ["head-matched", "head-of-relu", "stats-frozen", "norm-rate"]
    assert sorted(run.config.arm for run in study.runs) == sorted(["relu", "arelu", *arms])
    for run in study.runs:
        unmodified = run.config.arm in ("relu", "head-matched", "stats-frozen", "norm-rate")
        assert (run.surgery is None) == unmodified
        load_run_model(run.path)
    (text,) = (each for each in compare([study.path]).gain if "rate" in each)
    for part in (
        "relu with the same head rate",
        "relu with frozen BatchNorm statistics",
        "relu whose normalisation weights have a rate of their own",
        "a learnt gain without a slope",
        "with the head rate of relu",
    ):
        assert part in text


def test_controls_without_a_role_are_left_out(tmp_path: Path) -> None:
    def controls(**more: Any) -> list[str]:
        return plain(tmp_path, controls=True, **more).control_arms()

    always = ["arelu-frozen", "leaky", "gain-only", "recalibrated"]
    assert plain(tmp_path).control_arms() == []
    assert controls(head_lr=0.1, bn_stats="frozen") == always
    assert controls(freeze="backbone", arelu_lr=0.1) == [*always, "norm-rate"]


def test_a_resumed_run_keeps_the_rate_it_began_with(
    make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(Observer):
        def epoch_end(self, arm: str, row: Any) -> None:
            if row["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGINT)

    root = make_folder()
    brief = partial(settings, root, output=tmp_path, baseline=False, epochs=2)
    whole, config = finetune(brief(name="whole")), brief(name="halved")
    with pytest.raises(Interrupted):
        finetune(config, observer=Interrupting())

    def fail(*_: Any) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr(run_module, "choose_start", fail)
    resumed = resume_study(tmp_path / "halved")
    (one,), (other,) = whole.runs, resumed.runs
    assert other.summary["head_lr"] == one.summary["head_lr"]
    assert [row["loss"] for row in other.rows] == [row["loss"] for row in one.rows]


def test_a_checkpoint_from_before_there_were_choices_goes_on_without(
    make_folder: Any, tmp_path: Path
) -> None:
    root = make_folder()
    config = settings(root, output=tmp_path, name="s", arm="relu", epochs=1, **GIVEN)
    (run,) = finetune(config).runs
    _, checkpoint = list_checkpoints(run.path / runs.CHECKPOINTS)[-1]
    weights, state = load_checkpoint(checkpoint)
    assert go_on(config, 3, CPU, SavedRun(checkpoint, weights, state, None)).settled["bn_stats"]
    for key in ("settled", "probe"):
        del state["start"][key]
    start = go_on(config, 3, CPU, SavedRun(checkpoint, weights, state, None))
    assert (start.settled, start.probe) == ({}, None)


@pytest.mark.parametrize(
    ("more", "tried"),
    [
        ({}, ["batch", "frozen"]),
        ({"bn_stats": "frozen"}, ["frozen"]),
        ({"bn_stats": "batch"}, ["batch"]),
        ({"freeze": "backbone"}, ["batch"]),
        ({"batch_size": 64}, ["batch"]),  # a single batch
        ({"epochs": 10}, ["batch"]),  # 30 steps, of random weights
        ({"model": "test_vit"}, ["batch"]),  # no BatchNorm
    ],
    ids=["both", "frozen", "batch", "frozen backbone", "one batch", "short", "no BatchNorm"],
)
def test_statistics_are_tried_where_there_is_a_choice(
    make_folder: Any, more: dict[str, Any], tried: list[str]
) -> None:
    root = make_folder()
    folder, config = scan_folder(root), settings(root, arm="relu", **more)
    choices = choices_of(config, folder)
    assert [each.bn_stats for each in choices.tried] == tried
    assert all((each.loss is None) == (len(tried) == 1) for each in choices.tried)


def test_a_pilots_head_has_not_seen_the_pictures_held_out(make_folder: Any) -> None:
    """On noise, a head that can learn it by heart is sure of the pictures it was trained on, and wrong of others."""
    root = make_folder(train=40, val=2)
    stream = np.random.default_rng(0)
    for path in sorted(root.rglob("*.png")):
        Image.fromarray(stream.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)

    def enlarge(model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        with torch.no_grad():
            norms[-1].weight.mul_(1e3)

    config = plain(root, arm="relu", epochs=11, lr=1e-12, no_aug=True)
    tried = choices_of(config, scan_folder(root), enlarge).tried
    (frozen,) = (each for each in tried if each.bn_stats == "frozen")
    assert frozen.loss is not None
    assert frozen.loss > 1.05 * math.log(3)


def test_statistics_that_fit_no_picture_are_not_kept(make_folder: Any) -> None:
    """Running statistics a thousand times too large let no picture through but by the batch's own."""
    root = make_folder(train=24, val=2)
    folder, config = scan_folder(root), settings(root, arm="relu", lr=1e-3)

    def spoil(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.mul_(1e6)

    choices = choices_of(config, folder, spoil)
    assert choices.chosen.bn_stats == "batch"
    assert choices.chosen.loss == min(each.loss for each in choices.tried)


def test_a_pilot_that_breaks_is_not_chosen_and_two_leave_what_is_usual(make_folder: Any) -> None:
    root = make_folder()
    folder, config = scan_folder(root), settings(root, arm="relu", lr=1e25, opt="sgd", head_lr=1e25)
    choices = choices_of(config, folder)
    assert [each.loss for each in choices.tried] == [float("inf")] * 2
    assert choices.chosen.bn_stats == "batch"
    assert [each["loss"] for each in choices.to_json()["tried"]] == [None, None]
    assert "no finite value" in next(choices.lines())


def test_an_exports_card_says_what_auto_came_to(make_folder: Any, tmp_path: Path) -> None:
    study = finetune(settings(make_folder(), output=tmp_path, name="s", epochs=1, baseline=False))
    (run,) = study.runs
    export(run.path, output=tmp_path / "out")
    shown = json.loads((tmp_path / "out" / "config.json").read_text())["arelu_tl"]["training"]
    assert {key: shown[key] for key in run.settled} == run.settled
    assert "auto" not in shown.values()
