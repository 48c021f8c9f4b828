"""Loss, accuracy and per-picture predictions on a split."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from arelu_tl.backbone import evaluating
from arelu_tl.errors import NonFiniteError


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    loss: mean cross-entropy in nats, without label smoothing.
    top1: accuracy, 0..1.
    predicted: predicted class of each picture, int64 (N,).
    correct: whether that is its class, bool (N,).
    probability: softmax probability of that class, float32 (N,).
    """

    loss: float
    top1: float
    predicted: Tensor
    correct: Tensor
    probability: Tensor


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Mixed precision in ``dtype``, or none where it is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, amp: torch.dtype | None = None
) -> Evaluation:
    """Evaluate in eval mode; the model's mode is put back.

    Args:
        model: maps pictures (B, C, H, W) to logits (B, classes).
        batches: pairs of pictures and labels (B,), every picture once.
        device: where the model lies.
        amp: dtype of mixed precision, None for none.

    Raises:
        NonFiniteError: the loss is not finite.
    """
    losses, predicted, probability, correct = [], [], [], []
    with evaluating(model):
        for pictures, labels in batches:
            labels = labels.to(device, non_blocking=True)
            with autocast(device, amp):
                logits = model(pictures.to(device, non_blocking=True))
            logits = logits.float()
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
            best = logits.softmax(1).max(1)
            probability.append(best.values)
            predicted.append(best.indices)
            correct.append(best.indices == labels)
    loss = torch.cat(losses).cpu().double().mean().item()
    if not torch.isfinite(torch.tensor(loss)):
        raise NonFiniteError(f"the validation loss is {loss}: lower --lr, or start closer to ReLU with --init calibrated")
    right = torch.cat(correct).cpu()
    return Evaluation(
        loss=loss,
        top1=right.double().mean().item(),
        predicted=torch.cat(predicted).cpu(),
        correct=right,
        probability=torch.cat(probability).cpu(),
    )
