"""What counts as a ReLU: every spelling of it and no look-alike, and the dispatcher counts what the Python functions place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from arelu_tl.activation.arelu import named_arelus
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.relu_calls import ReLUTap, is_relu_module
from arelu_tl.surgery.sites import find_sites

Call = Callable[[Tensor], Tensor]


class Calls(nn.Module):
    """A layer, and a function of its output."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.lin(x))


def executed(model: Callable[[Tensor], object], x: Tensor) -> int:
    """ReLUs that the dispatcher runs."""
    seen: list[None] = []
    with torch.no_grad(), ReLUTap(lambda: seen.append(None)):
        model(x)
    return len(seen)


SPELLINGS: dict[str, tuple[Call, str, bool]] = {
    "F.relu": (lambda x: F.relu(x), "relu", False),
    "F.relu(inplace)": (lambda x: F.relu(x, inplace=True), "relu", True),
    "F.relu(x, True)": (lambda x: F.relu(x, True), "relu", True),
    "F.relu(input=)": (lambda x: F.relu(input=x), "relu", False),
    "F.relu_": (lambda x: F.relu_(x), "relu", True),
    "torch.relu": (lambda x: torch.relu(x), "relu", False),
    "torch.relu_": (lambda x: torch.relu_(x), "relu", True),
    "relu()": (lambda x: x.relu(), "relu", False),
    "relu_()": (lambda x: x.relu_(), "relu", True),
    "F.relu6": (lambda x: F.relu6(x), "relu6", False),
    "F.relu6(inplace)": (lambda x: F.relu6(x, inplace=True), "relu6", True),
    "F.hardtanh(0, 6)": (lambda x: F.hardtanh(x, 0.0, 6.0), "relu6", False),
    "F.hardtanh(keywords)": (
        lambda x: F.hardtanh(x, min_val=0, max_val=6, inplace=True),
        "relu6",
        True,
    ),
    "F.hardtanh_(0, 6)": (lambda x: F.hardtanh_(x, 0.0, 6.0), "relu6", True),
    "F.hardtanh(0, 20)": (lambda x: F.hardtanh(x, 0.0, 20.0), "capped-relu", False),
    "torch.clamp(min=0)": (lambda x: torch.clamp(x, min=0), "relu", False),
    "torch.clamp(input=, min=0)": (lambda x: torch.clamp(input=x, min=0), "relu", False),
    "torch.clamp(0, 6)": (lambda x: torch.clamp(x, 0, 6), "relu6", False),
    "torch.clamp(0, inf)": (lambda x: torch.clamp(x, 0, float("inf")), "relu", False),
    "torch.clamp_(0)": (lambda x: torch.clamp_(x, 0), "relu", True),
    "clamp(0)": (lambda x: x.clamp(0), "relu", False),
    "clamp(0, None)": (lambda x: x.clamp(0, None), "relu", False),
    "clamp(-0.0)": (lambda x: x.clamp(-0.0), "relu", False),
    "clamp_(min=0, max=6)": (lambda x: x.clamp_(min=0.0, max=6.0), "relu6", True),
    "torch.clip(min=0)": (lambda x: torch.clip(x, min=0), "relu", False),
    "clip_(0)": (lambda x: x.clip_(0), "relu", True),
    "torch.clamp_min": (lambda x: torch.clamp_min(x, 0), "relu", False),
    "torch.clamp_min_": (lambda x: torch.clamp_min_(x, 0.0), "relu", True),
    "clamp_min(min=0)": (lambda x: x.clamp_min(min=0), "relu", False),
    "clamp_min_": (lambda x: x.clamp_min_(0), "relu", True),
    "F.threshold": (lambda x: F.threshold(x, 0, 0), "relu", False),
    "F.threshold(keywords)": (
        lambda x: F.threshold(x, threshold=0.0, value=0.0, inplace=True),
        "relu",
        True,
    ),
    "torch.threshold": (lambda x: torch.threshold(x, 0, 0), "relu", False),
    "F.threshold_": (lambda x: F.threshold_(x, 0, 0), "relu", True),
}

