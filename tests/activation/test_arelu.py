"""AReLU against the authors' formula: values, gradients, number formats, and the ways in which modules are used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from arelu_tl.activation.arelu import AReLU, named_arelus, project, site_values
from arelu_tl.activation.catalogue import activation_parameters
from arelu_tl.activation.functional import arelu
from arelu_tl.errors import ConfigError

FORMS = {
    "layer-wise": {},
    "channel-wise": {"num_parameters": 3},
    "scaled": {"scale": 0.53},
    "capped": {"cap": 2.0},
    "channel-wise scaled capped": {"num_parameters": 3, "scale": 0.7, "cap": 2.0},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
# Shapes with 3 channels in each of the dimensions that AReLU can be told to take for them.
CHANNELS_IN = {-1: (2, 4, 3), 1: (2, 3, 4), 0: (3, 2, 4), -3: (3, 2, 4), 2: (2, 4, 3)}
every_channel_dim = pytest.mark.parametrize(
    ("channel_dim", "shape"), CHANNELS_IN.items(), ids=[f"dim {d}" for d in CHANNELS_IN]
)
both_ways = pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
half_dtypes = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"]
)


def official(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The formula of the authors' code."""
    return torch.relu(x) * (1 + torch.sigmoid(beta)) - torch.relu(-x) * torch.clamp(
        alpha, 0.01, 0.99
    )


def reference(x: Tensor, module: AReLU) -> Tensor:
    """The official formula with one alpha and beta a channel, scaled and capped, by autograd alone."""
    shape = [1] * x.dim() if module.num_parameters > 1 else [1]
    shape[module.channel_dim if module.num_parameters > 1 else 0] = -1
    y = official(x, module.alpha.reshape(shape), module.beta.reshape(shape)) * module.scale
    return y if module.cap is None else y.clamp(max=module.cap)


def gradients(
    function: Callable[[Tensor], Tensor], module: AReLU, x: Tensor, upstream: Tensor
) -> list[Tensor]:
    """Gradients to x, alpha and beta."""
    x = x.detach().clone().requires_grad_()
    return list(torch.autograd.grad(function(x), [x, module.alpha, module.beta], upstream))


def images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def away_from_kinks(module: AReLU, *shape: int) -> Tensor:
    """Inputs at which no finite difference crosses zero or the cap."""
    x = images(*shape)
    x = x + 0.1 * x.sign()
    if module.cap is not None:
        near = (reference(x, module) - module.cap).abs() < 0.05
        x = torch.where(near | (reference(x, module) == module.cap), x + 1.0, x)
    return x.detach().requires_grad_()


def spread(module: AReLU) -> AReLU:
    """Another alpha and beta for every channel."""
    with torch.no_grad():
        module.alpha.copy_(torch.linspace(0.2, 0.8, module.num_parameters))
        module.beta.copy_(torch.linspace(-1.0, 1.0, module.num_parameters))
    return module


# Values -----------------------------------------------------------------------------------------------------------------


@settings(deadline=None, database=None, max_examples=200)
@given(
    values=st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=20),
    alpha=st.floats(-2, 2),
    beta=st.floats(-50, 50),
)
def test_outputs_equal_the_official_formula_to_the_last_bit(
    values: list[float], alpha: float, beta: float
) -> None:
    x, a, b = (torch.tensor(v, dtype=torch.float64) for v in (values, [alpha], [beta]))
    assert torch.equal(arelu(x, a, b), official(x, a, b))


@pytest.mark.parametrize(
    "x", [0.0, -0.0, 5e-324, -5e-324, 1e-310, -1e-310, 1e308, -1e308, float("inf"), -float("inf")]
)
def test_outputs_equal_the_official_formula_at_the_ends_of_the_number_line(x: float) -> None:
    module = AReLU().double()
    value = torch.full((9,), x, dtype=torch.float64)
    assert torch.equal(module(value), official(value, module.alpha, module.beta))


def test_the_papers_start_has_slopes_0_90_and_1_88() -> None:
    y = AReLU()(torch.tensor([-1.0, 1.0]))
    assert y.tolist() == pytest.approx([-0.90, 1.8808], abs=1e-4)


@every_form
def test_every_form_equals_the_official_formula_scaled_and_capped(form: dict) -> None:
    module = AReLU(0.3, 0.5, **form).double()
    x = images(4, 3, 5)
    torch.testing.assert_close(module(x), reference(x, module), rtol=1e-14, atol=0)


