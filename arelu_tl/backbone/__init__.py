"""Layer 2: a timm model with its weights and the preprocessing that they were trained with."""

from arelu_tl.backbone.loading import (
    Backbone,
    activation_counts,
    build_architecture,
    classifier_names,
    expected_data_config,
    load_backbone,
    pretrained_cfg,
    reset_head,
)
from arelu_tl.backbone.modes import evaluating, training
from arelu_tl.backbone.record import rebuild_backbone, record_backbone, require_harmless

__all__ = [
    "Backbone",
    "activation_counts",
    "build_architecture",
    "classifier_names",
    "evaluating",
    "expected_data_config",
    "load_backbone",
    "pretrained_cfg",
    "rebuild_backbone",
    "record_backbone",
    "require_harmless",
    "reset_head",
    "training",
]
