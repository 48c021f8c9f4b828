"""Layer 3: the training loop and what it stands on."""

from arelu_tl.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from arelu_tl.training.evaluate import Evaluation, evaluate
from arelu_tl.training.fit import FitResult, FitSettings, fit, try_step
from arelu_tl.training.interruption import catch_signals
from arelu_tl.training.optimisation import check_optimizer, freeze_backbone, make_optimizer, make_schedule

__all__ = [
    "Evaluation",
    "FitResult",
    "FitSettings",
    "catch_signals",
    "check_optimizer",
    "evaluate",
    "fit",
    "freeze_backbone",
    "load_checkpoint",
    "make_optimizer",
    "make_schedule",
    "newest_checkpoint",
    "save_checkpoint",
    "try_step",
]