def test_channel_wise_slopes_act_on_dimension_1() -> None:
    module = AReLU(num_parameters=2)
    with torch.no_grad():
        module.alpha.copy_(torch.tensor([0.25, 0.5]))
    y = module(-torch.ones(3, 2, 4, 5))
    assert torch.equal(y[:, 0], torch.full((3, 4, 5), -0.25))
    assert torch.equal(y[:, 1], torch.full((3, 4, 5), -0.5))


@pytest.mark.parametrize(
    "shape",
    [(3,), (2, 1), (2, 1, 4, 4)],
    ids=["no channel dimension", "one channel", "one-channel maps"],
)
def test_channel_wise_form_refuses_input_without_its_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        AReLU(num_parameters=3)(torch.ones(shape))


@every_channel_dim
@both_ways
def test_channels_in_any_dimension_equal_one_layer_wise_form_a_channel(
    channel_dim: int, shape: tuple[int, ...], inplace: bool
) -> None:
    module = spread(
        AReLU(
            num_parameters=3, channel_dim=channel_dim, scale=0.7, cap=1.0, inplace=inplace
        ).double()
    )
    x = images(*shape)
    columns = []
    for alpha, beta, column in zip(
        module.alpha.tolist(), module.beta.tolist(), x.unbind(channel_dim), strict=True
    ):
        columns.append(AReLU(alpha, beta, scale=0.7, cap=1.0).double()(column))
    assert torch.equal(module(x.clone()), torch.stack(columns, channel_dim))


def test_one_pair_of_parameters_acts_the_same_whatever_the_dimension() -> None:
    x = images(2, 3, 4)
    assert all(
        torch.equal(AReLU(channel_dim=d).double()(x), AReLU().double()(x)) for d in (-1, 0, 7)
    )


@pytest.mark.parametrize(
    ("channel_dim", "shape"),
    [
        (-1, (2, 3, 4)),
        (-1, (2, 3, 1)),
        (0, (2, 3)),
        (0, (1, 3)),
        (2, (2, 3)),
        (-3, (2, 3)),
        (1, (3,)),
    ],
    ids=str,
)
@both_ways
def test_a_dimension_without_as_many_channels_is_refused_and_the_input_left(
    channel_dim: int, shape: tuple[int, ...], inplace: bool
) -> None:
    x = images(*shape)
    kept = x.clone()
    with pytest.raises(
        ValueError, match=f"3 parameters need that many channels in dimension {channel_dim}"
    ):
        AReLU(num_parameters=3, channel_dim=channel_dim, inplace=inplace).double()(x)
    assert torch.equal(x, kept)


@both_ways
def test_parameters_on_another_device_are_refused(inplace: bool) -> None:
    """A kernel would read their memory, which is not there."""
    for module, x in (
        (AReLU(inplace=inplace, device="meta"), torch.ones(3)),
        (AReLU(inplace=inplace), torch.ones(3, device="meta")),
    ):
        with pytest.raises(ValueError, match="the parameters are on"):
            module(x)
    with pytest.raises(ValueError, match="the parameters are on"):
        torch.ops.arelu_tl.two_slope(
            torch.ones(3), torch.ones(1, device="meta"), torch.ones(1, device="meta")
        )


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0, 3.0])
def test_alpha_outside_the_clamp_acts_as_the_clamps_end(alpha: float) -> None:
    x, beta = images(50), torch.tensor([2.0], dtype=torch.float64)
    end = 0.01 if alpha < 0.5 else 0.99
    outside, inside = (arelu(x, torch.tensor([a], dtype=torch.float64), beta) for a in (alpha, end))
    assert torch.equal(outside, inside)


# Gradients --------------------------------------------------------------------------------------------------------------


