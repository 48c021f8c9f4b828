"""A backbone as plain values.

It can be rebuilt from them without its weights, a network connection, or its folder.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import timm

from arelu_tl.backbone.loading import Backbone, build_architecture, pretrained_cfg
from arelu_tl.errors import ArtefactError

# Arguments by which timm.create_model would read files, use the network, or build something else.
_NOT_THE_ARCHITECTURES = frozenset(inspect.signature(timm.create_model).parameters) - {
    "model_name",
    "kwargs",
}
# The classifier has been replaced by then, and the pretraining is recorded separately.
_NOT_RECORDED = frozenset({"num_classes", "pretrained", "pretrained_cfg"})


def record_backbone(backbone: Backbone) -> dict[str, Any]:
    """Record what ``rebuild_backbone`` needs.

    That is the architecture, all arguments that it was built with, and timm's description of its
    weights.
    """
    described = pretrained_cfg(backbone.model)
    arguments: dict[str, Any] = getattr(backbone.model, "_model_args", {})
    return {
        "name": backbone.name,
        "architecture": str(described.get("architecture") or backbone.name),
        "arguments": {
            key: value
            for key, value in arguments.items()
            if key not in _NOT_RECORDED and _is_plain(value)
        },
        "pretrained_cfg": {key: value for key, value in described.items() if _is_plain(value)},
        "data_config": backbone.data_config,
        "weights": backbone.weights,
        "license": backbone.license,
        "model_args": backbone.model_args,
    }


def rebuild_backbone(record: Mapping[str, Any], source: object) -> Backbone:
    """Rebuild the backbone that ``record_backbone`` recorded, with its classifier.

    Its weights are random.

    Raises:
        ArtefactError: the record, which comes from ``source``, is invalid.
        BackboneError: timm cannot build it.
    """
    try:
        architecture, arguments = record["architecture"], dict(record["arguments"])
        require_harmless(architecture, arguments, source)
        model = build_architecture(architecture, model_args=arguments)
        # setattr, because timm adds this attribute to modules.
        setattr(model, "pretrained_cfg", dict(record["pretrained_cfg"]))  # noqa: B010
        kept = {
            key: record[key] for key in ("name", "data_config", "weights", "license", "model_args")
        }
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(
            f"{source}: no record of a backbone ({type(error).__name__} {error})"
        ) from None
    return Backbone(model=model.eval(), **kept)


def require_harmless(architecture: object, arguments: Mapping[str, Any], source: object) -> None:
    """Check that a record names only an architecture and harmless arguments.

    The author of a folder is not trusted: a record must not contain paths or addresses.

    Raises:
        ArtefactError: the arguments contain more.
    """
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ArtefactError(f"{source}: timm has no architecture {architecture!r}")
    if foreign := sorted(_NOT_THE_ARCHITECTURES & set(arguments)):
        raise ArtefactError(f"{source}: {', '.join(foreign)} is no argument of an architecture")


def _is_plain(value: Any) -> bool:
    """Whether ``value`` consists of types that a data file can hold."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
