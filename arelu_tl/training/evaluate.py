"""Loss, accuracy and per-picture predictions on a split."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from arelu_tl.backbone.modes import evaluating
from arelu_tl.errors import NonFiniteError
from arelu_tl.training.distributed import ALONE, World


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: mean cross-entropy in nats, without label smoothing.
        top1: accuracy, 0..1.
        predicted: predicted class of each picture, int64 (N,).
        correct: whether the prediction equals the label, bool (N,).
        probability: softmax probability of the predicted class, float32 (N,).
    """

    loss: float
    top1: float
    predicted: Tensor
    correct: Tensor
    probability: Tensor


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context for mixed precision in ``dtype``; for None, full precision."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def to_device(pictures: Tensor, device: torch.device, *, channels_last: bool) -> Tensor:
    """Move pictures (B, C, H, W) or features (B, C) to ``device``.

    Args:
        channels_last: convert pictures to the channels-last memory format.
    """
    moved = pictures.to(device, non_blocking=True)
    return (
        moved.contiguous(memory_format=torch.channels_last)
        if channels_last and moved.dim() == 4
        else moved
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    amp: torch.dtype | None = None,
    *,
    channels_last: bool = False,
    micro_batch: int | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Evaluate in eval mode, then restore the model's mode.

    Args:
        model: maps pictures (B, C, H, W) to logits (B, classes).
        batches: pairs of pictures and labels (B,), every picture once. With several processes,
            those of this rank: of all batches, rank r gets number r and then every
            ``world.size``-th.
        device: the model's device.
        amp: dtype of mixed precision, None for none.
        channels_last: use the channels-last memory format for pictures, as for the weights.
        micro_batch: pictures at a time, None for whole batches.
        world: the processes that evaluate together; all get the complete result.

    Raises:
        NonFiniteError: the loss is not finite.
    """
    ours: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with evaluating(model):
        for pictures, labels in batches:
            labels = labels.to(device, non_blocking=True)
            with autocast(device, amp):
                parts = torch.split(pictures, micro_batch or len(pictures))
                logits = torch.cat(
                    [model(to_device(part, device, channels_last=channels_last)) for part in parts]
                ).float()
            losses = F.cross_entropy(logits, labels, reduction="none")
            best = logits.softmax(1).max(1)
            ours.append((losses, best.values, best.indices, best.indices == labels))
    ours = [tuple(tensor.cpu() for tensor in batch) for batch in ours]  # type: ignore[misc]
    dealt = zip_longest(*world.gather(ours))
    every = [batch for one_each in dealt for batch in one_each if batch is not None]
    loss_of, probability, predicted, right = (
        torch.cat(tensors) for tensors in zip(*every, strict=True)
    )
    loss = loss_of.double().mean().item()
    if not torch.isfinite(torch.tensor(loss)):
        raise NonFiniteError(
            f"the validation loss is {loss}: lower `lr`, or start closer to ReLU with "
            "`init='calibrated'`"
        )
    return Evaluation(
        loss=loss,
        top1=right.double().mean().item(),
        predicted=predicted,
        correct=right,
        probability=probability,
    )
