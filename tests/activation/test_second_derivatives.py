"""Derivatives of derivatives, and what torch.func makes of the map: the same as of the formula written out, in every body."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from arelu_tl.activation import fused
from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.activation.elsa import ELSA
from arelu_tl.activation.functional import arelu
from arelu_tl.activation.operators import two_slope
from arelu_tl.paper.nets.activations import StackedActivation
from arelu_tl.paper.nets.convolution import conv_pool, conv_pool_portable

both_ways = pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
widths = pytest.mark.parametrize("channels", [1, 3])
caps = pytest.mark.parametrize("cap", [None, 1.0])


@pytest.fixture(params=["fused", "portable"])
def body(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "portable":
        monkeypatch.setattr(fused, "serves", lambda *_: False)
    elif fused.kernel_state().startswith("portable"):
        pytest.skip(fused.kernel_state())
    return str(request.param)


def problem(channels: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x away from 0 and from where a cap of 1 begins; alpha and beta."""
    stream = torch.Generator().manual_seed(seed)
    size = torch.rand(2, 3, 2, 2, generator=stream, dtype=torch.float64) * 0.2
    x = torch.where(torch.rand(size.shape, generator=stream) < 0.5, size + 0.2, -size - 0.1)
    x[0] *= 5
    alpha, beta = (
        torch.rand(channels, generator=stream, dtype=torch.float64) * 0.5 + 0.2 for _ in range(2)
    )
    return x.requires_grad_(), alpha.requires_grad_(), beta.requires_grad_()


def written(
    x: Tensor, alpha: Tensor, beta: Tensor, cap: float | None = None, scale: float = 1.0
) -> Tensor:
    """AReLU by operators that torch differentiates."""
    shape = (1, -1, 1, 1) if alpha.numel() > 1 else (1,)
    slope = torch.where(x > 0, (1 + beta.sigmoid()).view(shape), alpha.view(shape)) * scale
    y = x * slope
    return y if cap is None else torch.where(y >= cap, cap, y)


@both_ways
@widths
@caps
def test_gradgradcheck_of_each_body(
    body: str, cap: float | None, channels: int, inplace: bool
) -> None:
    options = {"scale": 0.7, "cap": cap, "inplace": inplace}
    assert torch.autograd.gradgradcheck(
        lambda x, a, b: arelu(x * 1, a, b, **options), problem(channels)
    )


@both_ways
@widths
def test_a_derivative_of_a_constant_upstream_gradient_has_its_graph(
    body: str, channels: int, inplace: bool
) -> None:
    """What flows into the site need not learn for the site's own derivative to depend on alpha and beta."""
    given = problem(channels)
    found = []
    for function in (
        lambda *p: arelu(p[0] * 1, *p[1:], cap=1.0, inplace=inplace),
        lambda *p: written(*p, cap=1.0),
    ):
        first = torch.autograd.grad(function(*given).sum(), given, create_graph=True)
        penalty = sum(
            (g.square() * torch.arange(1.0, g.numel() + 1).view(g.shape)).sum() for g in first
        )
        found.append((*first, *torch.autograd.grad(penalty, given)))
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted)
    assert all(bool(g.abs().sum() > 0) for g in found[0])


@both_ways
def test_third_derivatives_too(body: str, inplace: bool) -> None:
    given = problem(1)
    found = []
    for function in (lambda *p: arelu(p[0] * 1, *p[1:], inplace=inplace), written):
        value = function(*given).pow(3).sum()
        for _ in range(2):
            value = sum(g.sin().sum() for g in torch.autograd.grad(value, given, create_graph=True))
        found.append(torch.autograd.grad(value, given))
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize(
    "form",
    [{}, {"num_parameters": 3}, {"inplace": True}, {"inplace": True, "keep_input": True}],
    ids=str,
)
def test_gradgradcheck_of_the_module(form: dict) -> None:
    module = AReLU(0.3, 0.5, cap=1.0, scale=0.7, **form).double()
    x, _, _ = problem(1)
    assert torch.autograd.gradgradcheck(lambda z, *_: module(z * 1), (x, module.alpha, module.beta))


def test_alpha_at_an_end_of_its_range_has_second_derivatives_and_beyond_it_none() -> None:
    x, _, beta = problem(1)
    for start, wanted in ((0.01, True), (0.99, True), (0.5, True), (0.0, False), (1.2, False)):
        alpha = torch.tensor([start], dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(arelu(x, alpha, beta).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), alpha)
        assert bool(second != 0) == wanted


@widths
@caps
def test_gradgradcheck_of_the_operator(body: str, cap: float | None, channels: int) -> None:
    x, negative, more = problem(channels)
    assert torch.autograd.gradgradcheck(
        lambda x, n, m: two_slope(x, n + m, n, cap, 1), (x, negative, more)
    )