LOOK_ALIKES: dict[str, Call] = {
    "clamp(0, 1) keeps a share in its range": lambda x: x.clamp(0, 1),
    "clamp(0, 0.5)": lambda x: torch.clamp(x, min=0, max=0.5),
    "clamp(min=1e-6) guards a division": lambda x: x.clamp(min=1e-6),
    "clamp(max=6)": lambda x: x.clamp(max=6),
    "clamp(-1, 1)": lambda x: x.clamp(-1, 1),
    "clamp_min(0.1)": lambda x: x.clamp_min(0.1),
    "clamp_max(0)": lambda x: x.clamp_max(0),
    "clamp with a tensor bound": lambda x: x.clamp(min=torch.zeros(())),
    "clamp with two tensor bounds": lambda x: torch.clamp(x, torch.zeros(4), torch.full((4,), 6.0)),
    "hardtanh as it is by default": lambda x: F.hardtanh(x),
    "hardtanh(0, 1)": lambda x: F.hardtanh(x, 0.0, 1.0),
    "threshold to another value": lambda x: F.threshold(x, 0, 1),
    "threshold above 0": lambda x: F.threshold(x, 0.5, 0),
    "maximum of two maps": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "leaky_relu": lambda x: F.leaky_relu(x),
    "elu": lambda x: F.elu(x),
    "hardswish": lambda x: F.hardswish(x),
    "hardsigmoid": lambda x: F.hardsigmoid(x),
    "an integer clamp": lambda x: x * (x * 3).long().clamp(min=0),
    "an integer relu": lambda x: x * torch.relu((x * 3).long()),
}


