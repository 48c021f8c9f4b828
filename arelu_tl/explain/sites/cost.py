"""What the activations of a model cost, counted from their shapes: operations and memory traffic, beside the layers' own."""

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

# Operations an element, forward: a ReLU is one maximum; an AReLU is two products and a maximum.
_RELU_FLOPS = 1
_ARELU_FLOPS = 3
# Passes over memory an element, forward. A ReLU reads and writes. The portable AReLU, in place, is three ATen operators: the
# suppressed product (read, write), the amplified one (read, write), their maximum (two reads, write).
_RELU_PASSES = 2
_ARELU_PASSES = 7


@dataclass(frozen=True)
class Cost:
    """Forward cost of one picture, float32.

    Attributes:
        elements: numbers that go through the replaced sites.
        relu_flops, arelu_flops: operations there, before and after.
        relu_bytes, arelu_bytes: bytes read and written there, before and after.
        model_flops: operations of the convolutions and matrix products, two a multiply-add; None where the model could not
            be run without values.
    """

    elements: int
    relu_flops: int
    arelu_flops: int
    relu_bytes: int
    arelu_bytes: int
    model_flops: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def activation_cost(sites: Sequence[PlannedSite], model_flops: int | None) -> Cost:
    """The cost of the replaced sites of ``sites``, whose shapes are those of one picture."""
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
    """Operations of one forward pass on one picture of ``size`` (C, H, W), run on the meta device; None where it cannot be."""
    run = on_meta(model, size)
    counter = FlopCounterMode(display=False)
    try:
        with evaluating(model), torch.no_grad(), counter:
            run()
    except (RuntimeError, TypeError, ValueError):  # a forward pass that looks at values has none to look at
        return None
    return int(counter.get_total_flops())
