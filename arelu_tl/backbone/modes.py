"""Run a model in eval or training mode, and restore every module's own mode afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import nn


@contextmanager
def _in_mode(model: nn.Module, change: Callable[[nn.Module], object]) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    change(model)
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def train_mode(model: nn.Module, *, frozen_statistics: bool) -> None:
    """Set training mode; with ``frozen_statistics``, BatchNorm normalises by its running ones."""
    model.train()
    if frozen_statistics:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Eval mode within the block; afterwards each module's own mode is restored.

    A frozen BatchNorm therefore stays frozen.
    """
    return _in_mode(model, nn.Module.eval)


def training(model: nn.Module, *, frozen_statistics: bool = False) -> AbstractContextManager[None]:
    """Training mode within the block, see ``train_mode``; afterwards each module's own mode."""
    return _in_mode(model, partial(train_mode, frozen_statistics=frozen_statistics))
