"""Freeze activations: replace their learnt parameters by constants of plain operators.

Every runtime knows these operators, and nothing is left to learn.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.catalogue import SiteActivation, named_activations
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN


@dataclass(frozen=True)
class FrozenSite:
    """The constants of a trained site: ``min(gain * leaky_relu(x, slope), cap)``.

    There is one slope and gain, or one per channel.

    Attributes:
        name: of the module.
        slopes: for AReLU clamp(alpha) / (1 + sigmoid(beta)), which is below 1, because alpha is
            below 1 and the divisor is above 1.
        gains: for AReLU (1 + sigmoid(beta)) * scale; for a leaky ReLU or a PReLU 1.
        cap: upper bound of the output; None for no cap.
    """

    name: str
    slopes: list[float]
    gains: list[float]
    cap: float | None


def frozen_site(name: str, module: nn.Module) -> FrozenSite | None:
    """Compute the constants of ``module`` in float64; None where it is not a kind of leaky ReLU."""
    if isinstance(module, AReLU):
        alphas, betas = (p.detach().double().cpu().tolist() for p in (module.alpha, module.beta))
        scale = float(module.scale.detach().double())
        gains = [1 + 1 / (1 + math.exp(-beta)) for beta in betas]
        slopes = [
            min(max(alpha, ALPHA_MIN), ALPHA_MAX) / gain
            for alpha, gain in zip(alphas, gains, strict=True)
        ]
        return FrozenSite(name, slopes, [gain * scale for gain in gains], module.cap)
    if isinstance(module, SiteActivation):
        kind = module.activation
        if isinstance(kind, nn.LeakyReLU):
            return FrozenSite(name, [kind.negative_slope], [1.0], module.cap)
        if isinstance(kind, nn.PReLU):
            slopes = kind.weight.detach().double().cpu().tolist()
            return FrozenSite(name, slopes, [1.0] * len(slopes), module.cap)
    return None


class FrozenAReLU(nn.Module):
    """A frozen site: a leaky ReLU, a product and, where there is a cap, a minimum.

    Its constants are also in the state dict (``slopes``, ``gains``), so that loading fails if
    another activation is in its place.

    Args:
        site: its constants.
        channel_dim: dimension of the channels, where there are several constants.
        inplace: overwrite the input, as the replaced module did; other code may hold that tensor.
    """

    def __init__(self, site: FrozenSite, *, channel_dim: int = 1, inplace: bool = False) -> None:
        super().__init__()
        self.site = site
        self.channel_dim = channel_dim
        self.inplace = inplace
        self.register_buffer("slopes", torch.tensor(site.slopes))
        self.register_buffer("gains", torch.tensor(site.gains))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.site.slopes) == 1:
            y = F.leaky_relu(x, self.site.slopes[0])
            y = y if self.site.gains[0] == 1 else y * self.site.gains[0]
        else:
            shape = [1] * x.dim()
            shape[self.channel_dim] = -1
            slopes, gains = (
                t.to(x.dtype) for t in (self.get_buffer("slopes"), self.get_buffer("gains"))
            )
            # torch's PReLU needs the channels in dimension 1; otherwise its definition is used.
            y = (
                F.prelu(x, slopes)
                if self.channel_dim == 1
                else torch.where(x >= 0, x, x * slopes.view(shape))
            )
            y = y * gains.view(shape)
        if self.site.cap is not None:
            y = y.clamp(max=self.site.cap)
        return x.copy_(y) if self.inplace else y


def freeze(model: nn.Module) -> tuple[nn.Module, list[FrozenSite]]:
    """Copy ``model`` in eval mode without gradients, with its sites frozen.

    Other activations of the catalogue that are not leaky ReLUs (GELU, ...) stay as they are.

    Returns:
        (the copy, the constants of its sites in module order).
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    sites = []
    for name, module in list(named_activations(frozen)):
        if (site := frozen_site(name, module)) is not None:
            sites.append(site)
            put_site(frozen, site)
    return frozen, sites


def put_site(model: nn.Module, site: FrozenSite) -> None:
    """Replace the activation of ``site`` by its constants, under each of the module's names."""
    module = model.get_submodule(site.name)
    channel_dim = module.channel_dim if isinstance(module, AReLU) else 1
    inplace = module.inplace if isinstance(module, AReLU | SiteActivation | FrozenAReLU) else False
    device = next((t.device for t in (*module.parameters(), *module.buffers())), None)
    replacement = FrozenAReLU(site, channel_dim=channel_dim, inplace=inplace).to(device).eval()
    for name, each in list(model.named_modules(remove_duplicate=False)):
        if each is module:
            model.set_submodule(name, replacement)
