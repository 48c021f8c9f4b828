"""Estimate the activations' operations and memory traffic from their shapes, and the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from arelu_tl.backbone.modes import evaluating
from arelu_tl.surgery.plan import PlannedSite
from arelu_tl.surgery.trace import on_meta

# Operations per element, forward: a ReLU is one maximum; an AReLU is two products and a maximum.
_RELU_FLOPS = 1
_ARELU_FLOPS = 3
# Memory accesses per element, forward. A ReLU reads and writes. The portable AReLU, in place, is
# three ATen operators: the suppressed product (read, write), the amplified product (read, write)
# and their maximum (two reads, write).
_RELU_PASSES = 2
_ARELU_PASSES = 7


@dataclass(frozen=True)
class Cost:
    """Forward cost of one picture, float32.

    Attributes:
        elements: number of elements at the replaced sites.
        relu_flops, arelu_flops: operations there, before and after the replacement.
        relu_bytes, arelu_bytes: bytes read and written there, before and after.
        model_flops: operations of the convolutions and matrix products, two per multiply-add; None
            where the model does not run on the meta device.
    """

    elements: int
    relu_flops: int
    arelu_flops: int
    relu_bytes: int
    arelu_bytes: int
    model_flops: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the costs as plain JSON values."""
        return asdict(self)


def activation_cost(sites: Sequence[PlannedSite], model_flops: int | None) -> Cost:
    """Compute the cost of the replaced ones of ``sites``, whose shapes are for one picture."""
    elements = sum(prod(s.site.shape[1:]) for s in sites if s.status == "replaced")
    return Cost(
        elements=elements,
        relu_flops=_RELU_FLOPS * elements,
        arelu_flops=_ARELU_FLOPS * elements,
        relu_bytes=4 * _RELU_PASSES * elements,
        arelu_bytes=4 * _ARELU_PASSES * elements,
        model_flops=model_flops,
    )


def model_flops(model: nn.Module, size: Sequence[int]) -> int | None:
    """Count the operations of one forward pass on one picture of ``size`` (C, H, W).

    It runs on the meta device; the result is None where that fails.
    """
    run = on_meta(model, size)
    counter = FlopCounterMode(display=False)
    try:
        with evaluating(model), torch.no_grad(), counter:
            run()
    except (RuntimeError, TypeError, ValueError):
        # A forward pass that reads values fails on the meta device, which has none.
        return None
    return int(counter.get_total_flops())
