"""Build a run's model, batches, optimiser, schedule and loop settings from its configuration.

Only this module, ``pictures`` and ``devices`` read the configuration keys that affect training.
Surgery is applied when a run begins; a resumed run rebuilds its model from the recorded surgery.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from arelu_tl.backbone.loading import Backbone, classifier_names, load_backbone, reset_head
from arelu_tl.backbone.record import rebuild_backbone, record_backbone
from arelu_tl.data.folder import PictureFolder
from arelu_tl.data.loader import Batches, eval_view, make_eval_batches, make_train_batches
from arelu_tl.errors import AreluTlError, ArtefactError, BackboneError
from arelu_tl.experiment.devices import choose_workers
from arelu_tl.experiment.pictures import views
from arelu_tl.records.amounts import parse_interval
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.records.weights import require_finite
from arelu_tl.surgery.apply import restore_sites
from arelu_tl.surgery.calibrate import calibration_batches
from arelu_tl.surgery.convert import SurgeryReport, operate
from arelu_tl.training.distributed import ALONE, World
from arelu_tl.training.features import FeatureBatches
from arelu_tl.training.fit import FitSettings
from arelu_tl.training.optimisation import freeze_backbone, make_optimizer, make_schedule
from arelu_tl.training.recompute import enable_grad_checkpointing


@dataclass(frozen=True)
class RunStart:
    """How a run began, and the model that it trains.

    Attributes:
        backbone: its model after surgery, with the new head.
        report: surgery report; None for the unmodified arm.
        pairing: what both runs of a pair must share: dataset, head_init, weights.
        settled: the settings that ``auto`` has come to, by key of the configuration.
        probe: the linear probe's results for summary.json; None if there is none.
    """

    backbone: Backbone
    report: SurgeryReport | None
    pairing: dict[str, Any]
    settled: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] | None = None

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint stores in addition to surgery.json.

        It is stored because another machine would compute slightly different values.
        """
        return {
            "backbone": record_backbone(self.backbone),
            "pairing": self.pairing,
            "settled": self.settled,
            "probe": self.probe,
        }


@dataclass(frozen=True)
class SavedRun:
    """Where a run stopped.

    Attributes:
        checkpoint: checkpoint folder.
        weights: the model's state dict.
        state: everything else in the checkpoint.
        surgery: content of the run's surgery.json; None for the unmodified arm.
    """

    checkpoint: Path
    weights: dict[str, Tensor]
    state: dict[str, Any]
    surgery: dict[str, Any] | None


def begin(config: FinetuneConfig, folder: PictureFolder, device: torch.device) -> RunStart:
    """Start a new run.

    Raises:
        BackboneError, SurgeryError, ConfigError: see ``load_backbone`` and ``convert``.
    """
    backbone, report, head = prepare_model(config, folder, device)
    return RunStart(
        backbone,
        report,
        {"dataset": folder.fingerprint(), "head_init": head, "weights": backbone.weights},
    )


def go_on(config: FinetuneConfig, classes: int, device: torch.device, saved: SavedRun) -> RunStart:
    """Restore a run from its last checkpoint, with the weights saved there.

    Neither pretrained weights nor pictures are needed, because the results of surgery and
    calibration are recorded.

    Raises:
        ArtefactError: the records do not match one another, or the weights hold NaN or infinite
            values.
    """
    try:
        recorded = saved.state["start"]
        backbone = rebuild_backbone(recorded["backbone"], saved.checkpoint)
        pairing = dict(recorded["pairing"])
        # Checkpoints from before there were choices record none.
        settled, probe = dict(recorded.get("settled", {})), recorded.get("probe")
        model = backbone.model.to(device)
        report = None
        if saved.surgery is not None:
            report = SurgeryReport.from_json(saved.surgery)
            restore_sites(model, saved.surgery["sites"], arm=config.net, inplace=config.inplace)
        _finish(model, config, classes, device)
    except _UNFIT as error:
        raise _unfit(saved, error) from None
    require_finite(saved.weights, str(saved.checkpoint), model.state_dict)
    try:
        model.load_state_dict(saved.weights, strict=True)
    except RuntimeError as error:
        raise _unfit(saved, error) from None
    return RunStart(backbone, report, pairing, settled, probe)


