"""A step in parts is the step; what runs out of memory is put back and taken in halves, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from test_fit import CPU, Memory, assert_same_weights, batches, make_model  # noqa: F401 (a fixture)
from test_fit import run as train
from torch import Tensor, nn

from arelu_tl.data.loader import Batches
from arelu_tl.errors import Interrupted
from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.surgery.convert import convert
from arelu_tl.training.fit import FitSettings, fit
from arelu_tl.training.interruption import StopRequest
from arelu_tl.training.optimisation import make_optimizer
from arelu_tl.training.step import Step, StepSettings


def plain_net() -> nn.Module:
    """Without BatchNorm and dropout, so that parts are nothing but parts."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    convert(model, example_input=torch.zeros(1, 3, 8, 8))
    return model.double()


def some_batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    stream = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, 3, 8, 8, generator=stream, dtype=torch.float64),
            torch.randint(0, 3, (n,), generator=stream),
        )
        for n in sizes
    ]


def limit(model: nn.Module, pictures: int) -> None:
    """A machine whose memory holds the activations of so many pictures."""

    def too_much(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if len(given[0]) > pictures:
            raise torch.OutOfMemoryError(f"{len(given[0])} pictures")

    next(
        m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)
    ).register_forward_hook(too_much)


def gradients(
    model: nn.Module,
    given: list[tuple[Tensor, Tensor]],
    heard: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> tuple[list[Tensor], list[tuple[float, float]], Step]:
    step = Step(
        model,
        make_optimizer(model, [], OptimizerSettings(opt="sgd", lr=0.1)),
        StepSettings(**settings),
        CPU,
        heard,
    )
    step.train_mode()
    told = step.gradients(given, 3)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], told, step


@pytest.mark.parametrize("sizes", [(8,), (7,), (5, 8, 3)])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7])
def test_parts_add_up_to_the_mean_over_the_whole(sizes: tuple[int, ...], micro_batch: int) -> None:
    whole, told, _ = gradients(plain_net(), some_batches(*sizes), smoothing=0.1)
    parts, told_of_parts, _ = gradients(
        plain_net(), some_batches(*sizes), smoothing=0.1, micro_batch=micro_batch
    )
    assert len(whole) == len(list(plain_net().parameters()))
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert [correct for _, correct in told] == [correct for _, correct in told_of_parts]
    assert [loss for loss, _ in told] == pytest.approx(
        [loss for loss, _ in told_of_parts], rel=1e-6
    )


@pytest.mark.parametrize(("room", "at_once"), [(4, 4), (3, 2), (1, 1)])
def test_what_runs_out_of_memory_is_taken_in_halves_with_the_same_gradient(
    room: int, at_once: int
) -> None:
    model, heard = plain_net(), list[str]()
    limit(model, room)
    ours, _, step = gradients(model, some_batches(8, 8), heard.append)
    theirs, _, _ = gradients(plain_net(), some_batches(8, 8))
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-10, atol=1e-12)
    assert step.micro_batch == at_once
    assert len(heard) == {4: 1, 2: 2, 1: 3}[at_once]
    assert f"goes on with {at_once}" in heard[-1]
    assert all("\n" not in line for line in heard)


def test_a_step_that_ran_out_of_memory_is_the_step_that_was_taken_in_parts_from_the_start() -> None:
    """To the bit: BatchNorm's statistics, dropout and gradients of the failed attempt leave no trace."""
    given = [
        (pictures[:, :, :8, :8].float().repeat(1, 1, 4, 4), labels)
        for pictures, labels in some_batches(8, 8)
    ]
    broken, whole = make_model(), make_model()
    limit(broken, 4)
    ours, told, _ = gradients(broken, given)
    theirs, told_of_parts, _ = gradients(whole, given, micro_batch=4)
    assert told == told_of_parts
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert_same_weights(broken, whole)
    assert whole.get_submodule("bn1").num_batches_tracked == 4


def test_one_picture_too_much_is_the_error_itself() -> None:
    model = plain_net()
    limit(model, 0)
    with pytest.raises(torch.OutOfMemoryError, match="1 pictures"):
        gradients(model, some_batches(4))


class Cramped(nn.Module):
    """``make_model`` on a machine that holds three pictures in training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 3:
            raise torch.OutOfMemoryError(f"{len(x)} pictures")
        y: Tensor = self.model(x)
        return y


def cramped(
    batches: tuple[Batches, Batches],
    journal: Memory,
    stop: StopRequest,
    saved: Any = None,
) -> nn.Module:
    model = Cramped()
    optimizer = make_optimizer(model, ["model.fc"], OptimizerSettings(opt="adamw", lr=1e-3))
    if saved is not None:
        model.load_state_dict(saved[1])
    resume = None if saved is None else copy.deepcopy(saved[2])
    settings = FitSettings(epochs=2, eval_every=3)
    fit(
        model,
        *batches,
        optimizer,
        None,
        settings,
        device=CPU,
        journal=journal,
        stop=stop,
        resume=resume,
    )
    return model


def test_a_run_that_ran_out_of_memory_is_resumed_in_its_parts_and_ends_bit_equal(
    batches: tuple[Batches, Batches],
) -> None:
    whole = Memory()
    model = cramped(batches, whole, StopRequest())
    assert len(whole.notes) == 1
    assert whole.saved[-1][2]["loop"]["micro_batch"] == 3
    stop = StopRequest()
    broken = Memory(stop, 3)
    with pytest.raises(Interrupted):
        cramped(batches, broken, stop)
    rest = Memory()
    resumed = cramped(batches, rest, StopRequest(), broken.saved[-1])
    assert rest.notes == []
    assert broken.rows + rest.rows == whole.rows
    assert_same_weights(resumed, model)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_035"])
def test_channels_last_is_the_same_training_up_to_rounding(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    convert(model, example_input=torch.zeros(1, 3, 32, 32))
    given = [(torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))]
    layouts = []
    twin = copy.deepcopy(model.double())
    next(m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)).register_forward_hook(
        lambda _, given, output: layouts.append(
            output.is_contiguous(memory_format=torch.channels_last)
        )
    )
    ours, _, _ = gradients(twin, given, channels_last=True)
    theirs, _, _ = gradients(model, given)
    assert layouts == [True]
    assert not any(
        m.is_contiguous(memory_format=torch.channels_last)
        for m in theirs
        if m.dim() == 4 and min(m.shape) > 1
    )
    for mine, yours in zip(ours, theirs, strict=True):
        assert (mine - yours).norm() <= 1e-8 * yours.norm() + 1e-10


def test_training_with_channels_last_is_resumed_to_the_bit(
    batches: tuple[Batches, Batches],
) -> None:
    settings = FitSettings(epochs=1, channels_last=True, ema_decay=0.9)
    model, whole, _ = train(batches, settings)
    stop = StopRequest()
    broken = Memory(stop, 2)
    with pytest.raises(Interrupted):
        train(batches, settings, journal=broken, stop=stop)
    resumed, rest, _ = train(batches, settings, resume_from=broken.saved[-1])
    assert broken.rows + rest.rows == whole.rows
    assert_same_weights(resumed, model)
