"""Both arms measured on the same batches, along a training that begins here or one that is over: they tell the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import GIVEN

import arelu_tl
from arelu_tl.errors import ArtefactError, ConfigError, DataError
from arelu_tl.experiment.observer import Observer
from arelu_tl.explain.gradients.report import GradientPoint, GradientReport
from arelu_tl.explain.gradients.study import gradients_of_run, gradients_of_training
from arelu_tl.records.config import FinetuneConfig, check_config
from arelu_tl.records.runs import StudyRecord

TINY = {
    "model": "test_resnet",
    "pretrained": False,
    **GIVEN,
    "img_size": 32,
    "workers": 0,
    "device": "cpu",
    "batch_size": 8,
}


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder(train=11, val=2)
    return folder


def tiny(pictures: Path, place: Path, **settings: Any) -> FinetuneConfig:
    return check_config({**TINY, "data": pictures, "output": place, "lr": 1e-2, **settings})


@pytest.fixture(scope="module")
def config(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    return tiny(
        pictures,
        tmp_path_factory.mktemp("runs"),
        epochs=2,
        save_every="3",
        drop=0.2,
        warmup_epochs=1,
        color_jitter=0,
    )


@pytest.fixture(scope="module")
def study(config: FinetuneConfig) -> StudyRecord:
    return arelu_tl.finetune(config)


@pytest.fixture(scope="module")
def along(config: FinetuneConfig) -> GradientReport:
    """Eight steps: all of the training that ``study`` has done."""
    return gradients_of_training(config, steps=100, batches=2)


@pytest.fixture(scope="module")
def after(study: StudyRecord) -> GradientReport:
    return gradients_of_run(study.path / "arelu-lr0.01-s0", batches=2)


def steps(report: GradientReport, arm: str) -> dict[int, GradientPoint]:
    return {point.step: point for point in report.of(arm)}


def test_a_training_is_measured_at_its_start_and_at_four_points_in_both_arms(
    along: GradientReport,
) -> None:
    assert along.arms == ["relu", "arelu"]
    for arm in along.arms:
        assert [(p.step, p.what) for p in along.of(arm)] == [
            (0, "start"),
            *((n, "training") for n in (2, 4, 6, 8)),
        ]
    names = [[site.name for site in point.sites] for point in along.points]
    assert len(names[0]) == 12
    assert all(each == names[0] for each in names)
    assert (along.batches, along.batch_size) == (2, 8)


def test_what_a_run_tells_afterwards_is_what_its_training_told_to_the_bit(
    along: GradientReport, after: GradientReport
) -> None:
    for arm in ("relu", "arelu"):
        then, now = steps(along, arm), steps(after, arm)
        assert now[0] == then[0]
        both = sorted(set(then) & set(now))
        assert both[0] == 0
        assert both[-1] == 8
        for step in both[1:]:
            assert now[step].what in (f"step-{step}", "best")
            assert (now[step].sites, now[step].weights) == (then[step].sites, then[step].weights)
        assert then[8].sites != then[0].sites
    # Every state that is kept is there, and the best one's.
    assert {6, 8} <= set(steps(after, "relu"))


def test_arelu_lets_pass_what_relu_cuts_off(along: GradientReport) -> None:
    relu, arelu = along.of("relu")[-1], along.of("arelu")[-1]
    for cut, leaking in zip(relu.sites[3:], arelu.sites[3:], strict=True):
        assert cut.zero > 0.1
        assert leaking.zero < cut.zero


def test_the_baselines_run_names_the_same_pair_and_so_does_the_study(
    study: StudyRecord, after: GradientReport
) -> None:
    assert gradients_of_run(study.path / "relu-lr0.01-s0", batches=2) == after
    assert gradients_of_run(study.path, batches=2) == after


def test_a_run_without_a_partner_stands_beside_the_others_start(
    study: StudyRecord, after: GradientReport, tmp_path: Path
) -> None:
    for name in ("dataset.json", "split.csv", "study.yaml"):
        shutil.copy(study.path / name, tmp_path / name)
    shutil.copytree(study.path / "arelu-lr0.01-s0", tmp_path / "moved")
    notes = Notes()
    found = gradients_of_run(tmp_path / "moved", batches=2, observer=notes)
    assert sum("no relu run" in note for note in notes.notes) == 1
    assert [(p.arm, p.step) for p in found.points] == [
        ("relu", 0),
        *(("arelu", p.step) for p in after.of("arelu")),
    ]
    assert found.of("arelu") == after.of("arelu")
    assert found.points[0] == after.points[0]


def test_pictures_that_are_others_are_refused_unless_named(
    study: StudyRecord, make_folder: Any, tmp_path: Path
) -> None:
    copied = tmp_path / "study"
    shutil.copytree(study.path, copied)
    dataset = json.loads((copied / "dataset.json").read_text())
    (copied / "dataset.json").write_text(json.dumps({**dataset, "fingerprint": "0" * 64}))
    with pytest.raises(DataError, match="not those that"):
        gradients_of_run(copied, batches=1)
    others, notes = make_folder(train=6, val=2), Notes()
    found = gradients_of_run(copied, others, batches=1, observer=notes)
    assert found.data == others.name
    assert sum("other pictures" in note for note in notes.notes) == 2
    renamed = shutil.copytree(others, tmp_path / "renamed")
    for half in ("train", "val"):
        first = min((renamed / half).iterdir())
        first.rename(first.with_name("another"))
    with pytest.raises(DataError, match="classes are not those"):
        gradients_of_run(copied, renamed, batches=1)
    (copied / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"no dataset\.json beside .*; name a folder"):
        gradients_of_run(copied, batches=1)
    with pytest.raises(DataError, match="say where they are"):
        gradients_of_run(copied, tmp_path / "nowhere")


def test_damaged_weights_and_others_classes_are_said(
    study: StudyRecord, make_folder: Any, tmp_path: Path
) -> None:
    copied = tmp_path / "study"
    shutil.copytree(study.path, copied)
    with pytest.raises(DataError, match="classes are not those"):
        gradients_of_run(copied, make_folder(classes=4, train=6, val=2), batches=1)
    (copied / "arelu-lr0.01-s0" / "checkpoints" / "step-8" / "model.safetensors").write_bytes(
        b"torn"
    )
    with pytest.raises(ArtefactError, match="step-8"):
        gradients_of_run(copied, batches=1)


def test_a_frozen_backbones_sites_are_measured_and_the_layers_that_learn(
    pictures: Path, tmp_path: Path
) -> None:
    found = gradients_of_training(
        tiny(pictures, tmp_path, freeze="backbone", no_aug=True), steps=1, batches=1
    )
    assert [weight.name for weight in found.points[0].weights] == ["fc"]
    assert all(len(point.sites) == 12 for point in found.points)
    assert [point.step for point in found.of("arelu")] == [0, 1]


def test_a_study_of_several_pairs_has_to_be_told_which_and_relu_has_no_partner_of_itself(
    study: StudyRecord, pictures: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "study"
    shutil.copytree(study.path, copied)
    shutil.copytree(copied / "arelu-lr0.01-s0", copied / "again")
    with pytest.raises(DataError, match=r"name one of its runs \(again, arelu-lr0\.01-s0\)"):
        gradients_of_run(copied)
    with pytest.raises(ConfigError, match="choose another `arm`"):
        gradients_of_training(tiny(pictures, tmp_path, arm="relu"))
