"""What a model needs beside its weights to be used: the card that travels in every file of weights that we write."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from arelu_tl.errors import ArtefactError


@dataclass(frozen=True)
class ModelCard:
    """Attributes:
    backbone: the name that the backbone was asked for by.
    architecture: timm's architecture, which needs no network to build.
    model_args: timm.create_model's arguments beyond the architecture's defaults.
    img_size: the image size that was asked for, None for the model's own.
    arm: relu or arelu.
    classes: class names; logit i belongs to classes[i].
    data_config: preprocessing: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode.
    sites: the sites of surgery.json, [] for the unmodified arm.
    step, top1, loss: where in training the weights come from, with their validation accuracy and loss.
    weights: where the pretrained weights came from.
    license: their licence, where known.
    version: of arelu-tl.
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
    top1: float
    loss: float
    weights: str
    license: str | None
    version: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, source: object) -> ModelCard:
        """Read a card back.

        Raises:
            ArtefactError: it is none.
        """
        try:
            if not isinstance(value, dict):
                raise TypeError("not an object")
            return cls(**value)
        except TypeError as error:
            raise ArtefactError(f"{source}: no arelu-tl model card in it ({error})") from None