def test_gradients_equal_the_closed_form() -> None:
    module = AReLU(0.37, 1.1).double()
    x, g = images(200), images(200, seed=1)
    to_x, to_alpha, to_beta = gradients(module, module, x, g)
    s = module.beta.detach().sigmoid()
    assert torch.equal(to_x, torch.where(x > 0, g * (1 + s), g * module.alpha.detach()))
    torch.testing.assert_close(to_alpha, (g * x.clamp(max=0)).sum().reshape(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        to_beta, s * (1 - s) * (g * x.clamp(min=0)).sum(), rtol=1e-12, atol=0
    )


@settings(deadline=None, database=None, max_examples=60)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    alpha=st.floats(-0.5, 1.5),
    beta=st.floats(-20, 20),
)
def test_gradients_equal_autograd_through_the_official_formula(
    values: list[float], alpha: float, beta: float
) -> None:
    # At the clamp's very ends torch versions differ, and we promise a gradient: another test holds it.
    assume(min(abs(alpha - 0.01), abs(alpha - 0.99)) > 1e-6)
    module = AReLU().double()
    with torch.no_grad():
        module.alpha.fill_(alpha)
        module.beta.fill_(beta)
    x = torch.tensor(values, dtype=torch.float64)
    g = torch.linspace(-1, 2, len(values), dtype=torch.float64)
    ours = gradients(module, module, x, g)
    theirs = gradients(lambda z: official(z, module.alpha, module.beta), module, x, g)
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@every_form
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_gradcheck_in_float64(form: dict, inplace: bool) -> None:
    module = AReLU(0.3, 0.5, **form).double()
    options = {"scale": module.scale, "cap": module.cap, "inplace": inplace}
    x = away_from_kinks(module, 2, 3, 4)
    assert torch.autograd.gradcheck(
        lambda z, a, b: arelu(z * 1, a, b, **options), (x, module.alpha, module.beta)
    )


@every_channel_dim
@pytest.mark.parametrize("form", [{}, {"scale": 0.7, "cap": 2.0}], ids=["plain", "scaled capped"])
@both_ways
def test_gradcheck_in_float64_with_channels_in_any_dimension(
    channel_dim: int, shape: tuple[int, ...], form: dict, inplace: bool
) -> None:
    module = spread(AReLU(num_parameters=3, channel_dim=channel_dim, **form).double())
    options = {
        "scale": module.scale,
        "cap": module.cap,
        "inplace": inplace,
        "channel_dim": channel_dim,
    }
    x = away_from_kinks(module, *shape)
    assert torch.autograd.gradcheck(
        lambda z, a, b: arelu(z * 1, a, b, **options), (x, module.alpha, module.beta)
    )


