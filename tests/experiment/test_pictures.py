"""A study's pictures: where they are kept changes no number, and one line says where that is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import GIVEN
from PIL import Image

from arelu_tl.backbone.loading import expected_data_config, load_backbone
from arelu_tl.experiment.devices import choose_workers
from arelu_tl.experiment.finetune import finetune
from arelu_tl.experiment.observer import Observer
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig


class Notes(Observer):
    def __init__(self) -> None:
        self.told: list[str] = []
        self.checked = 0

    def note(self, text: str) -> None:
        self.told.append(text)

    def checking_pictures(self, done: int, total: int) -> None:
        self.checked = done


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs many times larger than the input, so that they are reduced."""
    root = tmp_path_factory.mktemp("large")
    stream = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label in range(2):
            (root / split / str(label)).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(stream.integers(0, 256, (9, 12, 3), dtype=np.uint8))
                coarse.resize((240, 180), Image.Resampling.BICUBIC).save(
                    root / split / str(label) / f"{number}.jpg"
                )
    return root


Study = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def study(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Trains on them with the given settings: (all that was measured, what was noted)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def train(**settings: Any) -> tuple[Any, list[str]]:
        given = {
            "model": "test_resnet",
            "pretrained": False,
            "img_size": 32,
            "batch_size": 4,
            "epochs": 2,
            "workers": 0,
            **GIVEN,
        }
        notes = Notes()
        config = FinetuneConfig(
            data=pictures, output=tmp_path / "runs", lr=1e-3, device="cpu", **{**given, **settings}
        )
        record = finetune(config, observer=notes)
        rows = {}
        for run in sorted(record.path.glob("*/" + runs.METRICS)):
            rows[run.parent.name] = [
                {**json.loads(line), "seconds": 0} for line in run.read_text().splitlines()
            ]
            rows[run.parent.name].append(
                json.loads((run.parent / runs.SUMMARY).read_text())["pairing"]
            )
        return rows, notes.told

    return train


KEPT: list[dict[str, Any]] = [
    {"cache": "disk"},
    {"cache": "disk"},
    {"cache": "auto", "workers": 1},
    {"cache": "ram"},
    {"cache": "disk", "cache_limit": "20kB"},
]


# Without augmentation pictures are reduced further; where they lie is then one place as another.
@pytest.mark.parametrize(
    ("augmentation", "kinds"),
    [({}, KEPT), ({"no_aug": True}, KEPT[:2])],
    ids=["augmented", "no_aug"],
)
def test_where_pictures_are_kept_changes_no_number(
    study: Study, augmentation: dict[str, Any], kinds: list[dict[str, Any]]
) -> None:
    expected, told = study(cache="off", baseline=False, **augmentation)
    assert len(expected) == 1
    assert told == []
    for settings in kinds:
        assert study(**settings, baseline=False, **augmentation)[0] == expected


def test_a_line_says_how_many_are_kept_where_and_of_how_much_room(
    study: Study, tmp_path: Path
) -> None:
    # A limit that any disk has four times over: of what is free no more than a quarter is taken.
    _, (line,) = study(cache="disk", cache_limit="2MB")
    assert line.startswith(
        f"reduced pictures: 18 kept, 164 kB in {tmp_path}/cache/arelu-tl/pictures ("
    )
    assert "of at most 2 MB used" in line
    _, (line,) = study(cache="ram", cache_limit="60kB")
    assert " of 18 kept" in line
    assert "/dev/shm/" in line
    assert "decoded whenever they are needed" in line


def test_what_a_model_will_want_is_known_before_it_is_built() -> None:
    for name, size in (
        ("test_resnet", None),
        ("resnet18", 96),
        ("tf_efficientnet_lite0", None),
        ("vit_tiny_patch16_224", None),
    ):
        built = load_backbone(name, pretrained=False, img_size=size).data_config
        assert expected_data_config(name, size) == built
    for unknown in (
        "resnet1800",
        "resnet18.nowhere",
        "local-dir:nowhere",
        "hf-hub:nobody/nothing",
        "what:ever",
        "",
    ):
        assert expected_data_config(unknown, 64) is None


@pytest.mark.parametrize(
    ("device", "processors", "threads", "workers"),
    [
        ("cpu", 2, 2, 0),
        ("cpu", 2, 1, 1),
        ("cpu", 1, 1, 0),
        ("cpu", 16, 16, 4),
        ("cpu", 16, 1, 4),
        ("cpu", 8, 8, 2),
    ]
    + [("cuda", 16, 8, 8), ("cuda", 4, 4, 3), ("cuda", 1, 1, 0)],
)
def test_loading_gets_the_processors_that_training_leaves(
    device: str, processors: int, threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert choose_workers(None, torch.device(device), processors) == workers
    assert choose_workers(5, torch.device(device), processors) == 5
