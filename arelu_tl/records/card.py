"""The model card, stored in every weights file: what a model needs besides its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from arelu_tl.errors import ArtefactError


@dataclass(frozen=True)
class ModelCard:
    """What is needed to build and use a model, and where its weights come from.

    Attributes:
        backbone: the name by which the backbone was requested.
        architecture: timm's architecture, which can be built without network access.
        model_args: timm.create_model's arguments beyond the architecture's defaults.
        img_size: the requested image size; None for the model's own.
        arm: relu, arelu, or one of the controls and rivals.
        classes: class names; logit i belongs to classes[i].
        data_config: preprocessing: input_size (C, H, W), mean, std, interpolation, crop_pct,
            crop_mode.
        sites: the sites of surgery.json, [] for the unmodified arm.
        step, top1, loss: training step of the weights, with their validation accuracy and loss;
            None if a checkpoint was not evaluated.
        weights: source of the pretrained weights.
        license: their licence, if known.
        version: version of arelu-tl.
        form: "trained": as trained, alpha and beta included; "frozen": the sites are constants, see
            ``frozen_sites``; "timm": plain layers, which timm builds from ``architecture`` and
            ``model_args`` alone.
        frozen_sites: name, slopes, gains and cap of each site, if they are constants.
        training: summary of how it was trained; {} if unknown.
    """

    backbone: str
    architecture: str
    img_size: int | None
    arm: str
    classes: list[str]
    data_config: dict[str, Any]
    model_args: dict[str, Any]
    sites: list[dict[str, Any]] = field(repr=False)
    step: int
    top1: float | None
    loss: float | None
    weights: str
    license: str | None
    version: str
    form: str = "trained"
    frozen_sites: list[dict[str, Any]] = field(default_factory=list, repr=False)
    training: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, source: object) -> ModelCard:
        """Read a card back.

        Raises:
            ArtefactError: ``value`` is not a card.
        """
        try:
            if not isinstance(value, dict) or (
                unknown := set(value) - {f.name for f in fields(cls)}
            ):
                raise TypeError(
                    f"unknown {', '.join(sorted(map(str, unknown)))}"
                    if isinstance(value, dict)
                    else "not an object"
                )
            return TypeAdapter(cls).validate_python(value)
        except (TypeError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtefactError(f"{source}: no arelu-tl model card in it ({reason})") from None
