"""What every site does to its input in one forward pass: before, after, and what it multiplies by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arelu_tl.activation import named_activations
from arelu_tl.surgery.sites import Site
from arelu_tl.surgery.watch import watch_sites

# Nearer to 0 the quotient of output and input is none; there it is taken at this distance on the same side, right of 0 at 0.
_NEAR_ZERO = 1e-6


@dataclass(frozen=True)
class Passage:
    """What one site did in one forward pass; nothing here is shared with the model, whose sites overwrite their inputs.

    Attributes:
        before, after: its input and output, of ``Site.shape``.
        attention: what each element was multiplied by, after / before, the cap included (ELSA's map, arXiv 2006.13858,
            section 3.1): 1 or 0 of a ReLU, of AReLU scale * (1 + sigmoid(beta)) or scale * clamp(alpha). None where the
            activation does not keep 0 at 0, so that no factor tells what it does.
    """

    before: Tensor
    after: Tensor
    attention: Tensor | None


def observe_sites(model: nn.Module, sites: Sequence[Site], run: Callable[[], Any], seen: Callable[[int, Passage], None]) -> None:
    """Call ``run`` and tell ``seen(i, passage)`` of what went through ``sites[i]``.

    Args:
        model, sites: see ``watch_sites``; the model is left as it is.
        run: calls ``model`` once, without gradients.

    Raises:
        SurgeryError: see ``watch_sites``.
    """
    activations = dict(named_activations(model))
    before: dict[int, Tensor] = {}

    def entered(number: int, x: Tensor) -> None:
        before[number] = x.clone()

    def left(number: int, output: Tensor) -> None:
        site, x = sites[number], before.pop(number)
        # Not by calling the module, whose hooks would take it for one more site.
        activation = activations[site.name].forward if site.name in activations else lambda y: y.clamp(0, site.cap)
        seen(number, Passage(x, output.clone(), _attention(x, activation)))

    with watch_sites(model, sites, entered, left):
        run()


def _attention(x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor | None:
    """activation(x) / x; in place or not, ``x`` stays."""
    if bool((activation(torch.zeros_like(x)).abs() > _NEAR_ZERO).any()):
        return None
    side = torch.where(x < 0, -_NEAR_ZERO, _NEAR_ZERO).to(x.dtype)
    away = torch.where(x.abs() < _NEAR_ZERO, side, x)
    return activation(away.clone()) / away + 0.0  # -0 becomes 0
