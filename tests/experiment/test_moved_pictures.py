"""A study whose pictures have moved goes on: the fingerprint decides, not the path, and whatever refers to them follows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import GIVEN
from sweeps import Watching, grid

import arelu_tl
from arelu_tl.analysis.comparison import compare_runs
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.experiment.finetune import resume_study
from arelu_tl.experiment.sweep import resumed_config, sweep
from arelu_tl.exporting.export import export
from arelu_tl.models.run_pictures import run_pictures
from arelu_tl.records import runs
from arelu_tl.records.trained_on import TrainedOn


@pytest.fixture
def place(make_folder: Any, tmp_path: Path) -> Path:
    """A study that was stopped after its first run, whose pictures have moved to ``new``; ``other`` differs by one picture."""
    shutil.copytree(make_folder(train=4, val=2), tmp_path / "old")
    config = arelu_tl.FinetuneConfig(
        data=tmp_path / "old", output=tmp_path, name="study", model="test_resnet", pretrained=False, **GIVEN, img_size=32,
        epochs=1, batch_size=8, workers=0, device="cpu",
    )  # fmt: skip
    study = arelu_tl.finetune(config)
    shutil.rmtree(study.path / "arelu-lr0.0001-s0")
    shutil.copytree(tmp_path / "old", tmp_path / "other")
    (tmp_path / "other" / "train" / "class 0" / "0.png").unlink()
    (tmp_path / "old").rename(tmp_path / "new")
    return tmp_path


def test_a_study_goes_on_where_its_pictures_are_now(place: Path) -> None:
    study = place / "study"
    (study / runs.TRAINED_ON).unlink()  # as before there was such a record
    before = (study / runs.DATASET).read_bytes()
    with pytest.raises(
        DataError,
        match=r"old: the pictures of .*study are not there any more.*finetune --resume .*study --data",
    ):
        resume_study(study)
    with pytest.raises(
        DataError,
        match=r"other: the pictures are not those .* \(fingerprint .*\w{12} here, \w{12} then\)",
    ):
        resume_study(study, data=place / "other")
    assert runs.load_study(study).config.data == place / "old"
    done = resume_study(study, data=place / "new")
    assert [run.status for run in done.runs] == ["finished"] * 2
    assert done.config.data == place / "new"
    assert {run.config.data for run in done.runs} == {place / "new"}
    assert (study / runs.DATASET).read_bytes() == before
    assert len(TrainedOn.read((study / runs.TRAINED_ON).read_bytes(), "").content) == 12 * 8
    (compared,) = compare_runs(done.runs).rates
    assert compared.pairs
    pictures = run_pictures(done.runs[0].path)
    assert pictures is not None
    assert pictures.root == place / "new"
    notes: list[str] = []
    export(done.runs[0].path, output=place / "export", note=notes.append)
    assert notes == []


def test_a_sweep_goes_on_where_its_pictures_are_now(make_folder: Any, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(make_folder(train=4, val=2), old)
    settings = {"lrs": [1e-3], "epochs": 1}
    path = sweep(grid(old, tmp_path, **settings, arms=["relu"])).path
    old.rename(new)
    with pytest.raises(
        DataError,
        match=r"old: the pictures of .*grid are not there any more.*sweep --resume .*grid --data",
    ):
        resumed_config(path, {})
    assert resumed_config(path, {"data": new}).data == new
    watching = Watching()
    study = sweep(grid(new, tmp_path, **settings), observer=watching)
    assert watching.trained == ["arelu-lr0.001-s0"]
    assert {run.config.data for run in study.runs} == {study.config.data} == {new}
    assert compare_runs(study.runs).rates[0].pairs
    next(new.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="the pictures are not those"):
        sweep(resumed_config(path, {"data": new}))
    weights = grid(new, tmp_path, **settings).model_copy(
        update={"pretrained": True, "pretrained_path": new}
    )
    with pytest.raises(ConfigError, match="pretrained_path"):
        sweep(weights)
