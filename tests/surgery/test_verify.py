"""The proof after surgery: leftovers are named, and then the model is what it was, to the last statistic."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.apply import apply_plan
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.plan import make_plan
from arelu_tl.surgery.sites import find_sites
from arelu_tl.surgery.verify import verify

PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Captured(nn.Module):
    """Runs its layers from a list of its own, so that exchanging the registered ones has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.steps = [self.conv, self.norm, self.relu]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def overridden() -> nn.Module:
    """A module whose forward was replaced on the instance, which the class cannot route."""
    module = Functional()
    module.forward = types.MethodType(Functional.forward, module)  # type: ignore[method-assign]
    return module


def partial() -> nn.Module:
    """A module whose forward holds on to the ReLU it was made with."""
    module = Captured()
    module.forward = functools.partial(lambda relu, x: relu(x), module.relu)  # type: ignore[method-assign]
    return module


def net(inner: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        inner,
        Functional(),
        nn.Flatten(),
        nn.Linear(144, 2),
    )


DEAF: dict[str, Callable[[], nn.Module]] = {
    "its layers stand in a list": Captured,
    "its forward stands on the instance": overridden,
    "its forward holds the ReLU": partial,
}
every_deaf_module = pytest.mark.parametrize("build", DEAF.values(), ids=DEAF.keys())


def snapshot(
    model: nn.Module,
) -> tuple[dict[str, Tensor], list[tuple[str, int, type, bool, list[str]]]]:
    """Values, module identities, classes, modes and attributes."""
    return {k: v.clone() for k, v in model.state_dict().items()}, [
        (name, id(m), type(m), m.training, sorted(vars(m)))
        for name, m in model.named_modules(remove_duplicate=False)
    ]


def assert_unchanged(model: nn.Module, before: tuple[dict[str, Tensor], list]) -> None:
    state, modules = snapshot(model)
    assert modules == before[1]
    assert state.keys() == before[0].keys()
    assert all(torch.equal(state[key], value) for key, value in before[0].items())


@every_deaf_module
@pytest.mark.parametrize("calibrated", [False, True], ids=["alone", "with calibration pictures"])
def test_a_module_that_surgery_has_no_effect_on_is_named_and_the_model_is_what_it_was(
    build: Callable[[], nn.Module], calibrated: bool
) -> None:
    model = net(build()).train()
    model[1].eval()
    before = snapshot(model)
    with pytest.raises(
        SurgeryError, match=r"after surgery 1 ReLUs run where 0 were meant to stay: left over in 3;"
    ):
        convert(
            model,
            example_input=PICTURES[:1],
            calibration=[PICTURES, PICTURES * 2] if calibrated else None,
        )
    assert_unchanged(model, before)


@every_deaf_module
def test_leaving_such_a_module_out_makes_surgery_on_the_rest_possible(
    build: Callable[[], nn.Module],
) -> None:
    model = net(build())
    assert convert(model, example_input=PICTURES, exclude=["3.*"]).replaced == 2


def test_without_surgery_every_planned_site_is_a_leftover() -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    plan = make_plan(find_sites(model))
    with pytest.raises(
        SurgeryError,
        match=r"after surgery 12 ReLUs run where 0 were meant to stay: left over in .*act",
    ):
        verify(model, plan)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [({}, 0), ({"exclude": ["2"]}, 1), ({"exclude": ["4.*"]}, 1), ({"include": ["3.*"]}, 2)],
    ids=["nothing excluded", "a module excluded", "a functional call excluded", "one included"],
)
def test_what_is_meant_to_stay_is_counted_and_passes(patterns: dict, left: int) -> None:
    model = net(Functional())
    plan = make_plan(find_sites(model, PICTURES), **patterns)
    apply_plan(model, plan)
    assert verify(model, plan, PICTURES) == left == len(plan.left)


def test_only_the_surplus_is_named() -> None:
    model = net(Captured())
    before = snapshot(model)
    with pytest.raises(
        SurgeryError, match=r"after surgery 3 ReLUs run where 2 were meant to stay: left over in 3;"
    ):
        convert(nn.Sequential(*model, nn.ReLU()), example_input=PICTURES, exclude=["2", "4.*"])
    assert_unchanged(model, before)


def test_a_relu_too_few_is_an_error_too() -> None:
    model = net(Functional())
    plan = make_plan(find_sites(model, PICTURES), exclude=["2"])
    apply_plan(model, plan)
    model[2] = nn.Identity()
    with pytest.raises(SurgeryError, match="after surgery 0 ReLUs run where 1 were meant to stay"):
        verify(model, plan, PICTURES)


def test_what_apply_returns_puts_everything_back() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.TransformerEncoderLayer(4, 2, 8)
    )
    x = torch.zeros(2, 4)
    before = snapshot(model)
    _, undo = apply_plan(model, make_plan(find_sites(model, x)))
    assert not isinstance(model[1], nn.ReLU)
    undo()
    assert_unchanged(model, before)
    assert len(find_sites(model, x)) == 3
