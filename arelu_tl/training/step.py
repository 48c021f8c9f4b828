"""One optimiser step: gradients of one or several batches, in parts where a whole batch does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_tl.activation import named_arelus, project
from arelu_tl.training.evaluate import autocast, to_device
from arelu_tl.training.recompute import statistics_untouched

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a step is taken; see the options of the same names.

    Attributes:
        amp: dtype of mixed precision, None for none.
        frozen_backbone: keep every BatchNorm in eval mode.
        channels_last: lay maps out with their channels side by side.
        grad_checkpointing: the model recomputes its activations in the backward pass.
        micro_batch: pictures at a time; the gradients of the parts are added up. None for the whole batch.
    """

    seed: int = 0
    clip_grad: float | None = None
    smoothing: float = 0.0
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
    ) -> None:
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._model, self._optimizer, self._settings, self._device, self._told = model, optimizer, settings, device, told
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

        Dropout depends on (seed, step) alone. Where memory runs out, everything that the attempt has changed is put back:
        the step is what it would have been, had the batch been taken in parts from the start. BatchNorm sees the parts.

        Returns:
            (mean loss, correctly classified) of each batch; the device is waited for once.

        Raises:
            OutOfMemoryError: a single picture is too much.
        """
        _copy(self._kept, self._buffers)
        while True:
            _seed(self._settings.seed, step)
            told = self._try(batches)
            if isinstance(told, list):
                return told
            self._optimizer.zero_grad(set_to_none=True)
            _copy(self._buffers, self._kept)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            whole = max(len(labels) for _, labels in batches)
            at_once = min(self.micro_batch or whole, whole)
            if at_once == 1:
                raise told
            self.micro_batch = -(-at_once // 2)
            self._told(
                f"out of memory on {self._device} with {at_once} pictures at a time: goes on with {self.micro_batch}, "
                f"their gradients added up over the same batch of {whole} (BatchNorm sees {self.micro_batch})"
            )

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
            loss = F.cross_entropy(logits, labels, label_smoothing=self._settings.smoothing)
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


def _seed(seed: int, step: int) -> None:
    """Dropout and drop-path of a step depend on (seed, step) alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] % 2**63))
