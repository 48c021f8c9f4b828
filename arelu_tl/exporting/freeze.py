"""Activations with their learnt numbers as constants: plain operators that every runtime knows, and nothing left to learn."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from arelu_tl.activation import ALPHA_MAX, ALPHA_MIN, AReLU, named_arelus


@dataclass(frozen=True)
class FrozenSite:
    """What an AReLU comes to: ``min(gain * leaky_relu(x, slope), cap)``, one slope and gain, or one a channel.

    Attributes:
        name: of the module.
        slopes: clamp(alpha) / (1 + sigmoid(beta)), below 1, since alpha is and the gain is not.
        gains: (1 + sigmoid(beta)) * scale.
    """

    name: str
    slopes: list[float]
    gains: list[float]
    cap: float | None


def frozen_site(name: str, module: AReLU) -> FrozenSite:
    """The constants of ``module``, computed in float64."""
    alphas, betas = (p.detach().double().cpu().tolist() for p in (module.alpha, module.beta))
    scale = float(module.scale.detach().double())
    gains = [1 + 1 / (1 + math.exp(-beta)) for beta in betas]
    slopes = [min(max(alpha, ALPHA_MIN), ALPHA_MAX) / gain for alpha, gain in zip(alphas, gains, strict=True)]
    return FrozenSite(name, slopes, [gain * scale for gain in gains], module.cap)


class FrozenAReLU(nn.Module):
    """An AReLU as a leaky ReLU, a product and, where there is a cap, a minimum.

    Args:
        site: its constants.
        channel_dim: dimension of the channels where there are several.
        inplace: overwrite the input, for whoever else holds it, as the module that it stands for did.
    """

    def __init__(self, site: FrozenSite, *, channel_dim: int = 1, inplace: bool = False) -> None:
        super().__init__()
        self.site = site
        self.channel_dim = channel_dim
        self.inplace = inplace
        if len(site.slopes) > 1:
            self.register_buffer("slopes", torch.tensor(site.slopes))
            self.register_buffer("gains", torch.tensor(site.gains))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.site.slopes) == 1:
            y = F.leaky_relu(x, self.site.slopes[0]) * self.site.gains[0]
        else:
            shape = [1] * x.dim()
            shape[self.channel_dim] = -1
            slopes, gains = (t.to(x.dtype) for t in (self.get_buffer("slopes"), self.get_buffer("gains")))
            # torch's PReLU wants channels in dimension 1; elsewhere the same is said by its definition.
            y = F.prelu(x, slopes) if self.channel_dim == 1 else torch.where(x >= 0, x, x * slopes.view(shape))
            y = y * gains.view(shape)
        if self.site.cap is not None:
            y = y.clamp(max=self.site.cap)
        return x.copy_(y) if self.inplace else y


def freeze(model: nn.Module) -> tuple[nn.Module, list[FrozenSite]]:
    """A copy of ``model`` in eval mode without gradients, every AReLU frozen; and the constants, in module order."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    sites = []
    for name, module in list(named_arelus(frozen)):
        site = frozen_site(name, module)
        sites.append(site)
        replacement = FrozenAReLU(site, channel_dim=module.channel_dim, inplace=module.inplace)
        frozen.set_submodule(name, replacement.to(module.alpha.device).eval())
    return frozen, sites
