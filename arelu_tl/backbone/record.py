"""A backbone as plain values, from which it is built again without its weights, without a network and without its folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import timm

from arelu_tl.backbone.loading import Backbone, build_architecture, pretrained_cfg
from arelu_tl.errors import ArtefactError

# What timm.create_model would read files or the network for, or build something else by.
_NOT_THE_ARCHITECTURES = frozenset(inspect.signature(timm.create_model).parameters) - {"model_name", "kwargs"}
# The classifier is another one by then, and what was pretrained is recorded beside.
_NOT_RECORDED = frozenset({"num_classes", "pretrained", "pretrained_cfg"})


def record_backbone(backbone: Backbone) -> dict[str, Any]:
    """What ``rebuild_backbone`` needs: the architecture, every argument it was built with, and what timm says of its weights."""
    described = pretrained_cfg(backbone.model)
    arguments: dict[str, Any] = getattr(backbone.model, "_model_args", {})
    return {
        "name": backbone.name,
        "architecture": str(described.get("architecture") or backbone.name),
        "arguments": {key: value for key, value in arguments.items() if key not in _NOT_RECORDED and _is_plain(value)},
        "pretrained_cfg": {key: value for key, value in described.items() if _is_plain(value)},
        "data_config": backbone.data_config,
        "weights": backbone.weights,
        "license": backbone.license,
        "model_args": backbone.model_args,
    }


def rebuild_backbone(record: Mapping[str, Any], source: object) -> Backbone:
    """The backbone of which ``record_backbone`` made ``record``, its classifier on, its weights random.

    Raises:
        ArtefactError: the record, which comes from ``source``, is none.
        BackboneError: timm does not build it.
    """
    try:
        architecture, arguments = record["architecture"], dict(record["arguments"])
        require_harmless(architecture, arguments, source)
        model = build_architecture(architecture, model_args=arguments)
        setattr(model, "pretrained_cfg", dict(record["pretrained_cfg"]))  # noqa: B010 (a module's attribute of timm's)
        kept = {key: record[key] for key in ("name", "data_config", "weights", "license", "model_args")}
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{source}: no record of a backbone ({type(error).__name__} {error})") from None
    return Backbone(model=model.eval(), **kept)


def require_harmless(architecture: object, arguments: Mapping[str, Any], source: object) -> None:
    """A record comes from whoever made the folder: it may name an architecture and its arguments, and no files or addresses.

    Raises:
        ArtefactError: it does.
    """
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ArtefactError(f"{source}: timm has no architecture {architecture!r}")
    if foreign := sorted(_NOT_THE_ARCHITECTURES & set(arguments)):
        raise ArtefactError(f"{source}: {', '.join(foreign)} is no argument of an architecture")


def _is_plain(value: Any) -> bool:
    """Whether it is made of what a file of data can hold."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
