"""One optimiser step: gradients of one or several batches, in parts where a whole batch does not fit into memory."""

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
from arelu_tl.errors import NonFiniteError
from arelu_tl.training.distributed import ALONE, World
from arelu_tl.training.evaluate import autocast, to_device
from arelu_tl.training.finite import all_finite, nonfinite_gradient, nonfinite_layer, nonfinite_parameter
from arelu_tl.training.recompute import statistics_untouched

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a step is taken; see the options of the same names.

    Attributes:
        class_weights: what a picture of each class counts in the loss, None where all count the same.
        amp: dtype of mixed precision, None for none.
        frozen_backbone: keep every BatchNorm in eval mode.
        channels_last: lay maps out with their channels side by side.
        grad_checkpointing: the model recomputes its activations in the backward pass.
        micro_batch: pictures at a time; the gradients of the parts are added up. None for the whole batch.
    """

    seed: int = 0
    clip_grad: float | None = None
    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    amp: torch.dtype | None = None
    frozen_backbone: bool = False
    channels_last: bool = False
    grad_checkpointing: bool = False
    micro_batch: int | None = None


class Step:
    """Takes steps on ``model`` in place.

    Attributes:
        micro_batch: pictures at a time. It is halved whenever memory runs out, and the step at hand begins again; ``told`` hears
            of it.
        scaler: of the loss, for float16.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: StepSettings,
        device: torch.device,
        told: Callable[[str], None] = lambda _: None,
        world: World = ALONE,
    ) -> None:
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._model, self._optimizer, self._settings, self._device, self._told = model, optimizer, settings, device, told
        self._world = world
        # The forward pass of such a layer waits for the other processes: none of them can begin a step again by itself.
        self._waits = world.size > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        self.micro_batch = settings.micro_batch
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp is torch.float16)
        self._alphas = [module.alpha for _, module in named_arelus(model) if module.alpha.requires_grad]
        self._buffers = [*model.buffers()]
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]

    def train_mode(self) -> None:
        """Put the model into training mode, a frozen backbone's BatchNorm apart."""
        self._model.train()
        if self._settings.frozen_backbone:
            for module in self._model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def gradients(self, batches: Sequence[Batch], step: int) -> list[tuple[float, float]]:
        """Add up the mean gradient of ``batches`` (pictures (B, C, H, W), labels (B,)).

        Of several processes each has its slice of every batch, as many pictures as any other; the gradients, and the statistics
        that BatchNorm learns, are averaged over all.

        Dropout depends on (seed, step, rank) alone. Where memory runs out, everything that the attempt has changed is put back:
        the step is what it would have been, had the batch been taken in parts from the start. BatchNorm sees the parts.

        Returns:
            (mean loss, correctly classified) of each batch, of all processes; the device is waited for once.

        Raises:
            OutOfMemoryError: a single picture is too much, or the processes share BatchNorm's statistics within the step.
            PeerError: another process has ended.
        """
        _copy(self._kept, self._buffers)
        while True:
            _seed(self._settings.seed, step, self._world.rank)
            told = self._try(batches)
            if isinstance(told, list):
                return self._together(told) if self._world.size > 1 else told
            self._optimizer.zero_grad(set_to_none=True)
            _copy(self._buffers, self._kept)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            whole = max(len(labels) for _, labels in batches)
            at_once = min(self.micro_batch or whole, whole)
            if at_once == 1 or self._waits:
                raise told
            self.micro_batch = -(-at_once // 2)
            self._told(
                f"out of memory on {self._device} with {at_once} pictures at a time: goes on with {self.micro_batch}, "
                f"their gradients added up over the same batch of {whole} (BatchNorm sees {self.micro_batch})"
            )

    def _together(self, told: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """What all processes tell, and the mean of their gradients, where those are numbers."""
        learning = [p for p in self._model.parameters() if p.requires_grad]
        ours = [number for loss, correct in told for number in (loss / self._world.size, correct)]
        # What the forward pass has not met has no gradient; it shall have none unless it has one elsewhere.
        ours += [float(p.grad is not None) for p in learning]
        summed = self._world.sum(torch.tensor(ours, dtype=torch.float64)).tolist()
        all_told = [(summed[i], summed[i + 1]) for i in range(0, 2 * len(told), 2)]
        if all(math.isfinite(loss) for loss, _ in all_told):
            for parameter, having in zip(learning, summed[2 * len(told) :], strict=True):
                if having and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            norms = [m for m in self._model.modules() if isinstance(m, _BatchNorm) and m.training]
            statistics = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
            self._world.average([p.grad for p in learning if p.grad is not None] + statistics)
        return all_told

    def require_finite(self, told: Sequence[tuple[float, float]], batches: Sequence[Batch], step: int) -> None:
        """Raise where the losses or the gradients of a step are not all numbers, before they have moved a weight.

        float16's scaler has its own way with gradients: it leaves such a step out.

        Raises:
            NonFiniteError: with the parameter, the site or the layer that was first.
        """
        bad = next((loss for loss, _ in told if not math.isfinite(loss)), None)
        if bad is None and (
            self.scaler.is_enabled() or all_finite(p.grad for p in self._model.parameters() if p.grad is not None)
        ):
            return
        what = "a gradient" if bad is None else "the training loss"
        raise NonFiniteError(
            f"{what} became {'infinite or undefined' if bad is None else bad} at step {step + 1}, first in "
            f"{self._culprit(batches)}: lower --lr, clip with --clip-grad, or start closer to ReLU with --init calibrated"
        )

    def _culprit(self, batches: Sequence[Batch]) -> str:
        if (name := nonfinite_parameter(self._model)) is not None:
            return f"parameter {name}"
        # Layers that wait for other processes cannot be asked once more by one of them.
        for pictures, _ in batches if not self._waits else ():
            given = to_device(pictures, self._device, channels_last=self._settings.channels_last)
            with autocast(self._device, self._settings.amp):
                if (name := nonfinite_layer(self._model, given)) is not None:
                    return name
        if (name := nonfinite_gradient(self._model)) is not None:
            return f"the gradient of {name}"
        return "the loss itself"

    def update(self) -> None:
        """Move the weights by the gradients, and forget those."""
        if self._settings.clip_grad is not None:
            self.scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_grad)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        project(self._alphas)

    def _try(self, batches: Sequence[Batch]) -> list[tuple[float, float]] | torch.OutOfMemoryError:
        """``gradients``, or the error, stripped of what would keep the attempt's tensors alive."""
        try:
            sums = torch.stack([self._batch(batch, len(batches)) for batch in batches])
            return [(loss, correct) for loss, correct in sums.tolist()]
        except torch.OutOfMemoryError as error:
            return error.with_traceback(None)

    def _batch(self, batch: Batch, of: int) -> Tensor:
        """(mean loss, correctly classified) of a batch, one of ``of``."""
        size = len(batch[1])
        parts = -(-size // min(self.micro_batch or size, size))
        told = torch.zeros(2, device=self._device)
        for pictures, labels in zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True):
            share = len(labels) / size
            loss, correct = self._part(pictures, labels, share / of)
            told += torch.stack((loss * share, correct))
        return told

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
        return statistics_untouched(self._model) if self._settings.grad_checkpointing else nullcontext()


@torch.no_grad()
def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)


def _seed(seed: int, step: int, rank: int) -> None:
    """Dropout and drop-path of a step depend on (seed, step, rank) alone."""
    key = [seed, step, rank] if rank else [seed, step]
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] % 2**63))


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
