"""What another version wrote in another format is refused in one line, whoever reads it; what has no number is of format 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from sweeps import TINY

from arelu_tl.errors import ArtefactError
from arelu_tl.experiment.finetune import finetune, resume_study
from arelu_tl.models.load import load_model
from arelu_tl.records.config import check_config
from arelu_tl.records.runs import load_run, load_study

RUN = "arelu-lr0.001-s0"
# Where the number stands: of the run, of its study, of its newest checkpoint.
PLACES = [f"{RUN}/environment.json", "dataset.json", f"{RUN}/checkpoints/step-3/manifest.json"]
READERS: dict[str, list[str]] = {
    "resume": ["finetune", "--resume", "s", "--quiet"],
    "compare": ["compare", "s"],
    "export": ["export", f"s/{RUN}", "--format", "safetensors", "--output", "x"],
    "evaluate": ["evaluate", f"s/{RUN}", "pictures"],
    "predict": ["predict", f"s/{RUN}", "pictures"],
    "a checkpoint": ["predict", f"s/{RUN}/checkpoints/step-3", "pictures"],
}


@pytest.fixture(scope="module")
def place(make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a study s of one run, as if it had been interrupted."""
    folder: Path = tmp_path_factory.mktemp("format")
    pictures = shutil.copytree(make_folder(), folder / "pictures")
    chosen = {**TINY, "name": "s", "epochs": 1, "baseline": False, "lr": 1e-3, "device": "cpu"}
    run = finetune(check_config({**chosen, "data": pictures, "output": folder})).runs[0]
    (run.path / "summary.json").write_text(json.dumps({**run.summary, "status": "interrupted"}))
    return folder


def renumber(study: Path, name: str, number: object) -> None:
    path = study / name
    record = json.loads(path.read_text())
    assert record.pop("format") == 1
    path.write_text(json.dumps(record if number is None else {**record, "format": number}))


@pytest.mark.parametrize("command", READERS)
def test_a_run_of_another_format_is_one_line(command: str, place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    renumber(tmp_path / "s", PLACES[0], 2)
    done = run_command(*READERS[command], cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
    assert "is written in format 2, and arelu-tl" in done.stderr


@pytest.mark.parametrize("number", [2, 0, "1", True, None, [1]], ids=str)
@pytest.mark.parametrize("name", PLACES, ids=["run", "study", "checkpoint"])
def test_any_other_number_is_refused_and_none_is_format_1(
    name: str, number: object, place: Path, tmp_path: Path
) -> None:
    study = shutil.copytree(place / "s", tmp_path / "s")
    renumber(study, name, number)
    if number is None:
        assert load_study(study).runs[0].dataset is not None
        load_model(study / RUN / "checkpoints" / "step-3")
        return
    with pytest.raises(ArtefactError, match="format"):
        load_model(study / RUN / "checkpoints" / "step-3") if "step-3" in name else load_run(
            study / RUN
        )


def test_a_newer_checkpoint_of_another_format_is_not_passed_over(
    place: Path, tmp_path: Path
) -> None:
    study = shutil.copytree(place / "s", tmp_path / "s")
    renumber(study, PLACES[2], 2)
    with pytest.raises(ArtefactError, match="step-3 is written in format 2"):
        resume_study(study)
