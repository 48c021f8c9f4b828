"""Find out what surgery would do to a backbone, by performing it on copies that are discarded."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arelu_tl.backbone.loading import Backbone, load_backbone
from arelu_tl.data.decode import open_picture
from arelu_tl.data.listing import list_all
from arelu_tl.data.loader import eval_transform
from arelu_tl.errors import DataError, SurgeryError
from arelu_tl.explain.sites.cost import Cost, activation_cost, model_flops
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.surgery.calibrate import calibration_batches
from arelu_tl.surgery.convert import RECALIBRATED, SurgeryReport, operate
from arelu_tl.surgery.plan import INITS

_ARELU_ARMS = ("arelu", "arelu-frozen")


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        report: report of the requested surgery.
        weights: source of the weights, in words.
        parameters: number of parameters of the backbone, before surgery.
        cost: cost of the activations for one picture; None for arms whose sites are not AReLU.
        inits: surgery report for each init, or only the requested one if the init does not matter;
            {} without pictures.
        failures: for each init whose surgery was refused, the reason.
    """

    report: SurgeryReport
    weights: str
    parameters: int
    cost: Cost | None
    inits: dict[str, SurgeryReport]
    failures: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as JSON-able values."""
        drifts = {}
        for init, report in self.inits.items():
            values = report.to_json()
            drifts[init] = {
                key: values[key]
                for key in ("drift", "drift_before_calibration", "batchnorm", "strength")
            }
        return {
            "weights": self.weights,
            "parameters": self.parameters,
            "cost": self.cost.to_json() if self.cost else None,
            "drift_by_init": drifts,
            **self.report.to_json(),
        }


def inspect_backbone(
    config: FinetuneConfig,
    images: Path | None = None,
    *,
    notify: Callable[[str], None] = lambda _: None,
) -> Inspection:
    """Perform the surgery of ``config`` on a fresh copy of its backbone.

    Args:
        config: only its backbone and surgery settings are used.
        images: a folder searched to any depth for pictures, up to ``config.calibration_images`` of
            which calibrate the model and measure the drift with every init. Without it neither
            happens, and no values are computed.
        notify: called with a line about other files in ``images``.

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
    calibration = (
        _calibration(backbone, images, config.calibration_images, notify)
        if images is not None
        else []
    )
    example = calibration[0][:1] if calibration else torch.zeros(1, *size, device="meta")
    settings = config.surgery()
    given: dict[str, Any] = {"example_input": example, "calibration": calibration}
    inits: dict[str, SurgeryReport] = {}
    failures: dict[str, str] = {}
    for init in INITS if calibration else ():
        if (
            init == config.surgery().init or config.arm == RECALIBRATED
        ):  # recalibrated ignores the init
            continue
        try:
            inits[init] = operate(
                copy.deepcopy(backbone.model), replace(settings, init=init), **given
            )
        except SurgeryError as error:
            failures[init] = str(error)
    parameters = sum(p.numel() for p in backbone.model.parameters())
    flops = model_flops(backbone.model, size) if config.arm in _ARELU_ARMS else None
    report = operate(backbone.model, settings, **given)
    if calibration:
        inits = {
            init: report if init == config.surgery().init else inits[init]
            for init in INITS
            if init == config.surgery().init or init in inits
        }
    return Inspection(
        report=report,
        weights=backbone.weights,
        parameters=parameters,
        cost=activation_cost(report.sites, flops) if config.arm in _ARELU_ARMS else None,
        inits=inits,
        failures=failures,
    )


def _calibration(
    backbone: Backbone, images: Path, most: int, notify: Callable[[str], None]
) -> list[Tensor]:
    listing = list_all(images)
    if message := listing.passed.line():
        notify(message)
    chosen = [images / path for path in listing.pictures[""][:most]]
    if len(chosen) < 2:
        raise DataError(
            f"calibration needs at least two pictures; found in {images}: {len(chosen)}"
        )
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
