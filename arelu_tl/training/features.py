"""Train only the head, on features that the frozen trunk computes once for each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.backbone.modes import evaluating, train_mode, training
from arelu_tl.data.loader import Batches
from arelu_tl.training.evaluate import autocast, to_device
from arelu_tl.training.step import Batch, StepSettings


class HeadOnFeatures(nn.Module):
    """The classifier of ``model``, run on features; its state dict is that of the whole model.

    Args:
        name: name of the classifier in ``model``.
        drop: dropout in front of it.

    Shape:
        the classifier's input, usually (B, d) -> logits (B, classes).
    """

    def __init__(self, model: nn.Module, name: str, drop: float = 0.0) -> None:
        super().__init__()
        self.model, self.name, self.drop = model, name, drop

    @property
    def classifier(self) -> nn.Module:
        """The classifier itself."""
        return self.model.get_submodule(self.name)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of ``features``."""
        logits: Tensor = self.classifier(F.dropout(features, self.drop, self.training))
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the whole model's state dict."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the whole model's state dict."""
        return self.model.load_state_dict(*args, **kwargs)

    @torch.inference_mode()
    def features(
        self,
        pictures: Tensor,
        device: torch.device,
        settings: StepSettings,
        *,
        as_in_training: bool = False,
    ) -> Tensor:
        """Return the classifier's input for ``pictures`` (B, C, H, W): float32, on the CPU.

        Args:
            as_in_training: in the mode that training has, with batch statistics and stochastic
                depth; the model's buffers stay as they are.
        """
        seen: list[Tensor] = []
        mode = learning(self.model, settings) if as_in_training else evaluating(self.model)
        hook = self.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            with mode, autocast(device, settings.amp):
                for part in torch.split(pictures, settings.micro_batch or len(pictures)):
                    self.model(to_device(part, device, channels_last=settings.channels_last))
        finally:
            hook.remove()
        return torch.cat(seen).float().cpu()


@contextmanager
def learning(model: nn.Module, settings: StepSettings) -> Iterator[None]:
    """The mode of a training step within the block; it changes neither buffers nor the generators.

    Dropout and stochastic depth depend on the settings' seed.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    mode = training(model, frozen_statistics=settings.frozen_statistics)
    with mode, torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def head_on_features(
    model: nn.Module,
    head: Sequence[str],
    pictures: Tensor,
    device: torch.device,
    *,
    drop: float = 0.0,
) -> HeadOnFeatures | None:
    """Return ``model`` as a head on features, or None if it would train differently.

    It would if something in front of the classifier is trainable, or random in training mode. The
    two are compared on ``pictures`` (B, C, H, W) with the same seed.
    """
    if len(head) != 1:
        return None
    if any(
        p.requires_grad
        for name, p in model.named_parameters()
        if not name.startswith(f"{head[0]}.")
    ):
        return None
    alone = HeadOnFeatures(model, head[0], drop)
    features = alone.features(pictures, device, StepSettings()).to(device)
    with torch.random.fork_rng(), torch.no_grad():
        train_mode(model, frozen_statistics=True)
        whole, drawn = _under_a_seed(model, pictures.to(device))
        ours, drawn_by_head = _under_a_seed(alone, features)
    # Randomness that rarely changes the output is detected by the random numbers it consumes.
    same = torch.equal(drawn, drawn_by_head) and torch.allclose(
        ours, whole, rtol=1e-3, atol=1e-3 * whole.abs().max().item()
    )
    return alone if same else None


def _under_a_seed(model: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return (logits, state of the random number generator afterwards)."""
    torch.manual_seed(0)
    logits = model(given)
    return logits, torch.cuda.get_rng_state(
        given.device
    ) if given.is_cuda else torch.get_rng_state()


class FeatureBatches:
    """The batches of a split as features; the trunk computes them on first use.

    Args:
        batches: the split's batches, which define the order.
        in_order: the same samples, each once, in file order. The trunk always gets them in these
            groups, so that a resumed run has bitwise equal features.
    """

    def __init__(
        self,
        head: HeadOnFeatures,
        batches: Batches,
        in_order: Batches,
        device: torch.device,
        settings: StepSettings,
    ) -> None:
        self.batches = batches
        self._head, self._in_order, self._device, self._settings = head, in_order, device, settings

    @cached_property
    def _all(self) -> Batch:
        batches = [
            (self._head.features(x, self._device, self._settings), y)
            for x, y in self._in_order.epoch()
        ]
        return torch.cat([features for features, _ in batches]), torch.cat(
            [labels for _, labels in batches]
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield batches like ``Batches.epoch``; the first one includes the trunk's time."""
        for indices in self.batches.indices(epoch)[first:]:
            features, labels = self._all
            yield features[indices], labels[indices]

    def order_digest(self, epoch: int) -> str:
        """Return the digest of an epoch's order, see ``Batches.order_digest``."""
        return self.batches.order_digest(epoch)

    def first_pictures(self, epoch: int) -> Batch:
        """Return the first batch of an epoch as pictures."""
        return next(self.batches.epoch(epoch))
