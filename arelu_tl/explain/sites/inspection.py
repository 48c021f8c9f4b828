"""What surgery would do to a backbone, found by doing it to copies that are thrown away."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arelu_tl.backbone.loading import Backbone, load_backbone
from arelu_tl.data.decode import open_picture
from arelu_tl.data.listing import list_all
from arelu_tl.data.loader import eval_transform
from arelu_tl.errors import DataError, SurgeryError
from arelu_tl.experiment.build import surgery_settings
from arelu_tl.explain.sites.cost import Cost, activation_cost, model_flops
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.surgery.calibrate import calibration_batches
from arelu_tl.surgery.convert import RECALIBRATED, SurgeryReport, convert
from arelu_tl.surgery.plan import INITS

_ARELU_ARMS = ("arelu", "arelu-frozen")


@dataclass(frozen=True)
class Inspection:
    """Attributes:
    report: of the surgery that was asked for.
    weights: where the weights came from, in words.
    parameters: of the backbone, before surgery.
    cost: of the activations, of one picture; None for arms whose sites are no AReLU.
    inits: for each init the report of surgery with it, only the one asked for where none matters; {} without pictures.
    failures: why an init's surgery was refused.
    """

    report: SurgeryReport
    weights: str
    parameters: int
    cost: Cost | None
    inits: dict[str, SurgeryReport]
    failures: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        drifts = {}
        for init, report in self.inits.items():
            told = report.to_json()
            drifts[init] = {key: told[key] for key in ("drift", "drift_before_calibration", "batchnorm", "strength")}
        return {
            "weights": self.weights,
            "parameters": self.parameters,
            "cost": self.cost.to_json() if self.cost else None,
            "drift_by_init": drifts,
            **self.report.to_json(),
        }


def inspect_backbone(
    config: FinetuneConfig, images: Path | None = None, *, notify: Callable[[str], None] = lambda _: None
) -> Inspection:
    """Carry the surgery that ``config`` asks for out on a copy of its backbone.

    Args:
        config: its backbone and surgery settings are used.
        images: a folder searched to any depth for pictures, of which up to ``config.calibration_images`` calibrate the
            model and measure the drift under every init; without it neither happens, and no values are computed.
        notify: is given a line about what else is in ``images``.

    Raises:
        DataError: ``images`` holds fewer than two pictures, or one that cannot be read or decoded.
        BackboneError, SurgeryError: see ``load_backbone`` and ``convert``.
    """
    backbone = load_backbone(
        config.model,
        pretrained=config.pretrained,
        pretrained_path=config.pretrained_path,
        img_size=config.img_size,
    )
    size = backbone.data_config["input_size"]
    calibration = _calibration(backbone, images, config.calibration_images, notify) if images is not None else []
    example = calibration[0][:1] if calibration else torch.zeros(1, *size, device="meta")
    settings = surgery_settings(config)
    given: dict[str, Any] = {"example_input": example, "calibration": calibration}
    inits: dict[str, SurgeryReport] = {}
    failures: dict[str, str] = {}
    for init in INITS if calibration else ():
        if init == config.init or config.arm == RECALIBRATED:  # which is the same with every init
            continue
        try:
            inits[init] = convert(copy.deepcopy(backbone.model), **{**settings, "init": init}, **given)
        except SurgeryError as error:
            failures[init] = str(error)
    parameters = sum(p.numel() for p in backbone.model.parameters())
    flops = model_flops(backbone.model, size) if config.arm in _ARELU_ARMS else None
    report = convert(backbone.model, **settings, **given)
    if calibration:
        inits = {init: report if init == config.init else inits[init] for init in INITS if init == config.init or init in inits}
    return Inspection(
        report=report,
        weights=backbone.weights,
        parameters=parameters,
        cost=activation_cost(report.sites, flops) if config.arm in _ARELU_ARMS else None,
        inits=inits,
        failures=failures,
    )


def _calibration(backbone: Backbone, images: Path, most: int, notify: Callable[[str], None]) -> list[Tensor]:
    listing = list_all(images)
    if told := listing.passed.line():
        notify(told)
    chosen = [images / path for path in listing.pictures[""][:most]]
    if len(chosen) < 2:
        raise DataError(f"calibration needs at least two pictures; found in {images}: {len(chosen)}")
    transform = eval_transform(backbone.data_config)
    tensors = []
    for path in chosen:
        try:
            tensors.append(transform(open_picture(path)))
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        except OSError as error:
            raise DataError(f"{path}: {os.strerror(error.errno or 0)}") from None
    return calibration_batches(tensors)
