"""An activation of the catalogue for a stack of nets, each with its own parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.activation.functional import arelu

# Draws a net's random numbers (B, H, W, C) for one site and one step, uniform in [0, 1).
Noise = Callable[[tuple[int, ...]], Tensor]


class StackedActivation:
    """``CATALOGUE[name]`` for maps (N, B, H, W, C) of N nets.

    Attributes:
        start: the initial parameters of one net.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._module = CATALOGUE[name].make().to(device)
        self._module.requires_grad_(False)
        self.start: dict[str, Tensor] = dict(self._module.named_parameters())

    def __call__(
        self, parameters: dict[str, Tensor], x: Tensor, noise: Noise | None = None
    ) -> Tensor:
        """Apply the activation to ``x`` (N, B, H, W, C).

        Args:
            parameters: like ``start``, with a leading dimension N.
            x: the maps.
            noise: for activations that are random in training; None in evaluation.
        """
        if isinstance(self._module, nn.RReLU):
            return _rrelu(x, self._module, noise)
        if self.start.keys() == {"alpha", "beta"}:
            # AReLU's own kernel treats a net as a channel.
            return arelu(
                x, parameters["alpha"].flatten(), parameters["beta"].flatten(), channel_dim=0
            )
        if not self.start:
            whole: Tensor = self._module(x)
            return whole
        each = torch.vmap(lambda own, maps: functional_call(self._module, own, (maps,)))
        stacked: Tensor = each(parameters, x)
        return stacked


def _rrelu(x: Tensor, module: nn.RReLU, noise: Noise | None) -> Tensor:
    """RReLU with the given noise; torch's own draws from a generator that all threads share."""
    if noise is None:
        return torch.where(x >= 0, x, x * ((module.lower + module.upper) / 2))
    return torch.where(
        x >= 0, x, x * (module.lower + (module.upper - module.lower) * noise(tuple(x.shape)))
    )
