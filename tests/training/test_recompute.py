"""Gradient checkpointing: the same gradients and statistics, in less memory; refused where it cannot be had."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from test_fit import CPU
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from arelu_tl.errors import ConfigError
from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.surgery.convert import convert
from arelu_tl.training.optimisation import make_optimizer
from arelu_tl.training.recompute import enable_grad_checkpointing
from arelu_tl.training.step import Batch, Step, StepSettings
from arelu_tl.training.trials import check_recomputation

# Residual, inverted residual, pre-activation and concatenating nets.
# The last one takes longest, and differs in nothing that the others do not have.
NETS = (
    "test_resnet", "mobilenetv2_035", "regnetx_002", "resnetv2_18",
    pytest.param("densenet121", marks=pytest.mark.slow),
)  # fmt: skip


def net(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=3, **options)
    convert(model, example_input=torch.zeros(1, 3, 64, 64))
    return model


def some(dtype: torch.dtype = torch.float64) -> Batch:
    return torch.randn(
        3, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=dtype
    ), torch.tensor([0, 1, 2])


def step(model: nn.Module, **settings: Any) -> dict[str, Tensor]:
    """Gradients and buffers after the gradient of a step was taken."""
    taking = Step(
        model,
        make_optimizer(model, [], OptimizerSettings(opt="sgd", lr=0.1)),
        StepSettings(**settings),
        CPU,
    )
    taking.train_mode()
    taking.gradients([some()], 0)
    told = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return told | {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize("name", NETS)
def test_checkpointing_gives_the_same_gradients_and_statistics(name: str) -> None:
    model = net(name).double()
    twin = copy.deepcopy(model)
    enable_grad_checkpointing(twin)
    ours, theirs = step(twin, grad_checkpointing=True), step(model)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-8, atol=1e-10, msg=key)
    counters = {int(b) for key, b in ours.items() if key.endswith("num_batches_tracked")}
    assert counters == {1}


def test_recomputing_would_count_every_batch_twice() -> None:
    """What ``grad_checkpointing`` of the step's settings is for."""
    model = net("test_resnet").double()
    enable_grad_checkpointing(model)
    counters = {int(b) for key, b in step(model).items() if key.endswith("num_batches_tracked")}
    assert counters == {1, 2}


def kept_bytes(model: nn.Module) -> int:
    """What is kept between the forward and the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(some(torch.float32)[0])
    assert logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", ["regnetx_002", "mobilenetv2_035"])
def test_checkpointing_keeps_less(name: str) -> None:
    model = net(name)
    plain = kept_bytes(model)
    enable_grad_checkpointing(model)
    assert kept_bytes(model) < 0.7 * plain


def test_a_net_without_checkpointing_is_refused_in_a_line() -> None:
    for model in (nn.Sequential(nn.Linear(2, 2)), timm.create_model("selecsls42", num_classes=2)):
        with pytest.raises(ConfigError, match="has no gradient checkpointing") as caught:
            enable_grad_checkpointing(model)
        assert "\n" not in str(caught.value)


class Overwriting(nn.Module):
    """A block that overwrites its own input, which checkpointing computes it from once more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.conv = (
            nn.Conv2d(3, 4, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 3, 1),
        )
        self.enabled = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.enabled = enable

    def block(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.act(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = checkpoint(self.block, x, use_reentrant=False) if self.enabled else self.block(x)
        return x.mean((2, 3))


class Functional(Overwriting):
    """Its ReLU is a call within what is checkpointed: computed once more, it would be a ReLU."""

    def block(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(nn.functional.relu(x))
        return y


@pytest.mark.parametrize("kind", [Overwriting, Functional])
def test_gradients_that_checkpointing_would_change_are_refused_before_training(
    kind: type[Overwriting],
) -> None:
    torch.manual_seed(0)
    model = kind()
    convert(model, example_input=torch.zeros(1, 3, 64, 64))
    enable_grad_checkpointing(model)
    with pytest.raises(ConfigError, match="leave out `grad_checkpointing`") as caught:
        check_recomputation(model, some(torch.float32), StepSettings(grad_checkpointing=True), CPU)
    assert "\n" not in str(caught.value)


def test_gradients_that_checkpointing_leaves_alone_are_accepted() -> None:
    model = net("test_resnet")
    enable_grad_checkpointing(model)
    check_recomputation(model, some(torch.float32), StepSettings(grad_checkpointing=True), CPU)
