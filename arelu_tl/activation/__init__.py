"""Layer 1: AReLU, the controls and rivals that can stand in its place, and what acts on every one of them in a model."""

from arelu_tl.activation.arelu import AReLU, named_arelus, project, project_alphas, site_values
from arelu_tl.activation.catalogue import (
    CATALOGUE,
    SLOPED_ARMS,
    SURGERY_ARMS,
    Entry,
    SiteActivation,
    activation_parameters,
    make_activation,
    named_activations,
)
from arelu_tl.activation.elsa import ELSA, attention_map, modulate
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN, arelu
from arelu_tl.activation.operators import two_slope
from arelu_tl.activation.rivals import APL, PAU, SLAF, Combine, Maxout

__all__ = [
    "ALPHA_MAX",
    "ALPHA_MIN",
    "APL",
    "CATALOGUE",
    "ELSA",
    "PAU",
    "SLAF",
    "SLOPED_ARMS",
    "SURGERY_ARMS",
    "AReLU",
    "Combine",
    "Entry",
    "Maxout",
    "SiteActivation",
    "activation_parameters",
    "arelu",
    "attention_map",
    "make_activation",
    "modulate",
    "named_activations",
    "named_arelus",
    "project",
    "project_alphas",
    "site_values",
    "two_slope",
]
