"""The model that a run trains: operated on when the run begins, and built again from what it recorded when it goes on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
from arelu_tl.surgery.convert import SurgeryReport, convert
from arelu_tl.training.distributed import ALONE, World
from arelu_tl.training.fit import FitSettings
from arelu_tl.training.optimisation import freeze_backbone, make_optimizer, make_schedule
from arelu_tl.training.recompute import enable_grad_checkpointing


@dataclass(frozen=True)
class RunStart:
    """How a run began, and the model that it trains.

    Attributes:
        backbone: its model has its sites exchanged and its new head on.
        report: of surgery; None for the unmodified arm.
        pairing: what the other run of a pair must share: dataset, head_init, weights.
    """

    backbone: Backbone
    report: SurgeryReport | None
    pairing: dict[str, Any]

    def to_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, beside surgery.json: another machine would compute it a little differently."""
        return {"backbone": record_backbone(self.backbone), "pairing": self.pairing}


@dataclass(frozen=True)
class SavedRun:
    """Where a run stopped.

    Attributes:
        checkpoint: its folder.
        weights: the model's.
        state: everything else.
        surgery: content of the run's surgery.json; None for the unmodified arm.
    """

    checkpoint: Path
    weights: dict[str, Tensor]
    state: dict[str, Any]
    surgery: dict[str, Any] | None


def begin(config: FinetuneConfig, folder: PictureFolder, device: torch.device) -> RunStart:
    """The start of a run that has not begun yet.

    Raises:
        BackboneError, SurgeryError, ConfigError: see ``load_backbone`` and ``convert``.
    """
    backbone, report, head = prepare_model(config, folder, device)
    return RunStart(backbone, report, {"dataset": folder.fingerprint(), "head_init": head, "weights": backbone.weights})


def go_on(config: FinetuneConfig, classes: int, device: torch.device, saved: SavedRun) -> RunStart:
    """The same, of a run that has begun, with the weights that it had where it stopped.

    Neither pretrained weights nor pictures are needed: what surgery and calibration came to is recorded.

    Raises:
        ArtefactError: the records do not belong together, or the weights hold NaN or infinities.
    """
    try:
        recorded = saved.state["start"]
        backbone, pairing = rebuild_backbone(recorded["backbone"], saved.checkpoint), dict(recorded["pairing"])
        model = backbone.model.to(device)
        report = None
        if saved.surgery is not None:
            report = SurgeryReport.from_json(saved.surgery)
            restore_sites(model, saved.surgery["sites"], arm=config.arm, inplace=config.inplace)
        _finish(model, config, classes, device)
    except _UNFIT as error:
        raise _unfit(saved, error) from None
    require_finite(saved.weights, str(saved.checkpoint), model.state_dict)
    try:
        model.load_state_dict(saved.weights, strict=True)
    except RuntimeError as error:
        raise _unfit(saved, error) from None
    return RunStart(backbone, report, pairing)


_UNFIT = (AreluTlError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)


def _unfit(saved: SavedRun, error: Exception) -> ArtefactError:
    told = " ".join(str(error).split())[:300]
    return ArtefactError(
        f"{saved.checkpoint}: what it says of how its run began does not fit ({type(error).__name__}: {told}): "
        f"to train the run anew, remove {saved.checkpoint.parent}"
    )


def prepare_model(
    config: FinetuneConfig, folder: PictureFolder, device: torch.device
) -> tuple[Backbone, SurgeryReport | None, str]:
    """The model of ``config.arm`` on ``device``, ready to train, its surgery report, and its new head's digest.

    Surgery happens while the pretrained classifier is still on, so that the drift is that of the whole pretrained net.
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
    if config.arm != "relu":
        calibration = calibration_pictures(config, folder, backbone, device)
        report = convert(model, **surgery_settings(config), example_input=calibration[0][:1], calibration=calibration)
    _finish(model, config, len(folder.classes), device)
    return backbone, report, state_digest(model, classifier_names(model))


def _finish(model: nn.Module, config: FinetuneConfig, classes: int, device: torch.device) -> None:
    reset_head(model, classes, seed=config.seed)
    model.to(device)
    if config.grad_checkpointing:
        enable_grad_checkpointing(model)


def surgery_settings(config: FinetuneConfig) -> dict[str, Any]:
    """What of ``config`` goes to ``convert``."""
    keys = (
        "arm", "init", "alpha", "beta", "include", "exclude", "granularity", "share_sites", "batchnorm", "drift_budget",
        "inplace",
    )  # fmt: skip
    return {key: getattr(config, key) for key in keys}


def calibration_pictures(config: FinetuneConfig, folder: PictureFolder, backbone: Backbone, device: torch.device) -> list[Tensor]:
    """The first training pictures of a seeded order, as evaluation would see them: batches (B, C, H, W), B about 32."""
    # One picture a batch keeps the number exact whatever the size of the set is.
    batches = make_train_batches(
        folder.root,
        folder.splits["train"],
        eval_view(backbone.data_config),
        batch_size=1,
        seed=config.seed,
        cache=folder.cache,
    )
    chosen = [pictures[0] for _, (pictures, _) in zip(range(config.calibration_images), batches.epoch(), strict=False)]
    return [batch.to(device) for batch in calibration_batches(chosen)]


def state_digest(model: nn.Module, names: list[str]) -> str:
    """SHA-256 over the parameters of the named modules."""
    digest = hashlib.sha256()
    for name in names:
        for key, tensor in model.get_submodule(name).state_dict().items():
            digest.update(f"{name}.{key}".encode())
            digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def make_run_schedule(config: FinetuneConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler | None:
    return make_schedule(
        optimizer,
        sched=config.sched,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        min_lr=config.min_lr,
    )


def make_run_optimizer(config: FinetuneConfig, model: nn.Module) -> torch.optim.Optimizer:
    head = classifier_names(model)
    if config.freeze == "backbone":
        if not head:
            raise BackboneError(f"{config.model} names no classifier, so there is nothing to train with --freeze backbone")
        freeze_backbone(model, head)
    return make_optimizer(
        model,
        head,
        opt=config.opt,
        lr=config.lr,
        head_lr=config.head_lr,
        arelu_lr=config.arelu_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
    )


def make_run_batches(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    device: torch.device,
    processors: int | None = None,
    world: World = ALONE,
) -> tuple[Batches, Batches]:
    """What this process of ``world`` trains and evaluates on: its slice of each batch, and every ``world.size``-th slice."""
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


def fit_settings(config: FinetuneConfig, folder: PictureFolder, device: torch.device) -> FitSettings:
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
        frozen_backbone=config.freeze == "backbone",
        # On the processor a step took 0.74 to 0.97 of the time with two threads, and about as long with one; on GPUs it is what
        # mixed precision's units want (not measured).
        channels_last=(device.type == "cpu" or config.amp) if config.channels_last is None else config.channels_last,
        compile=config.compile,
        grad_checkpointing=config.grad_checkpointing,
        micro_batch=config.micro_batch,
        save_every_steps=steps,
        save_every_seconds=seconds,
        save_epochs=config.save_epochs,
    )
