"""Layer 1: AReLU and the functions that act on every AReLU of a model."""

from arelu_tl.activation.arelu import (
    AReLU,
    arelu_parameters,
    named_arelus,
    project,
    project_alphas,
    site_values,
)
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN, arelu

__all__ = [
    "ALPHA_MAX",
    "ALPHA_MIN",
    "AReLU",
    "arelu",
    "arelu_parameters",
    "named_arelus",
    "project",
    "project_alphas",
    "site_values",
]
