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


def to_device(pictures: Tensor, device: torch.device, *, channels_last: bool) -> Tensor:
    """Pictures (B, C, H, W), or features (B, C), on ``device``; pictures laid out as asked."""
    moved = pictures.to(device, non_blocking=True)
    return moved.contiguous(memory_format=torch.channels_last) if channels_last and moved.dim() == 4 else moved


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    amp: torch.dtype | None = None,
    *,
    channels_last: bool = False,
    micro_batch: int | None = None,
) -> Evaluation:
    """Evaluate in eval mode; the model's mode is put back.

    Args:
        model: maps pictures (B, C, H, W) to logits (B, classes).
        batches: pairs of pictures and labels (B,), every picture once.
        device: where the model lies.
        amp: dtype of mixed precision, None for none.
        channels_last: lay the pictures out with their channels side by side, as the model's weights are.
        micro_batch: pictures at a time, None for whole batches.

    Raises:
        NonFiniteError: the loss is not finite.
    """
    losses, predicted, probability, correct = [], [], [], []
    with evaluating(model):
        for pictures, labels in batches:
            labels = labels.to(device, non_blocking=True)
            with autocast(device, amp):
                parts = torch.split(pictures, micro_batch or len(pictures))
                logits = torch.cat([model(to_device(part, device, channels_last=channels_last)) for part in parts]).float()
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