@every_channel_dim
@half_dtypes
def test_half_precision_gradients_are_summed_a_channel_in_any_dimension(
    channel_dim: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    module = AReLU(num_parameters=3, channel_dim=channel_dim)
    x = torch.full([n if n == 3 else 300 * n for n in shape], -1.0, dtype=dtype)
    _, to_alpha, _ = gradients(module, module, x, torch.ones_like(x))
    assert to_alpha.tolist() == [-x.numel() / 3] * 3


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_gradient_at_zero_is_zero(zero: float, inplace: bool) -> None:
    x = torch.tensor([zero], requires_grad=True)
    arelu(x * 1, torch.tensor([0.9]), torch.tensor([2.0]), inplace=inplace).backward()
    assert x.grad is not None
    assert x.grad.item() == 0


@pytest.mark.parametrize("alpha", [-1.0, 0.009, 0.991, 3.0])
def test_alpha_outside_the_clamp_gets_no_gradient(alpha: float) -> None:
    module = AReLU()
    with torch.no_grad():
        module.alpha.fill_(alpha)
    to_x, to_alpha, _ = gradients(module, module, torch.tensor([-2.0]), torch.ones(1))
    assert to_alpha.item() == 0
    assert to_x.item() == pytest.approx(0.01 if alpha < 0.5 else 0.99)


@pytest.mark.parametrize("end", [0.01, 0.99])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_alpha_at_an_end_of_the_clamp_still_gets_its_gradient(
    end: float, dtype: torch.dtype
) -> None:
    module = AReLU().to(dtype)
    with torch.no_grad():
        module.alpha.fill_(end)
    _, to_alpha, _ = gradients(
        module, module, torch.tensor([-2.0], dtype=dtype), torch.ones(1, dtype=dtype)
    )
    assert to_alpha.item() == -2


def test_projection_brings_alpha_back_to_where_it_learns() -> None:
    module = AReLU(num_parameters=3)
    with torch.no_grad():
        module.alpha.copy_(torch.tensor([-4.0, 0.5, 7.0]))
    module.project_()
    torch.testing.assert_close(
        module.alpha.detach(), torch.tensor([0.01, 0.5, 0.99]), rtol=0, atol=0
    )
    _, to_alpha, _ = gradients(module, module, -torch.ones(1, 3), torch.ones(1, 3))
    assert to_alpha.tolist() == [-1, -1, -1]


def test_project_projects_every_alpha_and_leaves_beta() -> None:
    model = nn.Sequential(AReLU(), nn.Sequential(nn.Linear(2, 2), AReLU()))
    with torch.no_grad():
        for parameter in activation_parameters(model):
            parameter.fill_(5.0)
    project([module.alpha for _, module in named_arelus(model)])
    assert site_values(model) == {
        "0": [pytest.approx(0.99), 5.0],
        "1.1": [pytest.approx(0.99), 5.0],
    }


# Cap --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_cap_bounds_output_and_gradient_as_relu6_does(inplace: bool) -> None:
    # With beta far below zero the positive slope is exactly 1, so that positive inputs must meet ReLU6 itself.
    module = AReLU(beta=-200.0, cap=6.0).double()
    x = torch.tensor([0.5, 5.999, 6.0, 6.001, 1e30], dtype=torch.float64)
    g = torch.arange(1.0, 6.0, dtype=torch.float64)

    def capped(z: Tensor) -> Tensor:
        return arelu(z * 1, module.alpha, module.beta, cap=module.cap, inplace=inplace)

    z = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(functional.relu6(z), z, g)
    to_x, _, _ = gradients(capped, module, x, g)
    assert torch.equal(capped(x), functional.relu6(x))
    assert torch.equal(to_x, wanted)
    assert to_x.tolist() == [1, 2, 0, 0, 0]


def test_elements_above_the_cap_do_not_move_beta() -> None:
    module = AReLU(cap=6.0)
    _, _, to_beta = gradients(module, module, torch.tensor([100.0, 5.0]), torch.ones(2))
    assert to_beta.item() == 0
    _, _, below = gradients(module, module, torch.tensor([100.0, 1.0]), torch.ones(2))
    assert below.item() > 0


def test_cap_leaves_the_negative_side_alone() -> None:
    x = -images(40).abs() * 100
    assert torch.equal(AReLU(cap=6.0).double()(x), AReLU().double()(x))


# In place ---------------------------------------------------------------------------------------------------------------


@every_form
def test_in_place_overwrites_its_input_and_gives_the_out_of_place_result(form: dict) -> None:
    module = AReLU(0.3, 0.5, **form).double()
    overwriting = AReLU(0.3, 0.5, inplace=True, **form).double()
    x, g = images(4, 3, 5), images(4, 3, 5, seed=1)
    given = x.clone()
    result = overwriting(given)
    assert result.data_ptr() == given.data_ptr()
    assert torch.equal(given, module(x))
    ours = gradients(lambda z: overwriting(z * 1), overwriting, x, g)
    theirs = gradients(module, module, x, g)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_out_of_place_leaves_its_input() -> None:
    x = images(4, 3)
    kept = x.clone()
    AReLU(cap=0.5).double()(x)
    assert torch.equal(x, kept)


# Number formats ---------------------------------------------------------------------------------------------------------


@half_dtypes
@every_form
def test_half_precision_input_with_float32_parameters(form: dict, dtype: torch.dtype) -> None:
    module = AReLU(0.3, 0.5, **form)
    x, g = images(4, 3, 8, dtype=dtype), images(4, 3, 8, dtype=dtype, seed=1)
    y = module(x)
    ours = gradients(module, module, x, g)
    assert (y.dtype, ours[0].dtype, ours[1].dtype, ours[2].dtype) == (
        dtype,
        dtype,
        torch.float32,
        torch.float32,
    )
    # Inputs whose value lies within rounding of the cap may fall on either side of it.
    wanted = gradients(lambda z: reference(z, module), module, x.float(), g.float())
    torch.testing.assert_close(y.float(), reference(x.float(), module), rtol=2e-2, atol=1e-3)
    for mine, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine.float(), other, rtol=2e-2, atol=5e-2)


@half_dtypes
@pytest.mark.parametrize("form", [{}, {"num_parameters": 2}], ids=["layer-wise", "channel-wise"])
def test_half_precision_gradients_are_summed_in_float32(form: dict, dtype: torch.dtype) -> None:
    # 70001 is above fp16's largest number and needs more digits than bf16 has.
    module = AReLU(**form)
    x = torch.full((70001, module.num_parameters), -1.0, dtype=dtype)
    _, to_alpha, _ = gradients(module, module, x, torch.ones_like(x))
    assert to_alpha.tolist() == [-70001.0] * module.num_parameters


