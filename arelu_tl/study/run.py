"""One run: one arm, one learning rate, one seed, from pretrained weights to a finished folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arelu_tl import __version__
from arelu_tl.analysis.convergence import aulc
from arelu_tl.backbone import Backbone, classifier_names, load_backbone, pretrained_cfg, reset_head
from arelu_tl.data import Batches, PictureFolder, eval_transform, make_eval_batches, make_train_batches, train_transform
from arelu_tl.errors import AreluTlError, ConfigError, Interrupted
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig, dump_yaml
from arelu_tl.records.storage import make_folder, write_json, write_text
from arelu_tl.study.card import ModelCard
from arelu_tl.study.environment import choose_workers, describe_environment
from arelu_tl.study.journal import RunJournal
from arelu_tl.study.observer import Observer
from arelu_tl.surgery import SurgeryReport, convert
from arelu_tl.training import (
    FitResult,
    FitSettings,
    catch_signals,
    check_optimizer,
    fit,
    freeze_backbone,
    load_checkpoint,
    make_optimizer,
    make_schedule,
    newest_checkpoint,
)
from arelu_tl.training.memory import peak_memory_bytes, reset_peak_memory


def train_run(
    path: Path, config: FinetuneConfig, folder: PictureFolder, device: torch.device, observer: Observer
) -> dict[str, Any]:
    """Train ``config.arm`` into the folder ``path``; with a checkpoint in it, go on from there.

    Returns:
        The content of summary.json.

    Raises:
        BackboneError, SurgeryError, ConfigError: before training, and before the folder is made.
        Interrupted, NonFiniteError, StorageError: while training; summary.json tells the status.
    """
    backbone, report, head_digest = prepare_model(config, folder, device)
    model = backbone.model
    head = classifier_names(model)
    if config.freeze == "backbone":
        freeze_backbone(model, head)
    train, val = _batches(config, folder, backbone, device)
    steps_per_epoch = -(-len(train) // config.grad_accum_steps)
    optimizer = make_optimizer(
        model,
        head,
        opt=config.opt,
        lr=config.lr,
        head_lr=config.head_lr,
        arelu_lr=config.arelu_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
    )
    schedule = make_schedule(
        optimizer,
        sched=config.sched,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        min_lr=config.min_lr,
    )
    resume = _resume_state(path, model, observer)
    if resume is None:
        make_folder(path)
        write_text(path / runs.RUN_CONFIG, dump_yaml(config))
        write_json(path / runs.ENVIRONMENT, describe_environment(device))
        if report is not None:
            write_json(path / runs.SURGERY, report.to_json())
        (path / runs.METRICS).unlink(missing_ok=True)
    card = ModelCard(
        backbone=backbone.name,
        architecture=str(pretrained_cfg(model).get("architecture") or backbone.name),
        img_size=config.img_size,
        arm=config.arm,
        classes=folder.classes,
        data_config=backbone.data_config,
        sites=report.to_json()["sites"] if report else [],
        step=0,
        top1=0.0,
        loss=0.0,
        weights=backbone.weights,
        license=backbone.license,
        version=__version__,
    )
    observer.run_started(config.arm, steps_per_epoch * config.epochs, config.epochs, backbone.weights, report)
    journal = RunJournal(path, card, folder.splits["val"], observer, keep=resume["lengths"] if resume else None)
    pairing = {"dataset": folder.fingerprint(), "head_init": head_digest, "weights": backbone.weights}
    reset_peak_memory(device)
    try:
        with catch_signals() as stop:
            result = fit(
                model,
                train,
                val,
                optimizer,
                schedule,
                _fit_settings(config),
                device=device,
                journal=journal,
                stop=stop,
                resume=resume,
            )
    except AreluTlError as error:
        status = "interrupted" if isinstance(error, Interrupted) else "failed"
        write_json(path / runs.SUMMARY, {**_identity(config), "status": status, "error": str(error), "pairing": pairing})
        raise
    finally:
        journal.close()
    summary = _summary(config, path, result, device, pairing)
    write_json(path / runs.SUMMARY, summary)
    observer.run_finished(config.arm, summary)
    return summary


def check_training(config: FinetuneConfig, device: torch.device) -> None:
    """What can be known to be wrong without a model.

    Raises:
        ConfigError: no such optimiser; float16 on a device that cannot.
    """
    check_optimizer(config.opt)
    if config.amp and config.amp_dtype == "float16" and device.type == "cpu":
        raise ConfigError("--amp-dtype float16 needs a GPU; on the CPU use bfloat16")


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
        report = convert(
            model,
            arm=config.arm,
            init=config.init,
            alpha=config.alpha,
            beta=config.beta,
            include=config.include,
            exclude=config.exclude,
            example_input=calibration[0][:1],
            calibration=calibration,
        )
    reset_head(model, len(folder.classes), seed=config.seed)
    return backbone, report, state_digest(model, classifier_names(model))


def calibration_pictures(config: FinetuneConfig, folder: PictureFolder, backbone: Backbone, device: torch.device) -> list[Tensor]:
    """The first training pictures of a seeded order, as evaluation would see them: batches (B, C, H, W), B <= 32."""
    batches = make_train_batches(
        folder.root,
        folder.splits["train"],
        eval_transform(backbone.data_config),
        batch_size=min(32, config.calibration_images),
        seed=config.seed,
    )
    wanted = -(-config.calibration_images // 32)
    return [pictures.to(device) for _, (pictures, _) in zip(range(wanted), batches.epoch(), strict=False)]


def state_digest(model: nn.Module, names: list[str]) -> str:
    """SHA-256 over the parameters of the named modules."""
    digest = hashlib.sha256()
    for name in names:
        for key, tensor in model.get_submodule(name).state_dict().items():
            digest.update(f"{name}.{key}".encode())
            digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _batches(config: FinetuneConfig, folder: PictureFolder, backbone: Backbone, device: torch.device) -> tuple[Batches, Batches]:
    workers = choose_workers(config.workers, device, os.cpu_count() or 1)
    pin = device.type == "cuda"
    augmentation: dict[str, Any] = {
        "no_aug": config.no_aug,
        "scale": config.scale,
        "hflip": config.hflip,
        "color_jitter": config.color_jitter,
        "auto_augment": config.aa,
        "re_prob": config.reprob,
    }
    train = make_train_batches(
        folder.root,
        folder.splits["train"],
        train_transform(backbone.data_config, **augmentation),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=workers,
        pin=pin,
    )
    val = make_eval_batches(
        folder.root,
        folder.splits["val"],
        eval_transform(backbone.data_config),
        batch_size=config.batch_size,
        workers=workers,
        pin=pin,
    )
    return train, val


def _fit_settings(config: FinetuneConfig) -> FitSettings:
    return FitSettings(
        epochs=config.epochs,
        seed=config.seed,
        grad_accum_steps=config.grad_accum_steps,
        clip_grad=config.clip_grad,
        smoothing=config.smoothing,
        amp=getattr(torch, config.amp_dtype) if config.amp else None,
        eval_every=config.eval_every,
        patience=config.patience,
        ema_decay=config.model_ema_decay if config.model_ema else None,
        frozen_backbone=config.freeze == "backbone",
    )


def _resume_state(path: Path, model: nn.Module, observer: Observer) -> dict[str, Any] | None:
    checkpoint, damaged = newest_checkpoint(path / runs.CHECKPOINTS)
    for bad in damaged:
        observer.note(f"{bad} is damaged and was passed over")
    if checkpoint is None:
        return None
    weights, state = load_checkpoint(checkpoint)
    model.load_state_dict(weights)
    observer.note(f"{path.name} goes on from {checkpoint.name}")
    return state


def _identity(config: FinetuneConfig) -> dict[str, Any]:
    return {"arm": config.arm, "lr": config.lr, "seed": config.seed}


def _summary(
    config: FinetuneConfig, path: Path, result: FitResult, device: torch.device, pairing: dict[str, Any]
) -> dict[str, Any]:
    state = result.state
    curve = runs.load_run(path).curve("val")
    return {
        **_identity(config),
        "status": "finished",
        "steps": state.step,
        "epochs": state.epoch,
        "stopped_early": state.stopped_early,
        "final_top1": result.final.top1,
        "final_loss": result.final.loss,
        "best_top1": state.best_top1,
        "best_step": state.best_step,
        "aulc": aulc([row["step"] for row in curve], [row["top1"] for row in curve]),
        "seconds": round(state.seconds, 3),
        "images_per_second": round(state.images / state.seconds, 3) if state.seconds else None,
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": str(device),
        "pairing": {**pairing, "epochs": state.digests},
    }
