"""A checkpoint's state that is not what this version saves is refused in one line that names it: nothing is trained on."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import GIVEN

import arelu_tl
from arelu_tl.errors import ArtefactError
from arelu_tl.experiment.finetune import resume_study
from arelu_tl.records import runs


@pytest.fixture(scope="module")
def study(make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one run that was stopped after its first epoch, as far as its summary tells."""
    config = arelu_tl.FinetuneConfig(
        data=make_folder(train=4, val=2), output=tmp_path_factory.mktemp("runs"), model="test_resnet", pretrained=False, **GIVEN,
        img_size=32, epochs=1, batch_size=8, workers=0, baseline=False, device="cpu", cache="off",
    )  # fmt: skip
    done = arelu_tl.finetune(config)
    summary = done.runs[0].path / runs.SUMMARY
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "status": "interrupted"}))
    return done.path


def spoilt(study: Path, there: Path, spoil: Callable[[dict[str, Any]], Any]) -> tuple[Path, Path]:
    """A copy of the study whose newest checkpoint's state is another, with its hash; and that checkpoint."""
    copy = Path(shutil.copytree(study, there / "study"))
    (checkpoint,) = copy.glob("*/checkpoints/step-*")
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    other = spoil(state)
    if isinstance(other, bytes):
        (checkpoint / "state.pt").write_bytes(other)
    else:
        torch.save(state if other is None else other, checkpoint / "state.pt")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256(
        (checkpoint / "state.pt").read_bytes()
    ).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return copy, checkpoint


def test_the_state_as_it_was_saved_is_gone_on_with(study: Path, tmp_path: Path) -> None:
    copy, _ = spoilt(study, tmp_path, lambda state: None)
    assert resume_study(copy).runs[0].status == "finished"


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {name: value for name, value in state.items() if name != key}


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a foreign key": (lambda state: state["loop"].update(speed=1), "unknown speed"),
    "a foreign key in a window": (
        lambda state: state["loop"]["window"].update(speed=1),
        "unknown speed",
    ),
    "a number that is none": (lambda state: state["loop"].update(step="many"), "step"),
    "a loop that is none": (lambda state: state.update(loop=[1]), "loop"),
    "no loop": (without("loop"), "loop"),
    "no optimiser": (without("optimizer"), "optimizer"),
    "another optimiser": (
        lambda state: state["optimizer"]["param_groups"].pop() and None,
        "parameter group",
    ),
    "an optimiser that is none": (lambda state: state.update(optimizer=3), "optimizer"),
    "no scaler": (without("scaler"), "scaler"),
    "no lengths": (without("lengths"), "lengths"),
    "lengths that are none": (lambda state: state.update(lengths={"metrics": "long"}), "lengths"),
    "nothing": (lambda state: b"", "state.pt"),
    "text": (lambda state: b"hello world", "state.pt"),
    "letters": (lambda state: b"a" * 1000, "state.pt"),
    "another archive": (lambda state: b"PK\x03\x04" + bytes(60), "state.pt"),
    "a list": (lambda state: [1], "not a training's state"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_another_state_is_refused_in_a_line_that_names_it(
    kind: str, study: Path, tmp_path: Path
) -> None:
    spoil, reason = SPOILT[kind]
    copy, checkpoint = spoilt(study, tmp_path, spoil)
    rows = (checkpoint.parents[1] / runs.METRICS).read_bytes()
    with pytest.raises(ArtefactError, match=reason) as refused:
        resume_study(copy)
    assert str(checkpoint.parents[1]) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (checkpoint.parents[1] / runs.METRICS).read_bytes() == rows
