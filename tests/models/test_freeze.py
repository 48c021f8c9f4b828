"""A frozen activation is the trained one, as constants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.models.freeze import FrozenAReLU, freeze, frozen_site


@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("beta", [-20.0, 0.0, 2.0, 20.0])
@pytest.mark.parametrize("cap", [None, 6.0])
def test_it_gives_what_the_trained_one_gives(alpha: float, beta: float, cap: float | None) -> None:
    module = AReLU(alpha, beta, scale=0.53, cap=cap).double()
    x = torch.linspace(-30, 30, 121, dtype=torch.float64)
    frozen = FrozenAReLU(frozen_site("a", module))
    assert torch.allclose(frozen(x), module(x), rtol=1e-6, atol=1e-9)


def test_its_constants_are_those_of_the_formula_and_the_slope_is_below_one() -> None:
    site = frozen_site("a", AReLU(0.9, 2.0, scale=0.5))
    gain = 1 + 1 / (1 + math.exp(-2.0))
    assert site.gains == [pytest.approx(gain * 0.5)]
    assert site.slopes == [pytest.approx(0.9 / gain, rel=1e-7)]


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_channels_keep_their_own(channel_dim: int) -> None:
    module = AReLU(0.5, 1.0, num_parameters=4, channel_dim=channel_dim)
    with torch.no_grad():
        module.alpha.copy_(torch.tensor([0.01, 0.3, 0.6, 0.99]))
        module.beta.copy_(torch.tensor([-2.0, 0.0, 1.0, 3.0]))
    x = torch.randn(2, 4, 5, 4)
    frozen, (site,) = freeze(nn.Sequential(module))
    assert len(site.gains) == 4
    assert torch.allclose(frozen(x), module(x), atol=1e-6)


def test_the_model_itself_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), AReLU()).train()
    frozen, sites = freeze(model)
    assert [site.name for site in sites] == ["1"]
    assert isinstance(model[1], AReLU)
    assert model.training
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())


def test_what_was_overwritten_still_is() -> None:
    """Whoever holds the input of an in-place ReLU sees its output; so it is with the frozen one."""
    x = torch.randn(8)
    frozen = FrozenAReLU(frozen_site("a", AReLU()), inplace=True)
    given = x.clone()
    out = frozen(given)
    assert torch.equal(out, given)
    assert not torch.equal(given, x)
