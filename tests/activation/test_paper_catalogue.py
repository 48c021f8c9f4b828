"""The paper's 19 activations, as its authors' code starts them: values and gradients held to closed forms in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.activation.rivals import APL, PAU, SLAF, Combine, Maxout
from arelu_tl.errors import ConfigError

every_entry = pytest.mark.parametrize("name", CATALOGUE)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def normal(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


NUMERATOR = (
    0.02979246288526298,
    0.6183773789612337,
    2.3233520651936353,
    3.052026602542499,
    1.4854800210559198,
    0.251037168372098,
)
DENOMINATOR = (-1.1420122633320064, 4.393228336652794, 0.8715444974667658, 0.34720651626640646)


def pade(x: float) -> float:
    above = math.fsum(a * x**k for k, a in enumerate(NUMERATOR))
    return above / (1 + math.fsum(abs(b * x ** (k + 1)) for k, b in enumerate(DENOMINATOR)))


def pade_slope(x: float) -> float:
    above, above_slope = (
        math.fsum(a * x**k for k, a in enumerate(NUMERATOR)),
        math.fsum(k * a * x ** (k - 1) for k, a in enumerate(NUMERATOR) if k),
    )
    below = 1 + math.fsum(abs(b) * abs(x) ** (k + 1) for k, b in enumerate(DENOMINATOR))
    below_slope = math.copysign(1, x) * math.fsum(
        (k + 1) * abs(b) * abs(x) ** k for k, b in enumerate(DENOMINATOR)
    )
    return (above_slope * below - above * below_slope) / below**2


SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
RRELU_MEAN = (1 / 8 + 1 / 3) / 2
# name: (value, derivative), in the standard library's arithmetic; no argument is at a kink.
CLOSED: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "celu": (lambda x: x if x > 0 else math.expm1(x), lambda x: 1 if x > 0 else math.exp(x)),
    "elu": (lambda x: x if x > 0 else math.expm1(x), lambda x: 1 if x > 0 else math.exp(x)),
    "gelu": (
        lambda x: x * normal(x),
        lambda x: normal(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    "leaky-relu": (lambda x: x if x > 0 else 0.01 * x, lambda x: 1 if x > 0 else 0.01),
    "maxout": (lambda x: x, lambda x: 1),
    "rrelu": (lambda x: x if x > 0 else RRELU_MEAN * x, lambda x: 1 if x > 0 else RRELU_MEAN),
    "relu": (lambda x: max(x, 0), lambda x: float(x > 0)),
    "relu6": (lambda x: min(max(x, 0), 6), lambda x: float(0 < x < 6)),
    "selu": (
        lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * math.expm1(x)),
        lambda x: SELU_SCALE * (1 if x > 0 else SELU_ALPHA * math.exp(x)),
    ),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "softplus": (lambda x: math.log1p(math.exp(x)), sigmoid),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
    "tanh": (math.tanh, lambda x: 1 - math.tanh(x) ** 2),
    "apl": (
        lambda x: max(x, 0) + 0.2 * max(0.5 - x, 0),
        lambda x: float(x > 0) - 0.2 * float(x < 0.5),
    ),
    "combine": (lambda x: max(x, 0), lambda x: float(x > 0)),
    "pau": (pade, pade_slope),
    "prelu": (lambda x: x if x > 0 else 0.25 * x, lambda x: 1 if x > 0 else 0.25),
    "slaf": (lambda x: 1 + x, lambda x: 1),
    "arelu": (
        lambda x: (1 + sigmoid(2)) * x if x > 0 else 0.9 * x,
        lambda x: 1 + sigmoid(2) if x > 0 else 0.9,
    ),
}
ARGUMENTS = [-9.5, -4.2, -2.0, -1.0, -0.7, -0.01, 0.01, 0.3, 0.8, 1.0, 1.7, 3.1, 5.9, 6.1, 9.5]


def test_the_catalogue_is_the_papers_in_its_order() -> None:
    assert list(CATALOGUE) == list(CLOSED)
    assert [e.title for e in CATALOGUE.values() if e.learnable] == [
        "APL",
        "Combine",
        "PAU",
        "PReLU",
        "SLAF",
        "AReLU",
    ]
    assert all(name == entry.name and entry.formula for name, entry in CATALOGUE.items())


@every_entry
def test_values_and_derivatives_are_the_closed_forms(name: str) -> None:
    value, derivative = CLOSED[name]
    x = torch.tensor(ARGUMENTS, dtype=torch.float64)[:, None].requires_grad_()
    y = CATALOGUE[name].make().double().eval()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    # PReLU's and others' initial values are float32 numbers.
    torch.testing.assert_close(
        y.squeeze().tolist(), [float(value(a)) for a in ARGUMENTS], rtol=2e-7, atol=2e-7
    )
    torch.testing.assert_close(
        slope.squeeze().tolist(), [float(derivative(a)) for a in ARGUMENTS], rtol=2e-7, atol=2e-7
    )


# d y / d parameter at x, for each of the module's parameters in their order.
PARAMETER_SLOPES: dict[str, Callable[[float], list[float]]] = {
    "apl": lambda x: [max(0.5 - x, 0), 0.2 * float(x < 0.5)],
    "combine": lambda x: [x - max(x, 0)],
    "pau": lambda x: [
        *(x**k / (1 + math.fsum(abs(b * x ** (j + 1)) for j, b in enumerate(DENOMINATOR))) for k in range(6)),
        *(
            -pade(x) * math.copysign(1, b) * abs(x) ** (k + 1)
            / (1 + math.fsum(abs(c * x ** (j + 1)) for j, c in enumerate(DENOMINATOR)))
            for k, b in enumerate(DENOMINATOR)
        ),
    ],
    "prelu": lambda x: [min(x, 0)],
    "slaf": lambda x: [1, x],
    "arelu": lambda x: [min(x, 0), sigmoid(2) * (1 - sigmoid(2)) * max(x, 0)],
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETER_SLOPES)
@pytest.mark.parametrize("at", [-4.2, -0.7, 0.3, 1.7])
def test_what_learns_has_the_closed_forms_gradients(name: str, at: float) -> None:
    module = CATALOGUE[name].make().double()
    found = torch.autograd.grad(
        module(torch.tensor([[at]], dtype=torch.float64)).sum(), list(module.parameters())
    )
    flat = torch.cat([g.flatten() for g in found]).tolist()
    assert len(flat) == CATALOGUE[name].parameters == sum(p.numel() for p in module.parameters())
    torch.testing.assert_close(
        flat, [float(v) for v in PARAMETER_SLOPES[name](at)], rtol=1e-6, atol=1e-6
    )


@every_entry
def test_instances_share_nothing(name: str) -> None:
    one, other = (CATALOGUE[name].make() for _ in range(2))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.fill_(0.123)
    assert all(not (p == 0.123).any() for p in other.parameters())


@every_entry
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_maps_keep_their_format_under_wider_parameters(
    name: str, kind: torch.dtype
) -> None:
    x = torch.linspace(-50, 50, 30, dtype=kind)[:, None]
    module = CATALOGUE[name].make().eval()
    if isinstance(module, nn.PReLU):
        pytest.skip("torch's own wants one format; surgery's takes any (test_catalogue)")
    y = module(x)
    assert y.dtype == kind
    wanted = module(x.float())
    torch.testing.assert_close(y.float(), wanted, rtol=2**-6, atol=2**-6)


# PAU -------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, database=None, max_examples=200)
@given(
    x=st.floats(-(2.0**100), 2.0**100, width=32),
    numerator=st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6),
    denominator=st.lists(
        st.floats(-10, 10, width=32).filter(lambda b: abs(b) > 1e-3), min_size=4, max_size=4
    ),
)
def test_pau_is_the_quotient_wherever_powers_would_overflow(
    x: float, numerator: list[float], denominator: list[float]
) -> None:
    module = PAU()
    with torch.no_grad():
        module.numerator.copy_(torch.tensor(numerator))
        module.denominator.copy_(torch.tensor(denominator))
    z = torch.tensor([x], requires_grad=True)
    y = module(z)
    # Fractions of integers of any length: nothing overflows in the reference.

    exact = Fraction(x)
    above = sum((Fraction(a) * exact**k for k, a in enumerate(numerator)), Fraction(0))
    below = 1 + sum(
        (abs(Fraction(b) * exact ** (k + 1)) for k, b in enumerate(denominator)), Fraction(0)
    )
    size = sum((abs(Fraction(a) * exact**k) for k, a in enumerate(numerator)), Fraction(0)) / below
    assert abs(Fraction(y.item()) - above / below) <= Fraction(1e-5) * size + Fraction(1e-30)
    gradients = torch.autograd.grad(y.sum(), [z, *module.parameters()])
    assert all(g.isfinite().all() for g in gradients)


def test_pau_starts_near_a_leaky_relu() -> None:
    x = torch.linspace(-3, 3, 601)
    assert (PAU()(x) - torch.nn.functional.leaky_relu(x, 0.01)).abs().max() < 0.03


def test_pau_tells_of_numbers_that_are_none() -> None:
    assert PAU()(torch.tensor([float("nan")])).isnan().all()


# More terms, pools, and what is refused ---------------------------------------------------------------------------------


def test_apl_and_slaf_with_more_terms() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    apl = APL(2, dtype=torch.float64)
    with torch.no_grad():
        apl.a.copy_(torch.tensor([0.5, -1.0]))
        apl.b.copy_(torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(
        apl(x), x.clamp(min=0) + 0.5 * (-1 - x).clamp(min=0) - (2 - x).clamp(min=0)
    )
    slaf = SLAF(4, dtype=torch.float64)
    with torch.no_grad():
        slaf.coefficients.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    torch.testing.assert_close(slaf(x), 1 - 2 * x + 0.5 * x**2 + 3 * x**3)


def test_combine_goes_from_relu_to_the_identity() -> None:
    x = torch.linspace(-3, 3, 13)
    for p, slope in ((0.0, 0.0), (0.25, 0.25), (1.0, 1.0)):
        torch.testing.assert_close(Combine(p)(x), torch.where(x > 0, x, slope * x))


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 4, 3)])
def test_maxout_takes_the_greatest_of_neighbouring_channels(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = Maxout(3)(x)
    assert torch.equal(y[:, 0], x[:, :3].amax(1))
    assert torch.equal(y[:, 1], x[:, 3:].amax(1))


def test_of_equals_maxout_sends_the_gradient_to_the_first() -> None:
    x = torch.ones(1, 2, requires_grad=True)
    Maxout(2)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    "make",
    [lambda: APL(0), lambda: SLAF(0), lambda: Maxout(0), lambda: Maxout(2)(torch.ones(1, 3))],
    ids=["apl", "slaf", "0", "3/2"],
)
def test_nonsense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_the_catalogues_arelu_is_the_papers() -> None:
    module = CATALOGUE["arelu"].make()
    assert isinstance(module, AReLU)
    assert (module.alpha.item(), module.beta.item(), module.scale.item(), module.cap) == (
        pytest.approx(0.9),
        2.0,
        1.0,
        None,
    )


def test_plain_rivals_vectorise_over_stacked_parameters() -> None:
    def run(p: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"p": p}, (x,))

    module, stacked, x = Combine(), torch.tensor([[0.0], [0.5], [1.0]]), torch.tensor([-2.0, 2.0])
    assert torch.func.vmap(run, in_dims=(0, None))(stacked, x).tolist() == [
        [0.0, 2.0],
        [-1.0, 2.0],
        [-2.0, 2.0],
    ]