@pytest.mark.parametrize(("call", "operator", "inplace"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_every_spelling_is_a_site_and_is_replaced(call: Call, operator: str, inplace: bool) -> None:
    torch.manual_seed(0)
    model, x = Calls(call), torch.randn(8, 4)
    assert executed(model, x) == 1
    (site,) = find_sites(model, x)
    cap = {"relu": None, "relu6": 6.0, "capped-relu": 20.0}[operator]
    assert (site.kind, site.operator, site.cap, site.inplace) == (
        "functional",
        operator,
        cap,
        inplace,
    )
    convert(model, init="paper", example_input=x)
    ((_, arelu),) = named_arelus(model)
    assert executed(model, x) == 0
    hidden = model.lin(x)
    arelu.inplace = False
    assert torch.equal(model(x), arelu(hidden))
    assert (model(x) < 0).any()


@pytest.mark.parametrize("call", LOOK_ALIKES.values(), ids=LOOK_ALIKES.keys())
def test_a_look_alike_is_no_site(call: Call) -> None:
    model, x = Calls(call), torch.randn(8, 4)
    assert executed(model, x) == 0
    assert find_sites(model, x) == []


@pytest.mark.parametrize("device", ["cpu", "meta"])
@given(
    low=st.sampled_from([None, 0, 0.0, -0.0, -1.0, 1e-6, 0.5, float("-inf")]),
    high=st.sampled_from([None, 0.5, 1, 1.0, 1.5, 6, 6.0, float("inf")]),
    spelling=st.sampled_from(["clamp", "clamp_", "clip", "hardtanh", "clamp_min"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]),
    keywords=st.booleans(),
)
def test_both_counts_agree_with_the_definition(
    device: str,
    low: float | None,
    high: float | None,
    spelling: str,
    dtype: torch.dtype,
    keywords: bool,
) -> None:
    if spelling == "clamp_min":
        high = None
    bounds = (
        [low if low is not None else -1.0, high if high is not None else 7.0]
        if spelling == "hardtanh"
        else [low, high]
    )
    if (
        bounds == [None, None]
        or (spelling == "clamp_min" and low is None)
        or bounds[0] is not None is not bounds[1] < bounds[0]
    ):
        return
    if not dtype.is_floating_point and (
        spelling == "hardtanh" or any(isinstance(b, float) for b in bounds)
    ):
        return
    names = ("min_val", "max_val") if spelling == "hardtanh" else ("min", "max")
    given_bounds = bounds[:1] if spelling == "clamp_min" else bounds
    call = F.hardtanh if spelling == "hardtanh" else getattr(Tensor, spelling)

    class Bounds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = (x * 1).to(dtype)
            return (
                call(y, **dict(zip(names, given_bounds, strict=False)))
                if keywords
                else call(y, *given_bounds)
            )

    wanted = dtype.is_floating_point and bounds[0] == 0 and (bounds[1] is None or bounds[1] > 1)
    x = torch.zeros(2, 3, device=device)
    assert executed(Bounds(), x) == wanted
    assert len(find_sites(Bounds(), x)) == wanted


# Modules ----------------------------------------------------------------------------------------------------------------


class Doubled(nn.ReLU):
    """A ReLU by name that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.ReLU(True),
        nn.ReLU6(),
        nn.Hardtanh(0, 6),
        nn.Hardtanh(0.0, 20.0),
        nn.Threshold(0, 0),
    ],
    ids=repr,
)
def test_modules_that_are_a_relu_are_exchanged(module: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), module), torch.randn(8, 4)
    assert is_relu_module(module)
    assert executed(model, x) == 1
    convert(model, example_input=x)
    assert [name for name, _ in named_arelus(model)] == ["1"]
    assert executed(model, x) == 0


@pytest.mark.parametrize(
    "module",
    [
        nn.Hardtanh(),
        nn.Hardtanh(0, 1),
        nn.Threshold(0.5, 0),
        nn.LeakyReLU(),
        nn.ELU(),
        nn.Hardswish(),
    ],
    ids=repr,
)
def test_modules_that_are_something_else_are_none(module: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), module), torch.randn(8, 4)
    assert not is_relu_module(module)
    assert executed(model, x) == 0
    assert find_sites(model, x) == []


def test_a_subclass_that_does_more_keeps_doing_it_around_its_site() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), Doubled()), torch.randn(8, 4)
    assert not is_relu_module(model[1])
    convert(model, init="paper", example_input=x)
    ((name, arelu),) = named_arelus(model)
    assert name == "1.relu_sites.0"
    assert isinstance(model[1], Doubled)
    assert torch.equal(model(x), 2 * arelu(model[0](x)))


def test_torchs_own_transformer_layer_cannot_hide_its_relu_in_its_fast_path() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        before = model(x)
        convert(model, init="paper", example_input=x)
        assert not torch.allclose(model(x), before)
    assert executed(model, x) == 0


# Known faults -----------------------------------------------------------------------------------------------------------


def test_a_call_that_writes_into_a_given_tensor_is_refused() -> None:
    def into(x: Tensor) -> Tensor:
        buffer = torch.full_like(x, 7.0)
        torch.clamp(x, min=0, out=buffer)
        return buffer

    model = Calls(into).requires_grad_(False)
    x = torch.randn(8, 4)
    with pytest.raises(
        SurgeryError, match="1 ReLUs are executed in a way that surgery cannot replace, in Calls"
    ):
        convert(model, init="paper", example_input=x)


def test_an_integer_clamp_beside_a_functional_relu_stays() -> None:
    model, x = Calls(lambda x: F.relu(x) * torch.arange(-1, 3).clamp(min=0)), torch.randn(8, 4)
    assert convert(model, example_input=x).replaced == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_where_only_shapes_flow_batchnorm_gives_those_that_torch_gives(
    training: bool, affine: bool
) -> None:
    norm = nn.BatchNorm2d(3, affine=affine, device="meta").train(training)
    x = torch.zeros(2, 3, 4, 5, device="meta", requires_grad=True)
    alone = norm(x)
    with ReLUTap(lambda: None):
        watched = norm(x)
    assert (watched.shape, watched.dtype, watched.stride()) == (
        alone.shape,
        alone.dtype,
        alone.stride(),
    )
    assert watched.grad_fn is not None
    assert type(watched.grad_fn) is type(alone.grad_fn)
