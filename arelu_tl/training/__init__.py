"""Layer 3: the training loop and what it stands on."""

from arelu_tl.training.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint, save_checkpoint
from arelu_tl.training.evaluate import Evaluation, evaluate
from arelu_tl.training.fit import FitResult, FitSettings, fit
from arelu_tl.training.gradients import measure_gradients
from arelu_tl.training.interruption import catch_signals
from arelu_tl.training.optimisation import check_optimizer, freeze_backbone, make_optimizer, make_schedule
from arelu_tl.training.recompute import enable_grad_checkpointing
from arelu_tl.training.trials import check_recomputation, compiling_fails, try_step

__all__ = [
    "Evaluation",
    "FitResult",
    "FitSettings",
    "catch_signals",
    "check_optimizer",
    "check_recomputation",
    "compiling_fails",
    "enable_grad_checkpointing",
    "evaluate",
    "fit",
    "freeze_backbone",
    "list_checkpoints",
    "load_checkpoint",
    "make_optimizer",
    "make_schedule",
    "measure_gradients",
    "newest_checkpoint",
    "save_checkpoint",
    "try_step",
]