def test_fp16_products_beyond_fp16_do_not_overflow_the_parameter_gradient() -> None:
    # As under a loss scale; the official formula with float32 parameters gets these sums finite.
    module = AReLU()
    x, g = (torch.full((4,), v, dtype=torch.float16) for v in (-300.0, 300.0))
    wanted = gradients(lambda z: official(z, module.alpha, module.beta), module, x, g.float())
    _, to_alpha, _ = gradients(module, module, x, g)
    assert to_alpha.item() == wanted[1].item() == -360000


@half_dtypes
def test_half_model_trains_in_its_own_format(dtype: torch.dtype) -> None:
    module = AReLU(0.3, 0.5, scale=0.53).to(dtype)
    x = images(4, 3, 8, dtype=dtype)
    y = module(x)
    y.sum().backward()
    assert y.dtype == module.alpha.grad.dtype == module.beta.grad.dtype == dtype  # type: ignore[union-attr]
    wanted = reference(x.double(), AReLU(0.3, 0.5, scale=0.53).double())
    torch.testing.assert_close(y.double(), wanted.detach(), rtol=2e-2, atol=1e-3)


def test_autocast_keeps_float32_parameters_and_their_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), AReLU(), nn.Conv2d(4, 2, 3), AReLU(num_parameters=2, cap=6.0)
    )
    x = images(2, 3, 8, 8, dtype=torch.float32)
    model(x).sum().backward()
    wanted = [p.grad.clone() for p in activation_parameters(model) if p.grad is not None]
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert len(wanted) == 4
    for parameter, full in zip(activation_parameters(model), wanted, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, full, rtol=5e-2, atol=0.1)


# Layouts ----------------------------------------------------------------------------------------------------------------


@every_form
def test_channels_last_stays_channels_last_with_the_same_values(form: dict) -> None:
    module = AReLU(0.3, 0.5, **form).double()
    x, g = images(2, 3, 4, 5), images(2, 3, 4, 5, seed=1)
    last = x.to(memory_format=torch.channels_last)
    y = module(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    assert torch.equal(y, module(x))
    ours = gradients(module, module, last, g.to(memory_format=torch.channels_last))
    for mine, other in zip(ours, gradients(module, module, x, g), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, :, ::2],
        lambda t: t.transpose(0, 2),
        lambda t: t[:, :1].expand(4, 3, 6),
        lambda t: t[0, 0],
        lambda t: t[0],
    ],
    ids=["strided", "transposed", "expanded", "1-D", "2-D"],
)
def test_non_contiguous_and_low_dimensional_input(view: Callable[[Tensor], Tensor]) -> None:
    module = AReLU(0.3, 0.5).double()
    x = view(images(4, 3, 6))
    g = view(images(4, 3, 6, seed=1))
    y = module(x)
    assert y.shape == x.shape
    assert torch.equal(y, official(x, module.alpha, module.beta))
    ours = gradients(lambda z: module(view(z)), module, images(4, 3, 6), g)
    theirs = gradients(
        lambda z: official(view(z), module.alpha, module.beta), module, images(4, 3, 6), g
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@every_form
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 3, 4, 4)], ids=str)
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_zero_size_input_gives_zero_size_output_and_zero_gradients(
    form: dict, shape: tuple[int, ...], inplace: bool
) -> None:
    module = AReLU(inplace=inplace, **form)
    x = torch.empty(shape)
    assert module(x).shape == shape
    to_x, to_alpha, to_beta = gradients(lambda z: module(z * 1), module, x, torch.empty(shape))
    assert to_x.shape == shape
    assert not to_alpha.any()
    assert not to_beta.any()


# The ways in which modules are used -------------------------------------------------------------------------------------


def test_compiled_without_graph_breaks_equals_eager() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1),
        AReLU(scale=0.53, inplace=True),
        nn.Conv2d(3, 3, 1),
        AReLU(num_parameters=3, cap=0.4),
    )
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = images(2, 3, 4, 4, dtype=torch.float32)
    results = []
    for candidate in (model, compiled):
        z = x.clone().requires_grad_()
        y = candidate(z)
        y.square().sum().backward()
        results.append([y, z.grad, *[p.grad for p in candidate.parameters()]])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager)


def test_deepcopy_is_independent_and_equal() -> None:
    module = AReLU(0.3, 0.5, num_parameters=3, scale=0.53, cap=2.0)
    twin = copy.deepcopy(module)
    x = images(2, 3, 4, dtype=torch.float32)
    before = module(x)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        twin.alpha.fill_(0.9)
    assert not torch.equal(twin(x), before)
    assert torch.equal(module(x), before)


