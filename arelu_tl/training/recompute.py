"""Gradient checkpointing: activations are computed once more in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_tl.errors import ConfigError


def enable_grad_checkpointing(model: nn.Module) -> None:
    """Let ``model`` recompute its blocks' activations in the backward pass, in place, as timm does.

    Raises:
        ConfigError: the architecture has no checkpointing.
    """
    enable: Callable[[bool], None] | None = getattr(model, "set_grad_checkpointing", None)
    try:
        if enable is None:
            raise NotImplementedError
        enable(True)
    except (AssertionError, NotImplementedError):  # how timm's architectures say that they cannot
        raise ConfigError(
            f"{type(model).__name__} has no gradient checkpointing: leave out --grad-checkpointing, or lower --batch-size"
        ) from None


@contextmanager
def statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Forward passes inside change no statistics of BatchNorm.

    Checkpointing runs the forward pass once more in the backward pass, which would count every batch twice.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    for module in norms:
        # A momentum of 0 keeps every statistic to the last bit; without them torch would notice another graph.
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, (momentum, counter) in zip(norms, before, strict=True):
            module.momentum, module.num_batches_tracked = momentum, counter
