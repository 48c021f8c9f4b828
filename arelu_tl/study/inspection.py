"""What surgery would do to a backbone, found by doing it to a copy that is thrown away."""

from __future__ import annotations

from pathlib import Path

import torch

from arelu_tl.backbone import load_backbone
from arelu_tl.data import eval_transform, open_picture
from arelu_tl.data.decode import PICTURE_ENDINGS
from arelu_tl.data.folder import natural_key
from arelu_tl.errors import DataError
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.surgery import SurgeryReport, calibration_batches, convert


def inspect_backbone(config: FinetuneConfig, images: Path | None = None) -> tuple[SurgeryReport, str]:
    """(report of the surgery that ``config`` asks for, where the weights came from).

    Args:
        config: its backbone and surgery settings are used.
        images: a folder searched to any depth for pictures, of which up to ``config.calibration_images`` calibrate the
            model and measure the drift; without it neither happens.

    Raises:
        DataError: ``images`` holds fewer than two pictures, or one that cannot be decoded.
        BackboneError, SurgeryError: see ``load_backbone`` and ``convert``.
    """
    backbone = load_backbone(
        config.model,
        pretrained=config.pretrained,
        pretrained_path=config.pretrained_path,
        img_size=config.img_size,
    )
    calibration = []
    if images is not None:
        found = [p for p in images.rglob("*") if p.suffix.lower() in PICTURE_ENDINGS and p.is_file()]
        chosen = sorted(found, key=lambda p: natural_key(p.as_posix()))[: config.calibration_images]
        if len(chosen) < 2:
            raise DataError(f"{images}: {len(chosen)} pictures in it; calibration needs at least two")
        transform = eval_transform(backbone.data_config)
        tensors = []
        for path in chosen:
            try:
                tensors.append(transform(open_picture(path)))
            except ValueError as error:
                raise DataError(f"{path}: {error}") from None
        calibration = calibration_batches(tensors)
    report = convert(
        backbone.model,
        init=config.init,
        alpha=config.alpha,
        beta=config.beta,
        include=config.include,
        exclude=config.exclude,
        example_input=torch.zeros(1, *backbone.data_config["input_size"]),
        calibration=calibration,
    )
    return report, backbone.weights