def test_gradgradcheck_of_the_other_activations_that_are_written_here() -> None:
    x, _, _ = problem(1)
    modules = [CATALOGUE[name].make() for name in ("apl", "combine", "pau", "slaf", "maxout")]
    for module in [*modules, ELSA(torch.nn.ReLU()), ELSA(None, num_parameters=3)]:
        module.double()
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(1.1).sub_(0.013)
        own = tuple(module.parameters())
        assert torch.autograd.gradgradcheck(lambda z, *_, m=module: m(z), (x, *own)), type(
            module
        ).__name__


def test_gradgradcheck_of_the_stacked_form() -> None:
    activation = StackedActivation("arelu", torch.device("cpu"))
    x, alpha, beta = problem(2)
    maps = x.view(2, 3, 2, 2, 1)
    assert torch.autograd.gradgradcheck(
        lambda x, a, b: activation({"alpha": a, "beta": b}, x), (maps, alpha, beta)
    )


@pytest.mark.parametrize("strided", [False, True], ids=["without gaps", "with gaps"])
def test_the_stacked_convolution_has_the_second_derivatives_of_its_portable_form(
    strided: bool,
) -> None:
    stream = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(s, generator=stream) for s in ((2, 2, 4, 4, 20), (2, 3, 3, 20, 40), (2, 40))
    )
    if strided:
        x, weight = x.transpose(2, 3), weight.transpose(1, 2)
    given = [t.requires_grad_() for t in (x, weight, bias)]
    found = []
    for function in (conv_pool, conv_pool_portable):
        first = torch.autograd.grad(function(*given).square().sum(), given, create_graph=True)
        penalty = sum(g.square().mean() for g in first)
        found.append((*first, *torch.autograd.grad(penalty, given)))
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(
            mine, wanted, rtol=1e-4, atol=1e-4 * float(wanted.detach().abs().max())
        )


# torch.func -------------------------------------------------------------------------------------------------------------

TRANSFORMS: dict[str, Callable[[Callable[..., Tensor], tuple[Tensor, ...]], object]] = {
    "grad": lambda f, given: torch.func.grad(lambda *p: f(*p).sin().sum(), argnums=(0, 1, 2))(
        *given
    ),
    "grad of grad": lambda f, given: torch.func.grad(
        lambda *p: torch.func.grad(lambda *q: f(*q).pow(3).sum(), argnums=1)(*p).sum(),
        argnums=(0, 1, 2),
    )(*given),
    "vmap": lambda f, given: torch.vmap(f, in_dims=(0, None, None))(given[0][:, None], *given[1:]),
    "vmap over parameters": lambda f, given: torch.vmap(f, in_dims=(None, 0, 0))(
        given[0], torch.stack([given[1], given[1] / 2]), torch.stack([given[2], given[2] + 1])
    ),
    "jacrev": lambda f, given: torch.func.jacrev(f, argnums=(0, 1, 2))(*given),
    "jacfwd": lambda f, given: torch.func.jacfwd(f, argnums=(0, 1, 2))(*given),
    "hessian": lambda f, given: torch.func.hessian(
        lambda *p: f(*p).pow(3).sum(), argnums=(0, 1, 2)
    )(*given),
    "jvp": lambda f, given: torch.func.jvp(f, given, tuple(torch.ones_like(t) for t in given)),
    "vjp": lambda f, given: torch.func.vjp(f, *given)[1](torch.ones_like(given[0])),
    "linearize": lambda f, given: torch.func.linearize(f, *given)[1](
        *(torch.ones_like(t) for t in given)
    ),
    "functionalize": lambda f, given: torch.func.functionalize(f)(*given),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@widths
@both_ways
def test_torch_func(transform: Callable[..., object], channels: int, inplace: bool) -> None:
    given = tuple(t.detach() for t in problem(channels))

    def mine(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        # Where only the parameters are batched, a map that isn't cannot be overwritten, with ReLU's in-place form neither.
        return arelu(x * 1 + 0 * alpha.sum(), alpha, beta, cap=1.0, scale=0.7, inplace=inplace)

    torch.testing.assert_close(
        transform(mine, given), transform(lambda *p: written(*p, cap=1.0, scale=0.7), given)
    )


@both_ways
def test_forward_mode_without_torch_func(inplace: bool) -> None:
    given = tuple(t.detach() for t in problem(3))
    tangents = tuple(
        torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(n))
        for n, t in enumerate(given)
    )
    found = []
    for function in (
        lambda x, a, b: arelu(x * 1, a, b, cap=1.0, inplace=inplace),
        lambda *p: written(*p, cap=1.0),
    ):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t, tangent) for t, tangent in zip(given, tangents, strict=True)
            ]
            found.append(tuple(forward_ad.unpack_dual(function(*duals))))
    torch.testing.assert_close(*found)
