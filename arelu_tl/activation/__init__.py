"""Layer 1: AReLU, the controls and rivals that can stand in its place, and what acts on every one of them in a model."""

from arelu_tl.activation.arelu import AReLU, named_arelus, project, project_alphas, site_values
from arelu_tl.activation.catalogue import (
    SLOPED_ARMS,
    SURGERY_ARMS,
    SiteActivation,
    activation_parameters,
    make_activation,
    named_activations,
)
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN, arelu
from arelu_tl.activation.operators import two_slope

__all__ = [
    "ALPHA_MAX",
    "ALPHA_MIN",
    "SLOPED_ARMS",
    "SURGERY_ARMS",
    "AReLU",
    "SiteActivation",
    "activation_parameters",
    "arelu",
    "make_activation",
    "named_activations",
    "named_arelus",
    "project",
    "project_alphas",
    "site_values",
    "two_slope",
]