@every_channel_dim
def test_a_copy_keeps_the_channels_dimension(channel_dim: int, shape: tuple[int, ...]) -> None:
    module = spread(AReLU(num_parameters=3, channel_dim=channel_dim).double())
    twin = copy.deepcopy(module)
    assert twin.channel_dim == channel_dim
    assert torch.equal(twin(images(*shape)), module(images(*shape)))


def test_the_channels_dimension_is_shown_where_it_says_something() -> None:
    assert "channel_dim=-1" in repr(AReLU(num_parameters=3, channel_dim=-1))
    assert "channel_dim=0" in repr(AReLU(num_parameters=3, channel_dim=0))
    assert "channel_dim" not in repr(AReLU(num_parameters=3))
    assert "channel_dim" not in repr(AReLU(channel_dim=-1))


@both_ways
def test_compiled_with_channels_last_equals_eager(inplace: bool) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()  # its count of recompilations outlives a test
    module = spread(AReLU(num_parameters=3, channel_dim=-1, scale=0.53, cap=0.4, inplace=inplace))
    model = nn.Sequential(nn.Linear(3, 3), module)
    x, g = images(2, 4, 3, dtype=torch.float32), images(2, 4, 3, dtype=torch.float32, seed=1)
    results = []
    for candidate in (
        model,
        torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager"),
    ):
        y = candidate(x)
        results.append([y, *torch.autograd.grad(y, list(candidate.parameters()), g)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_state_dict_carries_slopes_and_scale() -> None:
    trained = AReLU(0.3, 0.5, num_parameters=3, scale=0.53)
    fresh = AReLU(num_parameters=3)
    fresh.load_state_dict(trained.state_dict(), strict=True)
    x = images(2, 3, 4, dtype=torch.float32)
    assert set(trained.state_dict()) == {"alpha", "beta", "scale"}
    assert fresh.scale.item() == pytest.approx(0.53)
    assert torch.equal(fresh(x), trained(x))


def test_scale_is_not_trained() -> None:
    assert {name for name, _ in AReLU(scale=0.5).named_parameters()} == {"alpha", "beta"}


def test_distributed_data_parallel_gets_every_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 3), AReLU(), nn.Linear(3, 3), AReLU(num_parameters=3, cap=6.0)
    )
    alone = copy.deepcopy(model)
    x = images(8, 4, dtype=torch.float32)
    alone(x).sum().backward()
    torch.distributed.init_process_group(
        "gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1
    )
    try:
        nn.parallel.DistributedDataParallel(model)(x).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for here, there in zip(model.parameters(), alone.parameters(), strict=True):
        assert there.grad is not None
        torch.testing.assert_close(here.grad, there.grad)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.009},
        {"alpha": 0.991},
        {"alpha": float("nan")},
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": float("nan")},
        {"cap": 0.0},
        {"cap": -6.0},
        {"num_parameters": 0},
        {"num_parameters": -3},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AReLU(**wrong)


# Every AReLU of a model -------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One AReLU under two names beside another one."""

    def __init__(self) -> None:
        super().__init__()
        self.one = AReLU(0.1, 1.0)
        self.again = self.one
        self.block = nn.Sequential(nn.Linear(2, 2), AReLU(0.3, 3.0, num_parameters=2))


def test_named_arelus_lists_each_once_under_its_first_name() -> None:
    model = Shared()
    assert list(named_arelus(model)) == [("one", model.one), ("block.1", model.block[1])]


def test_activation_parameters_are_the_alphas_and_betas_and_nothing_else() -> None:
    model = Shared()
    wanted = [model.one.alpha, model.one.beta, model.block[1].alpha, model.block[1].beta]
    assert [id(p) for p in activation_parameters(model)] == [id(p) for p in wanted]


def test_site_values_are_means_over_the_channels() -> None:
    model = Shared()
    with torch.no_grad():
        model.block[1].alpha.copy_(torch.tensor([0.25, 0.75]))
        model.block[1].beta.copy_(torch.tensor([-1.0, 4.0]))
    assert site_values(model) == {"one": [pytest.approx(0.1), 1.0], "block.1": [0.5, 1.5]}


def test_a_model_without_arelu_has_no_site_values() -> None:
    assert site_values(nn.Linear(2, 2)) == {}
    assert activation_parameters(nn.Linear(2, 2)) == []
