"""Every arm's activation: what it computes, what of it learns, under a cap and in place as the ReLU was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.activation.arelu import AReLU, named_arelus, site_values
from arelu_tl.activation.catalogue import (
    SURGERY_ARMS,
    SiteActivation,
    activation_parameters,
    make_activation,
    named_activations,
)
from arelu_tl.errors import ConfigError

every_arm = pytest.mark.parametrize("arm", SURGERY_ARMS)
both_ways = pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
# What calibrated starts a site with: the gain normalised out.
GAIN = 1 + torch.tensor(2.0, dtype=torch.float64).sigmoid().item()
CALIBRATED = {"alpha": 0.4, "beta": 2.0, "scale": 1 / GAIN}


def pade(x: Tensor) -> Tensor:
    """The quotient as it stands, in float64, where no power of these arguments overflows."""
    numerator = (0.02979246288526298, 0.6183773789612337, 2.3233520651936353, 3.052026602542499, 1.4854800210559198,
                 0.251037168372098)  # fmt: skip
    denominator = (1.1420122633320064, 4.393228336652794, 0.8715444974667658, 0.34720651626640646)
    above = sum(a * x**k for k, a in enumerate(numerator))
    return above / (1 + sum((b * x ** (k + 1)).abs() for k, b in enumerate(denominator)))


def curvature(x: Tensor) -> Tensor:
    """Equation 3 of arXiv 2502.07783 as it stands, for beta 0.8 and c 0.5."""
    return 0.5 * torch.sigmoid(0.8 * x / 0.2) * x + 0.5 * 0.2 * torch.log1p(torch.exp(x / 0.2))


REFERENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "curvature": curvature,
    "gain-only": F.relu,
    "apl": lambda x: x.clamp(min=0) + 0.2 * (0.5 - x).clamp(min=0),
    "combine": F.relu,
    "leaky-relu": lambda x: F.leaky_relu(x, 0.01),
    "pau": pade,
    "relu6": F.relu6,
    "slaf": lambda x: 1 + x,
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "rrelu": lambda x: F.rrelu(x, 1 / 8, 1 / 3, training=False),
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
    "leaky": lambda x: torch.where(x > 0, x, 0.4 / GAIN * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.4 / GAIN * x),
    "arelu": lambda x: torch.where(x > 0, x, 0.4 / GAIN * x),
    "arelu-frozen": lambda x: torch.where(x > 0, x, 0.4 / GAIN * x),
}


def values(*shape: int, seed: int = 0) -> Tensor:
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    )


def made(arm: str, **options: object) -> nn.Module:
    return make_activation(arm, **{**CALIBRATED, "dtype": torch.float64, **options})  # type: ignore[arg-type]


# What each arm computes -------------------------------------------------------------------------------------------------


def test_every_arm_has_a_reference_here() -> None:
    assert set(REFERENCE) == set(SURGERY_ARMS)


@every_arm
@pytest.mark.parametrize("cap", [None, 1.5])
@both_ways
def test_every_arm_computes_what_its_name_says_under_the_cap(
    arm: str, cap: float | None, inplace: bool
) -> None:
    x = values(4, 3, 5)
    wanted = REFERENCE[arm](x)
    wanted = wanted if cap is None else wanted.clamp(max=cap)
    y = made(arm, cap=cap, inplace=inplace).eval()(x.clone())
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)


@settings(deadline=None, database=None, max_examples=100)
@given(
    numbers=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=10),
    alpha=st.floats(0.01, 0.99),
    beta=st.floats(-20, 20),
    cap=st.none() | st.floats(0.1, 1e3),
)
def test_leaky_prelu_and_frozen_arelu_start_as_one_function(
    numbers: list[float], alpha: float, beta: float, cap: float | None
) -> None:
    x = torch.tensor(numbers, dtype=torch.float64)
    scale = 1 / (1 + torch.tensor(beta, dtype=torch.float64).sigmoid().item())
    options = {"alpha": alpha, "beta": beta, "scale": scale, "cap": cap}
    frozen, leaky, prelu = (made(arm, **options)(x) for arm in ("arelu-frozen", "leaky", "prelu"))
    torch.testing.assert_close(leaky, frozen, rtol=1e-9, atol=1e-12)
    assert torch.equal(prelu, leaky)


def test_their_gradients_are_one_too() -> None:
    x, g = values(200), values(200, seed=1)
    wanted = None
    for arm in ("arelu", "arelu-frozen", "leaky", "prelu"):
        z = x.clone().requires_grad_()
        (to_x,) = torch.autograd.grad(made(arm, cap=2.0)(z), z, g)
        wanted = to_x if wanted is None else wanted
        torch.testing.assert_close(to_x, wanted, rtol=1e-12, atol=1e-12)


def test_leaky_leaves_positives_alone_even_where_arelu_amplifies_them() -> None:
    x = values(50)
    assert torch.equal(made("leaky", scale=1.0)(x).clamp(min=0), x.clamp(min=0))
    torch.testing.assert_close(made("arelu", scale=1.0)(x), GAIN * made("leaky", scale=1.0)(x))


# What learns ------------------------------------------------------------------------------------------------------------


def test_what_learns_in_each_arm() -> None:
    learning = {
        arm: [n for n, p in made(arm).named_parameters() if p.requires_grad] for arm in SURGERY_ARMS
    }
    assert learning.pop("arelu") == ["alpha", "beta"]
    assert learning.pop("prelu") == ["activation.weight"]
    assert learning.pop("apl") == ["activation.a", "activation.b"]
    assert learning.pop("combine") == ["activation.p"]
    assert learning.pop("pau") == ["activation.numerator", "activation.denominator"]
    assert learning.pop("slaf") == ["activation.coefficients"]
    assert learning.pop("curvature") == ["activation.raw_beta", "activation.raw_c"]
    assert learning.pop("gain-only") == ["activation.beta"]
    assert not any(learning.values())


def test_frozen_arelu_keeps_its_parameters_in_the_state_so_that_its_weights_load_into_arelu() -> (
    None
):
    frozen, free = (
        made("arelu-frozen", num_parameters=3),
        made("arelu", num_parameters=3, alpha=0.7),
    )
    free.load_state_dict(frozen.state_dict(), strict=True)
    x = values(2, 3, 4)
    assert torch.equal(free(x), frozen(x))


LEARN_ONCE_A_SITE = ("apl", "combine", "pau", "slaf")


@pytest.mark.parametrize("arm", LEARN_ONCE_A_SITE)
def test_rivals_that_learn_once_a_site_refuse_channels(arm: str) -> None:
    with pytest.raises(ConfigError, match="granularity='site'"):
        made(arm, num_parameters=3)


def channels_of(arm: str) -> int:
    """As many parameters as the arm can have on a map of three channels."""
    return 1 if arm in LEARN_ONCE_A_SITE else 3


def test_the_gain_alone_has_arelus_gradient_for_beta() -> None:
    x, g = values(4, 3, 5), values(4, 3, 5, seed=1)
    for channels in (1, 3):
        alone, whole = (made(arm, num_parameters=channels) for arm in ("gain-only", "arelu"))
        (ours,) = torch.autograd.grad(alone(x), alone.activation.beta, g)
        (theirs,) = torch.autograd.grad(whole(x), whole.beta, g)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@settings(deadline=None, database=None, max_examples=100)
@given(
    numbers=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=10),
    raw=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=2),
)
def test_curvature_is_finite_and_between_the_ramp_and_softplus(
    numbers: list[float], raw: list[float]
) -> None:
    module = made("curvature", dtype=torch.float32)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), raw, strict=True):
            parameter.fill_(value)
    x = torch.tensor(numbers, requires_grad=True)
    y = module(x)
    gradients = torch.autograd.grad(y.sum(), [x, *module.parameters()])
    assert all(each.isfinite().all() for each in (y, *gradients))
    # SiLU is below ReLU and Softplus above it by at most log(2) (1 - beta).
    ramp, size = x.clamp(min=0), x.abs() + 1
    assert (y <= ramp + 0.7 + 1e-5 * size).all()
    assert (y >= x.clamp(max=0) - 1e-5 * size).all()


def test_curvature_learns_once_a_channel_by_the_same_formula() -> None:
    wide, narrow = (made("curvature", num_parameters=n) for n in (3, 1))
    x = values(2, 3, 4)
    assert torch.equal(wide(x), narrow(x))
    with torch.no_grad():
        wide.activation.raw_beta.copy_(torch.tensor([-2.0, 0.0, 2.0]))
        narrow.activation.raw_beta.fill_(2.0)
    torch.testing.assert_close(wide(x)[:, 2], narrow(x)[:, 2])
    inputs = (x.requires_grad_(), *wide.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: wide(x), inputs)


@pytest.mark.parametrize("channels", [1, 3])
def test_prelu_has_one_slope_or_one_a_channel(channels: int) -> None:
    module = made("prelu", num_parameters=channels)
    assert [p.shape for p in module.parameters()] == [(channels,)]
    with torch.no_grad():
        next(module.parameters()).copy_(torch.arange(1.0, channels + 1))
    y = module(-torch.ones(2, 3, 4, dtype=torch.float64))
    assert y[0, :, 0].tolist() == ([-1.0, -2.0, -3.0] if channels == 3 else [-1.0] * 3)


@pytest.mark.parametrize("channel_dim", [-1, 0, 2])
def test_prelu_with_channels_elsewhere_is_refused(channel_dim: int) -> None:
    with pytest.raises(ConfigError, match="granularity='site'"):
        made("prelu", num_parameters=3, channel_dim=channel_dim)
    made("prelu", num_parameters=1, channel_dim=channel_dim)(values(2, 4, 3))


def test_an_unknown_arm_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'relu7'.*arelu-frozen.*tanh"):
        made("relu7")
    with pytest.raises(ConfigError):
        made("relu")


# In place ---------------------------------------------------------------------------------------------------------------


@every_arm
@pytest.mark.parametrize("cap", [None, 1.5])
def test_in_place_writes_into_its_input_as_an_in_place_relu_does(
    arm: str, cap: float | None
) -> None:
    x = values(4, 3, 5)
    given_x = x.clone()
    result = made(arm, cap=cap, inplace=True).eval()(given_x)
    assert result.data_ptr() == given_x.data_ptr()
    torch.testing.assert_close(given_x, made(arm, cap=cap).eval()(x), rtol=1e-12, atol=1e-12)


@every_arm
def test_out_of_place_leaves_its_input(arm: str) -> None:
    x = values(4, 3)
    kept = x.clone()
    made(arm, cap=0.5).eval()(x)
    assert torch.equal(x, kept)


class Residual(nn.Module):
    """Reads the tensor that the activation may have overwritten once more, as pre-activation blocks do."""

    def __init__(self, activation: nn.Module, *, overwritten: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Conv2d(2, 3, 3).double()
        self.activation = activation
        self.after = nn.Conv2d(3, 3, 1).double()
        self.overwritten = overwritten

    def forward(self, x: Tensor) -> Tensor:
        z = self.before(x)
        y = self.activation(z)
        # Out of place the same meaning has to be written out: later readers see the result.
        return self.after(y) * (z if self.overwritten else y)


@every_arm
@pytest.mark.parametrize("cap", [None, 0.5])
def test_in_place_has_the_gradients_of_an_out_of_place_twin(arm: str, cap: float | None) -> None:
    results = []
    for inplace in (True, False):
        net = Residual(made(arm, cap=cap, inplace=inplace), overwritten=inplace).eval()
        x = values(2, 2, 6, 6).requires_grad_()
        net(x).square().sum().backward()
        results.append([x.grad, *[p.grad for p in net.parameters() if p.requires_grad]])
    assert len(results[0]) > 4 or arm not in ("arelu", "prelu")
    for mine, twins in zip(*results, strict=True):
        torch.testing.assert_close(mine, twins, rtol=1e-10, atol=1e-12)


@every_arm
@both_ways
def test_gradcheck_in_float64(arm: str, inplace: bool) -> None:
    module = made(arm, cap=2.0, inplace=inplace, num_parameters=channels_of(arm)).eval()
    x = values(2, 3, 4)
    x = x + 0.1 * x.sign()
    with torch.no_grad():
        uncapped = made(arm, num_parameters=channels_of(arm)).eval()(x)
        kinks = (
            ((uncapped - 2.0).abs() < 0.05)
            | ((x.abs() - 3).abs() < 0.05)
            | ((x - 0.5).abs() < 0.05)
        )
        x = torch.where(kinks, x + 0.3, x)
    assert torch.autograd.gradcheck(lambda z: module(z * 1), (x.requires_grad_(),))


def test_random_slopes_are_drawn_in_training_only() -> None:
    module, x = made("rrelu"), -torch.ones(100, dtype=torch.float64)
    drawn = module.train()(x)
    assert drawn.unique().numel() > 50
    assert ((drawn <= -1 / 8) & (drawn >= -1 / 3)).all()
    assert module.eval()(x).unique().numel() == 1


# Formats, devices, copies -----------------------------------------------------------------------------------------------


@every_arm
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
@both_ways
def test_the_result_has_the_inputs_format(arm: str, dtype: torch.dtype, inplace: bool) -> None:
    if arm == "rrelu" and dtype == torch.float16:
        pytest.skip("torch has no random ReLU in float16 on a CPU")
    module = make_activation(arm, **CALIBRATED, cap=6.0, inplace=inplace, dtype=dtype)
    x = values(3, 4).to(dtype)
    y = module(x.clone())
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert {p.dtype for p in module.parameters()} <= {dtype}


@every_arm
@both_ways
def test_mixed_precision_trains_with_float32_parameters(arm: str, inplace: bool) -> None:
    torch.manual_seed(0)
    module = make_activation(arm, **CALIBRATED, inplace=inplace, cap=6.0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), module, nn.Conv2d(4, 2, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(torch.randn(2, 3, 8, 8)).float().sum().backward()
    gradients = [p.grad for p in net.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@every_arm
def test_arms_are_made_on_the_device_asked_for(arm: str) -> None:
    module = make_activation(arm, **CALIBRATED, cap=6.0, device="meta")
    assert all(t.is_meta for t in module.state_dict().values())
    assert module(torch.empty(2, 3, device="meta")).is_meta


@every_arm
def test_a_copy_is_independent_and_equal(arm: str) -> None:
    module = made(arm, cap=2.0, num_parameters=channels_of(arm)).eval()
    twin, x = copy.deepcopy(module), values(2, 3, 4)
    before = module(x)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(0.77)
    assert torch.equal(module(x), before)


@every_arm
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 4), ()], ids=str)
@both_ways
def test_empty_and_scalar_inputs(arm: str, shape: tuple[int, ...], inplace: bool) -> None:
    assert (
        made(arm, cap=6.0, inplace=inplace)(torch.ones(shape, dtype=torch.float64)).shape == shape
    )


@pytest.mark.parametrize("arm", ["leaky", "prelu", "gelu", "pau"])
@both_ways
def test_compiled_without_graph_breaks_equals_eager(arm: str, inplace: bool) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()  # its count of recompilations outlives a test
    net = nn.Sequential(
        nn.Linear(3, 3), make_activation(arm, **CALIBRATED, cap=0.4, inplace=inplace)
    )
    x, results = torch.randn(4, 3), []
    for candidate in (net, torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")):
        y = candidate(x)
        y.square().sum().backward()
        results.append([y, *[p.grad for p in candidate.parameters()]])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


# All of a model ---------------------------------------------------------------------------------------------------------


def test_the_activations_of_a_model_are_those_that_surgery_makes_each_once() -> None:
    arelu, prelu, leaky = made("arelu"), made("prelu"), made("leaky")
    model = nn.Sequential(nn.PReLU(), arelu, nn.Sequential(prelu, nn.LeakyReLU(), arelu), leaky)
    assert list(named_activations(model)) == [("1", arelu), ("2.0", prelu), ("3", leaky)]
    assert [n for n, _ in named_arelus(model)] == ["1"]
    wanted = [arelu.alpha, arelu.beta, prelu.activation.weight]  # type: ignore[union-attr]
    assert [id(p) for p in activation_parameters(model)] == [id(p) for p in wanted]


def test_frozen_parameters_are_among_the_activations_parameters() -> None:
    model = nn.Sequential(made("arelu-frozen"))
    assert len(activation_parameters(model)) == 2
    assert not any(p.requires_grad for p in activation_parameters(model))


def test_a_prelu_of_the_models_own_is_not_surgerys() -> None:
    assert activation_parameters(nn.Sequential(nn.Linear(2, 2), nn.PReLU())) == []


def test_site_values_tell_of_arelus_alone() -> None:
    model = nn.Sequential(made("arelu", alpha=0.5), made("prelu"), made("gelu"))
    assert site_values(model) == {"0": [0.5, 2.0]}


def test_what_stands_at_a_site_can_be_read_in_the_models_print() -> None:
    assert isinstance(made("gelu"), SiteActivation)
    assert isinstance(made("arelu-frozen"), AReLU)
    assert "GELU" in repr(made("gelu"))
    assert "LeakyReLU(negative_slope=0.2" in repr(made("leaky"))
