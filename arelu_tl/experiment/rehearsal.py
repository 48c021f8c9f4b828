"""Before a study begins, take a real step of each arm and settle the settings that all share."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeVar

import torch
from torch import nn

from arelu_tl.backbone.loading import Backbone
from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import AreluTlError, ConfigError
from arelu_tl.experiment.build import (
    fit_settings,
    make_run_batches,
    make_run_optimizer,
    prepare_model,
)
from arelu_tl.experiment.tensorboard import require_tensorboard
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.memory import BatchSize, largest_fitting, largest_useful
from arelu_tl.training.optimisation import check_optimizer
from arelu_tl.training.trials import check_recomputation, compiling_fails, try_step

_Config = TypeVar("_Config", bound=FinetuneConfig)


@dataclass(frozen=True)
class Rehearsal:
    """What a trial step of one arm has found.

    Attributes:
        setup_seconds: time to load and operate on the model; calibration on all its pictures takes
            longer.
        seconds_per_picture: time of a training step per picture, without the first step.
        batch_size: the one asked for, or the largest that fits.
        micro_batch: pictures that memory holds at a time; None if it holds the whole batch.
        not_compiled: why the model could not be compiled; None if it could, or was not to be.
    """

    setup_seconds: float
    seconds_per_picture: float
    batch_size: BatchSize
    micro_batch: int | None = None
    not_compiled: str | None = None


def rehearse(
    config: FinetuneConfig,
    folder: PictureFolder,
    device: torch.device,
    *,
    measure: bool = False,
    share: int = 1,
) -> Rehearsal:
    """Build everything that ``config.arm`` needs, take one real step on it, and discard it.

    Errors in the model, the settings or the machine are thus reported before a study's folder is
    made.

    Args:
        measure: take three more steps to measure time: the first step includes one-time costs, and
            on a busy machine a single step is unreliable.
        share: how many runs will share the device's memory.

    Raises:
        ConfigError: unknown optimiser; float16 on a device that does not support it; TensorBoard is
            missing; the model has no gradient checkpointing; a step fails, with the reason.
        BackboneError, SurgeryError: see ``load_backbone`` and ``convert``.
    """
    check_optimizer(config.opt)
    if config.tensorboard:
        require_tensorboard()
    if config.amp and config.amp_dtype == "float16" and device.type == "cpu":
        raise ConfigError("`amp_dtype='float16'` needs a GPU; on the CPU use bfloat16")
    began = time.perf_counter()
    backbone, _, _ = prepare_model(
        config.model_copy(update={"calibration_images": 2, "drift_budget": 0.0}), folder, device
    )
    try:
        return _steps(config, backbone, folder, device, began, measure, share)
    except AreluTlError:
        raise
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"{device} has not the memory for a single picture: lower `img_size`, or pass `amp` or "
            "`grad_checkpointing`"
        ) from error
    except Exception as error:
        # timm, torch and their plug-ins reject combinations of settings with errors of any class.
        message = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"a training step fails with these settings: {message or type(error).__name__}"
        ) from error


def _steps(
    config: FinetuneConfig,
    backbone: Backbone,
    folder: PictureFolder,
    device: torch.device,
    began: float,
    measure: bool,
    share: int,
) -> Rehearsal:
    model = backbone.model
    optimizer = make_run_optimizer(config, model)
    settings = fit_settings(config, folder, device)
    size = _batch_size(config, model, optimizer, backbone, folder, device, share)
    fixed = config.model_copy(update={"batch_size": size.size, "workers": 0})
    train, _ = make_run_batches(fixed, folder, backbone, device)
    fault = None
    if config.grad_checkpointing:
        check_recomputation(copy.deepcopy(model), next(train.epoch()), settings, device)
    if config.compile:
        fault = compiling_fails(copy.deepcopy(model), next(train.epoch()), settings, device)
        if fault is None:
            model.compile(dynamic=False)
    moments = []
    for _ in range(4 if measure else 1):
        moments.append(time.perf_counter())
        micro_batch = try_step(model, next(train.epoch()), optimizer, settings, device)
    moments.append(time.perf_counter())
    pictures = min(size.size, len(folder.splits["train"]))
    steps = [end - start for start, end in pairwise(moments)]
    return Rehearsal(
        moments[1] - began, median(steps[1:] or steps) / pictures, size, micro_batch, fault
    )


def _batch_size(
    config: FinetuneConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backbone: Backbone,
    folder: PictureFolder,
    device: torch.device,
    share: int,
) -> BatchSize:
    if config.batch_size != "auto":
        return BatchSize(config.batch_size, "as asked for")
    useful = largest_useful(len(folder.splits["train"]))
    train, _ = make_run_batches(
        config.model_copy(update={"batch_size": useful.size, "workers": 0}),
        folder,
        backbone,
        device,
    )
    pictures, labels = next(train.epoch())
    settings = fit_settings(config, folder, device)

    def take(size: int) -> None:
        if (
            try_step(model, (pictures[:size], labels[:size]), optimizer, settings, device)
            is not None
            and not config.micro_batch
        ):
            raise torch.OutOfMemoryError(f"{size} pictures")

    return largest_fitting(useful, take, device, share=share)


def agree(config: _Config, rehearsals: Sequence[Rehearsal], note: Callable[[str], None]) -> _Config:
    """Return ``config`` with the settings that suit all rehearsals; note each change in a line."""
    settled: dict[str, object] = {}
    if config.batch_size == "auto":
        least = min((each.batch_size for each in rehearsals), key=lambda found: found.size)
        settled["batch_size"] = least.size
        note(f"batch size {least.size}: {least.why}")
    at_once = [each.micro_batch for each in rehearsals if each.micro_batch is not None]
    if at_once and min(at_once) != config.micro_batch:
        settled["micro_batch"] = min(at_once)
        note(
            f"memory holds {min(at_once)} pictures at a time: every arm's batches are taken in "
            "such parts, their gradients added up (BatchNorm sees the parts)"
        )
    faults = [each.not_compiled for each in rehearsals if each.not_compiled is not None]
    if faults:
        settled["compile"] = False
        note(f"`compile` is left out for every arm: {faults[0]}")
    return config.model_copy(update=settled)