_UNFIT = (AreluTlError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)


def _unfit(saved: SavedRun, error: Exception) -> ArtefactError:
    message = " ".join(str(error).split())[:300]
    return ArtefactError(
        f"{saved.checkpoint}: what it says of how its run began does not fit "
        f"({type(error).__name__}: {message}): to train the run anew, remove "
        f"{saved.checkpoint.parent}"
    )


def prepare_model(
    config: FinetuneConfig, folder: PictureFolder, device: torch.device
) -> tuple[Backbone, SurgeryReport | None, str]:
    """Prepare the model of ``config.arm`` for training on ``device``.

    Surgery happens before the pretrained classifier is replaced, so that the measured drift is that
    of the whole pretrained network.

    Returns:
        (backbone, surgery report or None, digest of the new head).
    """
    backbone = load_backbone(
        config.model,
        pretrained=config.pretrained,
        pretrained_path=config.pretrained_path,
        img_size=config.img_size,
        drop=config.drop,
        drop_path=config.drop_path,
        seed=config.seed,
    )
    model = backbone.model.to(device)
    report = None
    if config.net != "relu":
        calibration = calibration_pictures(config, folder, backbone, device)
        report = operate(
            model, config.surgery(), example_input=calibration[0][:1], calibration=calibration
        )
    _finish(model, config, len(folder.classes), device)
    return backbone, report, state_digest(model, classifier_names(model))


def _finish(model: nn.Module, config: FinetuneConfig, classes: int, device: torch.device) -> None:
    reset_head(model, classes, seed=config.seed)
    model.to(device)
    if config.grad_checkpointing:
        enable_grad_checkpointing(model)


def calibration_pictures(
    config: FinetuneConfig, folder: PictureFolder, backbone: Backbone, device: torch.device
) -> list[Tensor]:
    """Return the first training pictures of a seeded order, preprocessed as for evaluation.

    Returns:
        Batches of shape (B, C, H, W), B about 32.
    """
    # With batches of one picture, the number of pictures is exact for any size of the set.
    batches = make_train_batches(
        folder.root,
        folder.splits["train"],
        eval_view(backbone.data_config),
        batch_size=1,
        seed=config.seed,
        cache=folder.cache,
    )
    chosen = [
        pictures[0]
        for _, (pictures, _) in zip(range(config.calibration_images), batches.epoch(), strict=False)
    ]
    return [batch.to(device) for batch in calibration_batches(chosen)]


