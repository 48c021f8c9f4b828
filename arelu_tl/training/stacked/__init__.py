"""Many small nets trained at once: the paper's MNIST-Conv, stacked over learning rates and seeds."""

from arelu_tl.training.stacked.fit import StackCurves, StackEvaluation, train_stack
from arelu_tl.training.stacked.net import Stack, initial_weights
from arelu_tl.training.stacked.optimisers import OPTIMISERS

__all__ = ["OPTIMISERS", "Stack", "StackCurves", "StackEvaluation", "initial_weights", "train_stack"]
