"""A reloaded model is the one that was trained, whatever its architecture was built with."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from trained_runs import write_trained_run

import arelu_tl
from arelu_tl.errors import ArtefactError
from arelu_tl.experiment.finetune import resume_study
from arelu_tl.explain.sites.inspection import inspect_backbone
from arelu_tl.exporting.export import export
from arelu_tl.records import runs
from arelu_tl.records.storage import sha256_file
from arelu_tl.records.weights import load_weights, save_weights
from arelu_tl.training.checkpoint import list_checkpoints


def test_arguments_of_a_local_model_are_kept(tmp_path: Path, make_folder: Any) -> None:
    """output_stride changes no tensor's shape: a strict load would succeed on the wrong architecture."""
    source = tmp_path / "source"
    source.mkdir()
    original = timm.create_model("test_resnet", output_stride=16)
    save_file(original.state_dict(), str(source / "model.safetensors"))
    config = {
        "architecture": "test_resnet",
        "num_classes": 1000,
        "model_args": {"output_stride": 16},
    }
    pretrained = {
        "input_size": [3, 64, 64],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "classifier": "fc",
    }
    (source / "config.json").write_text(json.dumps({**config, "pretrained_cfg": pretrained}))
    study = arelu_tl.finetune(
        arelu_tl.FinetuneConfig(
            data=make_folder(),
            output=tmp_path / "runs",
            model=f"local-dir:{source}",
            epochs=1,
            batch_size=8,
            workers=0,
            baseline=False,
            device="cpu",
        )
    )
    for each in source.iterdir():
        each.unlink()  # the run folder stands alone
    model, card = arelu_tl.load_model(study.runs[0].path)
    assert card.model_args["output_stride"] == 16
    with torch.inference_mode():
        assert model.forward_features(torch.zeros(1, 3, 64, 64)).shape[-1] == 4  # type: ignore[operator]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_in_a_trained_model_is_named(value: float, tmp_path: Path) -> None:
    path = write_trained_run(tmp_path, "test_resnet")
    export(path, "safetensors", tmp_path / "exported")
    for place in (path / runs.BEST, tmp_path / "exported" / "model.safetensors"):
        weights, card = load_weights(place)
        weights["layer1.0.bn1.running_var"][3] = value
        save_weights(place, weights, card)
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    config["sha256"] = {
        "model.safetensors": sha256_file(tmp_path / "exported" / "model.safetensors")
    }
    (tmp_path / "exported" / "config.json").write_text(json.dumps(config))
    for place in (path, tmp_path / "exported"):
        with pytest.raises(
            ArtefactError,
            match=rf"{place.name}: layer1\.0\.bn1\.running_var holds . NaN and . infinite of its 32",
        ):
            arelu_tl.load_model(place)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stray.weight", 1.0, r"step-.*does not fit .*stray\.weight"),
        ("fc.bias", float("nan"), r"step-.*: fc\.bias holds 3 NaN"),
    ],
)
def test_a_checkpoint_of_other_weights_is_not_gone_on_from(
    key: str, value: float, message: str, tmp_path: Path, make_folder: Any
) -> None:
    options: dict[str, Any] = {
        "model": "test_resnet",
        "pretrained": False,
        "img_size": 32,
        "epochs": 1,
        "workers": 0,
    }
    data = make_folder()
    config = arelu_tl.FinetuneConfig(
        data=data, output=tmp_path, name="s", arm="relu", baseline=False, device="cpu", **options
    )
    (run,) = arelu_tl.finetune(config).runs
    (run.path / runs.SUMMARY).unlink()  # as if it had been ended
    _, checkpoint = list_checkpoints(run.path / runs.CHECKPOINTS)[-1]
    weights, _ = load_weights(checkpoint / "model.safetensors")
    save_weights(checkpoint / "model.safetensors", {**weights, key: torch.full((3,), value)})
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = sha256_file(checkpoint / "model.safetensors")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=message) as caught:
        resume_study(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_inspection_takes_any_number_of_pictures(make_folder: Any) -> None:
    config = arelu_tl.FinetuneConfig(
        model="test_resnet", pretrained=False, img_size=32, calibration_images=33
    )
    report = inspect_backbone(config, make_folder(train=11, val=1)).report
    assert report.drift is not None
    assert report.batchnorm_layers > 0


def test_calibrated_drifts_alike_whichever_init_was_asked_for(make_folder: Any) -> None:
    asked = {"model": "test_resnet", "pretrained": False, "img_size": 32, "calibration_images": 8}
    pictures = make_folder(train=4, val=1)
    seen = [
        inspect_backbone(arelu_tl.FinetuneConfig(**asked, init=init), pictures)
        for init in ("calibrated", "paper")
    ]
    drifts = [{init: report.drift for init, report in each.inits.items()} for each in seen]
    assert drifts[0] == drifts[1]
