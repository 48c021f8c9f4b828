"""What training minimises."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def training_loss(
    logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Mean cross-entropy of ``logits`` (B, C) and ``labels`` (B,), a picture counting as much as its class's weight says.

    It is divided by the pictures and not by their weights, so that the parts of a batch add up to the batch, and the batches to
    the epoch, however the classes fall.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    weights = _on_device(tuple(class_weights), logits.device)
    return F.cross_entropy(logits.float(), labels, weights, label_smoothing=smoothing, reduction="sum") / len(labels)


@functools.lru_cache(maxsize=4)
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(weights, device=device)
