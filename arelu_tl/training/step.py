"""One optimiser step over one or more batches, in parts if a batch does not fit in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_tl.activation.arelu import named_arelus, project
from arelu_tl.backbone.modes import train_mode
from arelu_tl.errors import NonFiniteError
from arelu_tl.training.distributed import ALONE, World
from arelu_tl.training.evaluate import autocast, to_device
from arelu_tl.training.finite import (
    all_finite,
    nonfinite_gradient,
    nonfinite_layer,
    nonfinite_parameter,
)
from arelu_tl.training.recompute import statistics_untouched

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a step is taken; see the options of the same names.

    Attributes:
        class_weights: weight of each class in the loss; None for equal weights.
        amp: dtype of mixed precision, None for none.
        frozen_statistics: keep every BatchNorm in eval mode.
        channels_last: use the channels-last memory format.
        grad_checkpointing: the model recomputes its activations in the backward pass.
        micro_batch: pictures at a time, whose gradients are summed; None for the whole batch.
    """

    seed: int = 0
    clip_grad: float | None = None
    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    amp: torch.dtype | None = None
    frozen_statistics: bool = False
    channels_last: bool = False
    grad_checkpointing: bool = False
    micro_batch: int | None = None


class Step:
    """Takes steps on ``model`` in place.

    Attributes:
        micro_batch: pictures at a time. When memory runs out it is halved, the step is repeated,
            and ``notify`` is called with a message.
        scaler: loss scaler for float16.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: StepSettings,
        device: torch.device,
        notify: Callable[[str], None] = lambda _: None,
        world: World = ALONE,
    ) -> None:
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._model = model
        self._optimizer = optimizer
        self._settings = settings
        self._device = device
        self._notify = notify
        self._world = world
        # The forward pass of SyncBatchNorm waits for the other processes, so that no process can
        # repeat a step alone.
        self._waits = world.size > 1 and any(
            isinstance(module, nn.SyncBatchNorm) for module in model.modules()
        )
        self.micro_batch = settings.micro_batch
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp is torch.float16)
        self._alphas = [
            module.alpha for _, module in named_arelus(model) if module.alpha.requires_grad
        ]
        self._buffers = [*model.buffers()]
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]

    def train_mode(self) -> None:
        """Set the model to training mode; see ``backbone.modes.train_mode``."""
        train_mode(self._model, frozen_statistics=self._settings.frozen_statistics)

    def gradients(self, batches: Sequence[Batch], step: int) -> list[tuple[float, float]]:
        """Accumulate the mean gradient of ``batches`` (pictures (B, C, H, W), labels (B,)).

        With several processes each has an equal slice of every batch; the gradients, and the
        BatchNorm statistics, are averaged over all.

        Dropout depends only on (seed, step, rank). When memory runs out, every change of the
        attempt is undone: the step is the same as if the batch had been split from the start.
        BatchNorm sees the parts.

        Returns:
            (mean loss, number of correct predictions) of each batch, over all processes. This
            synchronises with the device once.

        Raises:
            OutOfMemoryError: a single picture does not fit, or the step cannot be repeated because
                the processes share BatchNorm statistics within it.
            PeerError: another process has ended.
        """
        _copy(self._kept, self._buffers)
        while True:
            _seed(self._settings.seed, step, self._world.rank)
            result = self._try(batches)
            if isinstance(result, list):
                return self._together(result) if self._world.size > 1 else result
            self._optimizer.zero_grad(set_to_none=True)
            _copy(self._buffers, self._kept)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            whole = max(len(labels) for _, labels in batches)
            at_once = min(self.micro_batch or whole, whole)
            if at_once == 1 or self._waits:
                raise result
            self.micro_batch = -(-at_once // 2)
            self._notify(
                f"out of memory on {self._device} with {at_once} pictures at a time: goes on with "
                f"{self.micro_batch}, their gradients added up over the same batch of {whole} "
                f"(BatchNorm sees {self.micro_batch})"
            )

    def _together(self, means: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Combine all processes' results, and average their gradients if losses are finite."""
        learning = [p for p in self._model.parameters() if p.requires_grad]
        ours = [number for loss, correct in means for number in (loss / self._world.size, correct)]
        # A parameter that the forward pass does not use has no gradient. It gets a zero gradient
        # only if it has one in another process.
        ours += [float(p.grad is not None) for p in learning]
        summed = self._world.sum(torch.tensor(ours, dtype=torch.float64)).tolist()
        combined = [(summed[i], summed[i + 1]) for i in range(0, 2 * len(means), 2)]
        if all(math.isfinite(loss) for loss, _ in combined):
            for parameter, having in zip(learning, summed[2 * len(means) :], strict=True):
                if having and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            norms = [m for m in self._model.modules() if isinstance(m, _BatchNorm) and m.training]
            statistics = [
                t for m in norms for t in (m.running_mean, m.running_var) if t is not None
            ]
            self._world.average([p.grad for p in learning if p.grad is not None] + statistics)
        return combined

    def require_finite(
        self, means: Sequence[tuple[float, float]], batches: Sequence[Batch], step: int
    ) -> None:
        """Raise if the losses or gradients of a step are NaN or infinite, before weights change.

        With float16 only the losses are checked: the scaler itself skips steps with such gradients.

        Args:
            means: the result of ``gradients``.

        Raises:
            NonFiniteError: the message names the first parameter, site or layer.
        """
        bad = next((loss for loss, _ in means if not math.isfinite(loss)), None)
        if bad is None and (
            self.scaler.is_enabled()
            or all_finite(p.grad for p in self._model.parameters() if p.grad is not None)
        ):
            return
        what = "a gradient" if bad is None else "the training loss"
        raise NonFiniteError(
            f"{what} became {'infinite or undefined' if bad is None else bad} at step {step + 1}, "
            f"first in {self._culprit(batches)}: lower `lr`, clip with `clip_grad`, or start "
            "closer to ReLU with `init='calibrated'`"
        )

    def _culprit(self, batches: Sequence[Batch]) -> str:
        if (name := nonfinite_parameter(self._model)) is not None:
            return f"parameter {name}"
        # A single process cannot repeat a forward pass that waits for the others.
        for pictures, _ in batches if not self._waits else ():
            given = to_device(pictures, self._device, channels_last=self._settings.channels_last)
            with autocast(self._device, self._settings.amp):
                if (name := nonfinite_layer(self._model, given)) is not None:
                    return name
        if (name := nonfinite_gradient(self._model)) is not None:
            return f"the gradient of {name}"
        return "the loss itself"

    def update(self) -> None:
        """Update the weights with the gradients, and clear the gradients."""
        if self._settings.clip_grad is not None:
            self.scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_grad)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        project(self._alphas)

    def _try(self, batches: Sequence[Batch]) -> list[tuple[float, float]] | torch.OutOfMemoryError:
        """Compute ``gradients``; return the error without its traceback, which holds tensors."""
        try:
            sums = torch.stack([self._batch(batch, len(batches)) for batch in batches])
            return [(loss, correct) for loss, correct in sums.tolist()]
        except torch.OutOfMemoryError as error:
            return error.with_traceback(None)

    def _batch(self, batch: Batch, of: int) -> Tensor:
        """Return (mean loss, number of correct predictions) of one of ``of`` batches."""
        size = len(batch[1])
        parts = -(-size // min(self.micro_batch or size, size))
        result = torch.zeros(2, device=self._device)
        for pictures, labels in zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True):
            share = len(labels) / size
            loss, correct = self._part(pictures, labels, share / of)
            result += torch.stack((loss * share, correct))
        return result

    def _part(self, pictures: Tensor, labels: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        pictures = to_device(pictures, self._device, channels_last=self._settings.channels_last)
        labels = labels.to(self._device, non_blocking=True)
        with autocast(self._device, self._settings.amp):
            logits = self._model(pictures)
            smoothing, weights = self._settings.smoothing, self._settings.class_weights
            loss = training_loss(logits, labels, smoothing=smoothing, class_weights=weights)
        scaled: Tensor = self.scaler.scale(loss * weight)
        with self._recomputing():
            scaled.backward()  # type: ignore[no-untyped-call]
        return loss.detach().float(), (logits.detach().argmax(1) == labels).sum().float()

    def _recomputing(self) -> AbstractContextManager[None]:
        return (
            statistics_untouched(self._model)
            if self._settings.grad_checkpointing
            else nullcontext()
        )


@torch.no_grad()
def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)


def _seed(seed: int, step: int, rank: int) -> None:
    """Seed torch so that dropout and drop-path of a step depend only on (seed, step, rank)."""
    key = [seed, step, rank] if rank else [seed, step]
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] % 2**63))


def training_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Return the class-weighted mean cross-entropy of ``logits`` (B, C) and ``labels`` (B,).

    The sum is divided by the number of pictures, not by the sum of their weights, so that parts add
    up to the batch, and batches to the epoch, however the classes are distributed.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    weights = _on_device(tuple(class_weights), logits.device)
    return F.cross_entropy(
        logits.float(), labels, weights, label_smoothing=smoothing, reduction="sum"
    ) / len(labels)


@functools.lru_cache(maxsize=4)
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(weights, device=device)
