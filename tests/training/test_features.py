"""A head on features is the frozen net, trained: the same rows up to rounding, the whole net's weights, resumable to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_fit import CPU, Memory, assert_same_weights
from torch import Tensor, nn

from arelu_tl.data.folder import scan_folder
from arelu_tl.data.loader import eval_view, make_eval_batches, make_train_batches
from arelu_tl.errors import Interrupted
from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.surgery.convert import convert
from arelu_tl.training.features import FeatureBatches, head_on_features
from arelu_tl.training.fit import FitSettings, fit
from arelu_tl.training.interruption import StopRequest
from arelu_tl.training.optimisation import freeze_backbone, make_optimizer

DATA_CONFIG = {
    "input_size": [3, 32, 32],
    "interpolation": "bilinear",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "crop_pct": 1.0,
}


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder()
    return folder


def frozen_model(arm: str = "leaky", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "test_resnet", num_classes=3, zero_init_last=False, **options
    )
    if arm != "relu":
        convert(model, arm=arm, example_input=torch.zeros(1, 3, 32, 32))
    freeze_backbone(model, ["fc"])
    return model


def train(
    pictures: Path,
    *,
    alone: bool,
    drop: float = 0.0,
    journal: Memory,
    stop: StopRequest | None = None,
    saved: Any = None,
    **more: Any,
) -> tuple[nn.Module, int]:
    """(the trained net, how many pictures have passed its stem)."""
    folder = scan_folder(pictures)
    model = frozen_model(drop_rate=drop)
    transform = eval_view(DATA_CONFIG)
    ours = make_train_batches(folder.root, folder.splits["train"], transform, batch_size=5, seed=3)
    val = make_eval_batches(folder.root, folder.splits["val"], transform, batch_size=5)
    in_order = make_eval_batches(folder.root, folder.splits["train"], transform, batch_size=5)
    optimizer = make_optimizer(model, ["fc"], OptimizerSettings(opt="adamw", lr=1e-2))
    settings = FitSettings(
        epochs=4, seed=7, frozen_statistics=True, eval_every=3, log_every=2, **more
    )
    if saved is not None:
        model.load_state_dict(saved[1])
    given: tuple[Any, Any, Any] = model, ours, val
    if alone:
        head = head_on_features(model, ["fc"], next(ours.epoch())[0], CPU, drop=drop)
        assert head is not None
        given = (
            head, FeatureBatches(head, ours, in_order, CPU, settings), FeatureBatches(head, val, val, CPU, settings),
        )  # fmt: skip
    stem = model.get_submodule("conv1")
    passed = [0]
    stem.register_forward_pre_hook(lambda _, x: passed.__setitem__(0, passed[0] + len(x[0])))
    fit(
        *given, optimizer, None, settings, device=CPU, journal=journal, stop=stop or StopRequest(),
        resume=None if saved is None else copy.deepcopy(saved[2]),
    )  # fmt: skip
    return model, passed[0]


@pytest.mark.parametrize(
    "more",
    [{}, {"drop": 0.4}, {"ema_decay": 0.9, "grad_accum_steps": 2}, {"channels_last": True}],
    ids=str,
)
def test_the_head_on_features_learns_as_it_does_in_the_net(
    pictures: Path, more: dict[str, Any]
) -> None:
    whole, alone = Memory(), Memory()
    model, _ = train(pictures, alone=False, journal=whole, **more)
    twin, passed = train(pictures, alone=True, journal=alone, **more)
    assert passed == 24 + 12  # each picture once, of 4 epochs
    assert len(whole.rows) == len(alone.rows)
    for ours, theirs in zip(alone.rows, whole.rows, strict=True):
        assert ours.keys() == theirs.keys()
        assert {k: v for k, v in ours.items() if k != "loss"} == {
            k: v for k, v in theirs.items() if k != "loss"
        }
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert [saved[2]["loop"]["digests"] for saved in alone.saved] == [
        saved[2]["loop"]["digests"] for saved in whole.saved
    ]
    for ours, theirs in zip(alone.saved, whole.saved, strict=True):
        assert ours[1].keys() == theirs[1].keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[key], value, rtol=1e-3, atol=1e-5)
    assert not torch.equal(
        twin.get_submodule("fc").weight, frozen_model().get_submodule("fc").weight
    )


@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_an_interrupted_head_is_resumed_to_the_bit(pictures: Path, stop_at: int) -> None:
    whole, stop = Memory(), StopRequest()
    model, _ = train(pictures, alone=True, drop=0.4, journal=whole)
    broken, rest = Memory(stop, stop_at), Memory()
    with pytest.raises(Interrupted):
        train(pictures, alone=True, drop=0.4, journal=broken, stop=stop)
    resumed, _ = train(pictures, alone=True, drop=0.4, journal=rest, saved=broken.saved[-1])
    assert broken.rows + rest.rows == whole.rows
    assert_same_weights(resumed, model)


@pytest.mark.parametrize(
    ("arm", "options"),
    [
        ("arelu", {}),
        ("prelu", {}),
        ("rrelu", {}),
        ("relu", {"drop_path_rate": 0.2}),
        ("relu", {"drop_block_rate": 0.2}),
    ],
    ids=str,
)
def test_a_trunk_that_learns_or_is_random_is_run_every_time(
    arm: str, options: dict[str, Any]
) -> None:
    model = frozen_model(arm, **options)
    assert head_on_features(model, ["fc"], torch.randn(4, 3, 32, 32), CPU) is None


@pytest.mark.parametrize("arm", ["relu", "leaky", "arelu-frozen", "gelu"])
def test_a_trunk_with_nothing_to_learn_is_run_once(arm: str) -> None:
    assert head_on_features(frozen_model(arm), ["fc"], torch.randn(4, 3, 32, 32), CPU) is not None


def test_two_classifiers_or_a_dropout_that_is_not_told_are_run_as_they_are() -> None:
    given = torch.randn(4, 3, 32, 32)
    assert head_on_features(frozen_model(drop_rate=0.5), ["fc"], given, CPU) is None
    assert head_on_features(frozen_model(), ["fc", "layer4"], given, CPU) is None
    assert (
        head_on_features(timm.create_model("test_resnet", num_classes=3), ["fc"], given, CPU)
        is None
    )


@pytest.mark.parametrize("arm", ["relu", "leaky", "arelu-frozen", "gelu"])
def test_a_frozen_prefix_keeps_nothing_for_the_backward_pass(arm: str) -> None:
    """Autograd itself sees to it; what is kept is the classifier's input and what follows."""
    model = frozen_model(arm).train()
    kept: list[tuple[int, ...]] = []
    known = {p.data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nn.functional.cross_entropy(
            model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])
        ).backward()
    assert kept
    assert all(len(shape) <= 2 for shape in kept)


def test_a_stem_before_the_first_site_that_learns_keeps_nothing() -> None:
    model = frozen_model("arelu").train()
    graphs: list[bool] = []
    model.get_submodule("conv1.1").register_forward_hook(
        lambda _, given, output: graphs.append(output.requires_grad)
    )
    assert model(torch.randn(4, 3, 32, 32)).requires_grad
    assert graphs == [False]
