"""Re-estimate BatchNorm after surgery, and measure how far surgery moved the backbone's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_tl.backbone import evaluating


@dataclass(frozen=True)
class Drift:
    """How far surgery moved the outputs on the same pictures.

    Attributes:
        relative: norm(f1 - f0) / norm(f0) of the pooled features; None where the outputs overflowed.
        top1_agreement: share of pictures whose pretrained top-1 class stayed the same, 0..1.
        images: pictures that it was measured on.
    """

    relative: float | None
    top1_agreement: float
    images: int

    def to_json(self) -> dict[str, Any]:
        return {"relative": self.relative, "top1_agreement": self.top1_agreement, "images": self.images}


def calibration_batches(pictures: Sequence[Tensor], size: int = 32) -> list[Tensor]:
    """Pictures (C, H, W) as batches (B, C, H, W) that weigh alike in a mean over batches: sizes differ by at most one.

    Raises:
        ValueError: fewer than two pictures, of which BatchNorm can make no statistics.
    """
    if len(pictures) < 2:
        raise ValueError("calibration needs at least two pictures")
    parts = -(-len(pictures) // size)
    if len(pictures) // parts < 2:
        parts = 1
    share, extra = divmod(len(pictures), parts)
    sizes = [share + (i < extra) for i in range(parts)]
    return list(torch.split(torch.stack(list(pictures)), sizes))


@torch.no_grad()
def measure_outputs(model: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(pooled features (N, D), top-1 class (N,)) in eval mode; the model's mode is put back.

    A module without timm's ``forward_features`` gives its output for its features.
    """
    forward_features: Callable[..., Tensor] | None = getattr(model, "forward_features", None)
    forward_head: Callable[..., Tensor] | None = getattr(model, "forward_head", None)
    features, classes = [], []
    with evaluating(model):
        for batch in batches:
            if forward_features is not None and forward_head is not None:
                hidden = forward_features(batch)
                pooled, logits = forward_head(hidden, pre_logits=True), forward_head(hidden)
            else:
                pooled = logits = model(batch)
            features.append(pooled.flatten(1).float().cpu())
            classes.append(logits.flatten(1).float().argmax(1).cpu())
    return torch.cat(features), torch.cat(classes)


def relative_drift(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Drift:
    """Drift between two ``measure_outputs`` on the same pictures."""
    relative = float((after[0].double() - before[0].double()).norm() / before[0].double().norm())
    return Drift(
        relative=relative if math.isfinite(relative) else None,
        top1_agreement=float((before[1] == after[1]).float().mean()),
        images=len(before[1]),
    )


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace every BatchNorm's running statistics by their mean over ``batches``; all else stays in eval mode.

    Args:
        model: changed in place; modes and momenta are put back, and with an error the statistics too.
        batches: pictures, (B, C, H, W) with B at least 2.

    Returns:
        The number of BatchNorm layers re-estimated; 0 without batches.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    given = list(batches)
    if not layers or not given:
        return 0
    before = [(layer.momentum, {k: v.clone() for k, v in layer.state_dict().items()}) for layer in layers]
    done = False
    with evaluating(model):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a plain mean over all batches
                layer.train()
            for batch in given:
                model(batch)
            done = True
        finally:
            for layer, (momentum, state) in zip(layers, before, strict=True):
                layer.momentum = momentum
                if not done:
                    layer.load_state_dict(state)
    return len(layers)
