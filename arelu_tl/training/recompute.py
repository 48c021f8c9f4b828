"""Gradient checkpointing: recompute activations in the backward pass instead of storing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_tl.errors import ConfigError


def enable_grad_checkpointing(model: nn.Module) -> None:
    """Enable timm's gradient checkpointing of ``model``, in place.

    Raises:
        ConfigError: the architecture does not support it.
    """
    enable: Callable[[bool], None] | None = getattr(model, "set_grad_checkpointing", None)
    try:
        if enable is None:
            raise NotImplementedError
        enable(True)
    except (AssertionError, NotImplementedError):  # what timm's unsupported architectures raise
        raise ConfigError(
            f"{type(model).__name__} has no gradient checkpointing: leave out "
            "`grad_checkpointing`, or lower `batch_size`"
        ) from None


@contextmanager
def statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Keep forward passes inside the context from changing BatchNorm statistics.

    Checkpointing repeats the forward pass in the backward pass and would count every batch twice.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [(m.momentum, m.num_batches_tracked) for m in norms]
    for module in norms:
        # A momentum of 0 keeps the statistics bitwise. They must stay enabled: without them torch
        # would detect a different graph.
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, (momentum, counter) in zip(norms, before, strict=True):
            module.momentum, module.num_batches_tracked = momentum, counter
