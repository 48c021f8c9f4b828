"""Try on a copy of the model, before training, whether it compiles and can be checkpointed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arelu_tl.errors import ConfigError, SurgeryError
from arelu_tl.training.evaluate import evaluate
from arelu_tl.training.step import Batch, Step, StepSettings

_FEW = 2


def try_step(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    settings: StepSettings,
    device: torch.device,
) -> int | None:
    """Take one whole training step to check that it works; its errors are not caught.

    Returns:
        The pictures at a time that memory allowed; None for the whole batch.
    """
    step = Step(model, optimizer, settings, device)
    step.train_mode()
    step.gradients([batch], 0)
    step.update()
    return step.micro_batch


def compiling_fails(
    model: nn.Module, batch: Batch, settings: StepSettings, device: torch.device
) -> str | None:
    """Compile ``model`` in place, then train and evaluate it on ``batch``.

    Returns:
        Why that fails, in one line; None if it works.
    """
    model.compile(dynamic=False)
    try:
        _gradients(model, batch, settings, device)
        evaluate(model, [batch], device, settings.amp, channels_last=settings.channels_last)
    except Exception as error:  # noqa: BLE001  compiler back ends raise errors of any class
        message = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:200]
        return f"{type(error).__name__}: {message}"
    finally:
        # Code compiled for this discarded model would count towards the limit of the trained one.
        torch.compiler.reset()
    return None


def check_recomputation(
    model: nn.Module, batch: Batch, settings: StepSettings, device: torch.device
) -> None:
    """Raise unless ``model`` has the same gradients with and without checkpointing.

    Two pictures are compared. Checkpointing is on when the check succeeds.

    Raises:
        ConfigError: checkpointing fails, or the gradients differ, for example because a block
            overwrites the input from which it is recomputed.
    """
    few = batch[0][:_FEW], batch[1][:_FEW]
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        try:
            gradients.append(_gradients(model, few, settings, device))
        except (RuntimeError, SurgeryError) as error:
            # Autograd detects most overwritten inputs, and torch a block that runs differently the
            # second time.
            if not checkpointing or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ConfigError(
                f"{type(model).__name__} cannot be checkpointed "
                f"({' '.join(str(error).split())[:150]}): leave out `grad_checkpointing`"
            ) from error
    for plain, ours in zip(*gradients, strict=True):
        if not torch.allclose(
            ours, plain, rtol=1e-2, atol=1e-2 * plain.abs().max().item(), equal_nan=True
        ):
            raise ConfigError(
                f"{type(model).__name__} has other gradients with checkpointing than without: "
                "leave out `grad_checkpointing`"
            )


def _gradients(
    model: nn.Module, batch: Batch, settings: StepSettings, device: torch.device
) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    learning = [p for p in model.parameters() if p.requires_grad]
    step = Step(model, torch.optim.SGD(learning), settings, device)
    step.train_mode()
    step.gradients([batch], 0)
    return [p.grad.clone() for p in learning if p.grad is not None]
