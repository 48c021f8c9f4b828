"""``head_lr: auto``: each arm's own rate, chosen on training pictures alone, recorded, kept on resuming."""

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
from arelu_tl.experiment.finetune import finetune, resume_study
from arelu_tl.experiment.head_rate import find_head_rate
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
    return find_head_rate(config, folder, begin(config, folder, CPU).backbone, CPU)


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
    find_head_rate(config, folder, backbone, CPU)
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
        record = json.loads((run.path / runs.HEAD_RATE).read_text())
        assert run.config.head_lr == "auto"
        assert run.summary["head_lr"] == record["lr"]
        assert record["lr"] in [lr for lr, _ in record["tried"]]
        assert any(f"{run.config.arm}: head rate {record['lr']:g}" in note for note in notes)
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

    monkeypatch.setattr(run_module, "find_head_rate", fail)
    resumed = resume_study(tmp_path / "halved")
    (one,), (other,) = whole.runs, resumed.runs
    assert other.summary["head_lr"] == one.summary["head_lr"]
    assert [row["loss"] for row in other.rows] == [row["loss"] for row in one.rows]
