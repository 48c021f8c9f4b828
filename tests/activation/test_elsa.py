"""ELSA: what its attention is, that over ReLU it is AReLU, and that it works on top of any activation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.activation.elsa import ELSA, attention_map, modulate
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN
from arelu_tl.errors import ConfigError


def gradients_of(module: nn.Module, x: Tensor, g: Tensor) -> list[Tensor]:
    z = x.clone().requires_grad_()
    y = module(z)
    return [y.detach(), *torch.autograd.grad(y, [z, *module.parameters()], g)]


@settings(deadline=None, database=None, max_examples=100)
@given(
    seed=st.integers(0, 2**20),
    alpha=st.sampled_from([ALPHA_MIN, ALPHA_MAX]) | st.floats(0.01, 0.99),
    beta=st.floats(-10, 10),
    channels=st.sampled_from([1, 3]),
    channel_dim=st.sampled_from([1, -1]),
)
def test_over_relu_it_is_arelu(
    seed: int, alpha: float, beta: float, channels: int, channel_dim: int
) -> None:
    stream = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(2, 3, 4, 3, generator=stream, dtype=torch.float64) for _ in range(2))
    x = x + 0.01 * x.sign()
    options = {"num_parameters": channels, "channel_dim": channel_dim}
    elsa = ELSA(nn.ReLU(), alpha, beta, **options).double()
    arelu = AReLU(alpha, beta, **options).double()
    for mine, wanted in zip(gradients_of(elsa, x, g), gradients_of(arelu, x, g), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)


def test_alphas_beyond_the_bounds_are_clamped_and_get_no_gradient_as_arelus() -> None:
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(2, 3, 2)
    elsa, arelu = (
        kind.double() for kind in (ELSA(nn.ReLU(), num_parameters=3), AReLU(num_parameters=3))
    )
    with torch.no_grad():
        for module in (elsa, arelu):
            module.alpha.copy_(torch.tensor([-1.0, 0.5, 3.0]))
    for mine, wanted in zip(
        gradients_of(elsa, x, torch.ones_like(x)),
        gradients_of(arelu, x, torch.ones_like(x)),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("name", CATALOGUE)
def test_on_top_of_any_activation_it_adds_the_modulated_input(name: str) -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    plain = CATALOGUE[name].make().eval()
    elsa = ELSA(plain, 0.4, -1.0).eval()
    attended = torch.where(x < 0, 0.4 * x, torch.tensor(-1.0).sigmoid() * x)
    torch.testing.assert_close(elsa(x), plain(x) + attended)
    torch.testing.assert_close(ELSA(None, 0.4, -1.0)(x), attended)
    elsa(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in elsa.parameters())


def test_the_map_has_the_inputs_full_shape_and_only_the_sign_decides() -> None:
    x = torch.tensor([[[-3.0, 0.0], [-0.1, 5.0]], [[1e-9, -1e-9], [2.0, -2.0]]])
    alpha, beta = torch.tensor([0.25, 0.5]), torch.tensor([0.0, 100.0])
    phi = attention_map(x, alpha, beta, channel_dim=1)
    assert phi.tolist() == [[[0.25, 0.5], [0.5, 1.0]], [[0.5, 0.25], [1.0, 0.5]]]
    assert torch.equal(modulate(x, phi), phi * x)
    assert torch.equal(
        ELSA(nn.Tanh()).attention(x), attention_map(x, torch.tensor([0.9]), torch.tensor([2.0]))
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_result_has_the_inputs_format(kind: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 9).to(kind)
    elsa = ELSA(nn.ReLU())
    assert elsa(x).dtype == elsa.attention(x).dtype == kind


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"alpha": float("nan")},
        {"beta": float("inf")},
        {"num_parameters": 0},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ELSA(nn.ReLU(), **options)
