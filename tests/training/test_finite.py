"""Numbers that are none end a training before they move a weight, and the message names what was first."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_fit import CPU
from torch import Tensor, nn

from arelu_tl.errors import NonFiniteError
from arelu_tl.training.finite import all_finite, nonfinite_layer
from arelu_tl.training.step import Step, StepSettings


class Explodes(torch.autograd.Function):
    """Finite forward, undefined backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * math.nan


class Net(nn.Module):
    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.middle = nn.Linear(4, 4), nn.Linear(4, 3), middle
        self.log = Log()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.middle(self.log(self.first(x))))
        return y


class Log(nn.Module):
    """Identity, or the logarithm of nothing."""

    broken = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x * 0 - 1) if self.broken else x


BATCH = (
    torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1, 2, 0, 1, 2]),
)


def take(net: Net) -> None:
    step = Step(net, torch.optim.SGD(net.parameters(), lr=0.1), StepSettings(), CPU)
    step.train_mode()
    told = step.gradients([BATCH], 6)
    step.require_finite(told, [BATCH], 6)
    step.update()


def _infinite_weight(net: Net) -> None:
    with torch.no_grad():
        net.second.weight[0, 0] = math.inf


def _broken_layer(net: Net) -> None:
    net.log.broken = True


@pytest.mark.parametrize(
    ("spoil", "middle", "told"),
    [
        (
            _infinite_weight,
            nn.Identity(),
            r"training loss became (nan|inf) at step 7, first in parameter second.weight",
        ),
        (_broken_layer, nn.Identity(), "training loss became nan at step 7, first in log"),
        (
            lambda _: None,
            Explodes.apply,
            "a gradient became infinite or undefined at step 7, first in the gradient of first.bias",
        ),
    ],
    ids=["parameter", "layer", "gradient"],
)
def test_the_first_that_is_no_number_is_named_and_no_weight_has_moved(
    spoil: Any, middle: Any, told: str
) -> None:
    torch.manual_seed(0)
    net = Net(middle)
    spoil(net)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(NonFiniteError, match=told):
        take(net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_finite_numbers_pass() -> None:
    torch.manual_seed(0)
    net = Net(nn.Identity())
    before = net.first.weight.detach().clone()
    take(net)
    assert not torch.equal(before, net.first.weight)
    assert nonfinite_layer(net, BATCH[0]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_bad_number_anywhere_is_seen(bad: float, dtype: torch.dtype) -> None:
    whole = [torch.full((3, 5), 1e4, dtype=dtype), torch.zeros(0, dtype=dtype), torch.tensor(7)]
    assert all_finite(whole)
    assert all_finite([*whole, torch.tensor([3e38, -3e38])])  # whose squares are infinite
    whole[0][2, 1] = bad
    assert not all_finite(whole)


def test_a_state_is_saved_every_so_many_steps_and_every_so_long(make_folder: Any) -> None:
    from test_resume import Training

    folder = make_folder()
    chosen: list[dict[str, Any]] = [{"save_every_steps": 3}, {"save_every_seconds": 1e-9}, {}]
    by_step, by_time, by_epoch = (Training(folder, **given).run()[1] for given in chosen)
    assert [step for step, *_ in by_step.saved] == [3, 4, 6, 8, 9, 12]
    assert [step for step, *_ in by_time.saved] == list(range(1, 13))
    assert [step for step, *_ in by_epoch.saved] == [4, 8, 12]
    assert by_step.rows == by_time.rows == by_epoch.rows


def test_without_epochs_ends_a_state_is_saved_when_it_is_due_and_when_it_is_stopped(
    make_folder: Any,
) -> None:
    from test_resume import Training, interrupted, same

    folder = make_folder()
    whole = Training(folder).whole()
    for given, steps in (
        ({}, []),
        ({"save_every_steps": 4}, [4, 8, 12]),
        ({"save_every_seconds": 1e-9}, list(range(1, 13))),
    ):
        training = Training(folder, save_epochs=False, **given)
        ended, journal = training.run()
        assert [step for step, *_ in journal.saved] == steps
        assert same(ended["weights"], whole["weights"])
    training = Training(folder, save_epochs=False)
    for stop in (4, 6, 12):  # at an epoch's end, within one, at the last one's
        saved, before = interrupted(training, stop)
        assert saved[0] == stop
        ended = training.go_on(saved, before)
        assert all(same(ended[key], whole[key]) for key in whole if key not in ("state", "last"))
        # But for the sums that the last saved state had: here it is another one.
        assert all(
            same(ended["state"][key], whole["state"][key])
            for key in whole["state"]
            if "window" not in key
        )


def test_a_state_with_a_number_that_is_none_is_not_saved(make_folder: Any) -> None:
    from test_resume import Training

    for given in ({}, {"save_epochs": False}):
        training = Training(make_folder(), lr=1e38, **given)
        with pytest.raises(NonFiniteError, match="at step"):
            training.run()