def state_digest(model: nn.Module, names: list[str]) -> str:
    """Return the SHA-256 digest over the state dicts of the named modules."""
    digest = hashlib.sha256()
    for name in names:
        for key, tensor in model.get_submodule(name).state_dict().items():
            digest.update(f"{name}.{key}".encode())
            digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def make_run_schedule(
    config: FinetuneConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Scheduler | None:
    """Make the schedule of ``config``; None for constant rates."""
    return make_schedule(
        optimizer,
        sched=config.sched,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        min_lr=config.min_lr,
    )


def make_run_optimizer(config: FinetuneConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of ``config``, and freeze the backbone if ``config`` says so.

    Raises:
        BackboneError: the backbone is to be frozen, but the model names no classifier.
    """
    head = classifier_names(model)
    if config.freeze == "backbone":
        if not head:
            raise BackboneError(
                f"{config.model} names no classifier, so there is nothing to train with "
                "`freeze='backbone'`"
            )
        freeze_backbone(model, head, norms=config.arm == "norm-rate")
    return make_optimizer(model, head, config.optimizer())


def make_run_batches(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    device: torch.device,
    processors: int | None = None,
    world: World = ALONE,
) -> tuple[Batches, Batches]:
    """Make the training and validation batches of this process of ``world``.

    In training each process gets its slice of every batch; in evaluation, every ``world.size``-th
    batch.
    """
    own = None if world.size == 1 else max(1, (os.cpu_count() or 1) // world.local_size)
    workers = choose_workers(config.workers, device, processors or own)
    pin = device.type == "cuda"
    seen = views(config, backbone.data_config)
    train = make_train_batches(
        folder.root,
        folder.splits["train"],
        seen["train"],
        batch_size=config.pictures_in_a_batch,
        seed=config.seed,
        workers=workers,
        pin=pin,
        cache=folder.cache,
        share=(world.rank, world.size),
    )
    val = make_eval_batches(
        folder.root,
        folder.splits["val"],
        seen["val"],
        batch_size=config.pictures_in_a_batch // world.size,
        workers=workers,
        pin=pin,
        cache=folder.cache,
        share=(world.rank, world.size),
    )
    return train, val


def fit_settings(
    config: FinetuneConfig, folder: PictureFolder, device: torch.device
) -> FitSettings:
    """Make the settings of the training loop from ``config``."""
    steps, seconds = parse_interval(config.save_every)
    return FitSettings(
        epochs=config.epochs,
        seed=config.seed,
        grad_accum_steps=config.grad_accum_steps,
        clip_grad=config.clip_grad,
        smoothing=config.smoothing,
        class_weights=folder.class_weights() if config.balance else None,
        amp=getattr(torch, config.amp_dtype) if config.amp else None,
        eval_every=config.eval_every,
        patience=config.patience,
        ema_decay=config.model_ema_decay if config.model_ema else None,
        frozen_statistics=config.freeze == "backbone" or config.bn_stats == "frozen",
        # On the CPU channels_last reduced the time of a step to 0.74 to 0.97 with two threads, and
        # made little difference with one. On GPUs it is the layout that mixed-precision units
        # prefer (not measured).
        channels_last=(device.type == "cpu" or config.amp)
        if config.channels_last is None
        else config.channels_last,
        compile=config.compile,
        grad_checkpointing=config.grad_checkpointing,
        micro_batch=config.micro_batch,
        save_every_steps=steps,
        save_every_seconds=seconds,
        save_epochs=config.save_epochs,
    )


@dataclass(frozen=True)
class Training:
    """Everything that the training loop needs for a run.

    Attributes:
        model: the model to train: the backbone's, or only its head, which takes features.
        train, val: batches of inputs to ``model``.
        optimizer: over the model's trainable parameters.
        schedule: None for constant rates.
    """

    model: nn.Module
    train: Batches | FeatureBatches
    val: Batches | FeatureBatches
    optimizer: torch.optim.Optimizer
    schedule: Scheduler | None
    settings: FitSettings
    device: torch.device

    @property
    def steps(self) -> int:
        """Total number of optimiser steps."""
        return (
            steps_per_epoch(len(self.train), self.settings.grad_accum_steps) * self.settings.epochs
        )


def build_training(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    device: torch.device,
    processors: int | None = None,
    world: World = ALONE,
) -> Training:
    """Build batches, optimiser, schedule and settings for the model of ``backbone``.

    Args:
        config: with its choices settled; the backbone's rate stands for one that is not.
        backbone: its model is already on ``device``.
        processors: number of CPUs that may load pictures; None for all of the machine's.
        world: the processes that train together; they start with the weights of rank 0.
    """
    model = backbone.model
    if config.sync_bn and world.size > 1:
        convert_sync_batchnorm(model)
    optimizer = make_run_optimizer(config, model)
    train, val = make_run_batches(config, folder, backbone, device, processors, world)
    schedule = make_run_schedule(
        config, optimizer, steps_per_epoch(len(train), config.grad_accum_steps)
    )
    world.share_weights(model.state_dict().values())
    return Training(
        model, train, val, optimizer, schedule, fit_settings(config, folder, device), device
    )


def steps_per_epoch(batches: int, grad_accum_steps: int) -> int:
    """Return the number of optimiser steps for ``batches`` batches."""
    return -(-batches // grad_accum_steps)
