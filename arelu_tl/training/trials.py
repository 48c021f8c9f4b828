"""What is tried before a training begins, on a copy of the model: whether it compiles, and whether it may be checkpointed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arelu_tl.errors import ConfigError, SurgeryError
from arelu_tl.training.evaluate import evaluate
from arelu_tl.training.step import Batch, Step, StepSettings

_FEW = 2


def try_step(
    model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, settings: StepSettings, device: torch.device
) -> int | None:
    """One whole training step, to learn that it can be taken; whatever it raises goes through.

    Returns:
        How many pictures at a time it could be taken with; None for all.
    """
    step = Step(model, optimizer, settings, device)
    step.train_mode()
    step.gradients([batch], 0)
    step.update()
    return step.micro_batch


def compiling_fails(model: nn.Module, batch: Batch, settings: StepSettings, device: torch.device) -> str | None:
    """Compile ``model`` in place, train and evaluate it on ``batch``; why that fails, in a line, or None."""
    model.compile(dynamic=False)
    try:
        _gradients(model, batch, settings, device)
        evaluate(model, [batch], device, settings.amp, channels_last=settings.channels_last)
    except Exception as error:  # noqa: BLE001  the compiler, its back ends and theirs have errors of every class
        return f"{type(error).__name__}: {' '.join(str(error).partition('Set TORCHDYNAMO')[0].split())[:200]}"
    finally:
        # What was compiled for a model that is thrown away would count towards the limit of the one that trains.
        torch.compiler.reset()
    return None


def check_recomputation(model: nn.Module, batch: Batch, settings: StepSettings, device: torch.device) -> None:
    """Raise unless ``model``, whose checkpointing is on, has the gradients that it has without, on a few pictures.

    Raises:
        ConfigError: it fails, or the gradients are others, as where a block overwrites what it is computed from once more.
    """
    few = batch[0][:_FEW], batch[1][:_FEW]
    told = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        try:
            told.append(_gradients(model, few, settings, device))
        except (RuntimeError, SurgeryError) as error:
            # Autograd notices most of what is overwritten, and torch a block that runs otherwise the second time.
            if not checkpointing or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ConfigError(
                f"{type(model).__name__} cannot be checkpointed ({' '.join(str(error).split())[:150]}): "
                "leave out --grad-checkpointing"
            ) from error
    for plain, ours in zip(*told, strict=True):
        if not torch.allclose(ours, plain, rtol=1e-2, atol=1e-2 * plain.abs().max().item(), equal_nan=True):
            raise ConfigError(
                f"{type(model).__name__} has other gradients with checkpointing than without: leave out --grad-checkpointing"
            )


def _gradients(model: nn.Module, batch: Batch, settings: StepSettings, device: torch.device) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    learning = [p for p in model.parameters() if p.requires_grad]
    step = Step(model, torch.optim.SGD(learning), settings, device)
    step.train_mode()
    step.gradients([batch], 0)
    return [p.grad.clone() for p in learning if p.grad is not None]
