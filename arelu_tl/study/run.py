"""One run: one arm, one learning rate, one seed, from pretrained weights to a finished folder."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from arelu_tl import __version__
from arelu_tl.analysis.convergence import aulc
from arelu_tl.backbone import Backbone, classifier_names, load_backbone, pretrained_cfg, reset_head
from arelu_tl.data import Batches, PictureFolder, eval_view, make_eval_batches, make_train_batches
from arelu_tl.errors import AreluTlError, ArtefactError, BackboneError, Interrupted, NonFiniteError, PeerError
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig, dump_yaml
from arelu_tl.records.duration import parse_interval
from arelu_tl.records.storage import hold_folder, make_folder, read_json, remove_file, write_json, write_text
from arelu_tl.records.weights import require_finite
from arelu_tl.study.card import ModelCard
from arelu_tl.study.environment import changed_environment, choose_workers, describe_environment
from arelu_tl.study.head_only import on_features
from arelu_tl.study.journal import RunJournal
from arelu_tl.study.observer import Observer
from arelu_tl.study.pictures import views
from arelu_tl.study.tensorboard import TensorBoardLog, log_summary
from arelu_tl.study.together import SilentJournal
from arelu_tl.surgery import SurgeryReport, calibration_batches, convert
from arelu_tl.training import (
    FitResult,
    FitSettings,
    catch_signals,
    enable_grad_checkpointing,
    fit,
    freeze_backbone,
    load_checkpoint,
    make_optimizer,
    make_schedule,
    newest_checkpoint,
)
from arelu_tl.training.distributed import ALONE, World
from arelu_tl.training.features import FeatureBatches
from arelu_tl.training.memory import peak_memory_bytes, reset_peak_memory


def train_run(
    path: Path,
    config: FinetuneConfig,
    folder: PictureFolder,
    device: torch.device,
    observer: Observer,
    *,
    processors: int | None = None,
    patience: float = 10.0,
    world: World = ALONE,
) -> dict[str, Any]:
    """Train ``config.arm`` into the folder ``path``; with a checkpoint in it, go on from there.

    Args:
        processors: those that this run may use; all of the machine's when None.
        patience: seconds to wait for another process, which may have been told to stop, to leave the folder.
        world: the processes that train the run together; the first of them writes its folder.

    Returns:
        The content of summary.json.

    Raises:
        BackboneError, SurgeryError, ConfigError: before training, and before the folder is made.
        Interrupted, NonFiniteError, StorageError: while training; summary.json tells the status.
        StorageError: another process trains this run.
        PeerError: another process of ``world`` has ended.
    """
    backbone, report, head_digest = prepare_model(config, folder, device)
    model = backbone.model
    if config.sync_bn and world.size > 1:
        convert_sync_batchnorm(model)
    optimizer = make_run_optimizer(config, model)
    train, val = make_run_batches(config, folder, backbone, device, processors, world)
    steps_per_epoch = -(-len(train) // config.grad_accum_steps)
    schedule = make_run_schedule(config, optimizer, steps_per_epoch)
    if world.leads:
        make_folder(path)
    with hold_folder(path, what="being trained", patience=patience) if world.leads else nullcontext():
        if (finished := world.lead(lambda: finished_summary(path))) is not None:  # by whoever held it
            return finished
        weights, resume = world.lead(lambda: _resume_state(path, device, world, observer))
        if weights is not None:
            _load_checkpoint_weights(model, weights, path)
        world.share_weights(model.state_dict().values())
        if resume is None and world.leads:
            write_text(path / runs.RUN_CONFIG, dump_yaml(config))
            write_json(path / runs.ENVIRONMENT, describe_environment(device, world.size))
            if report is not None:
                write_json(path / runs.SURGERY, report.to_json())
            remove_file(path / runs.METRICS)
        card = ModelCard(
            backbone=backbone.name,
            architecture=str(pretrained_cfg(model).get("architecture") or backbone.name),
            img_size=config.img_size,
            arm=config.arm,
            classes=folder.classes,
            data_config=backbone.data_config,
            model_args=backbone.model_args,
            sites=report.to_json()["sites"] if report else [],
            step=0,
            top1=0.0,
            loss=0.0,
            weights=backbone.weights,
            license=backbone.license,
            version=__version__,
        )
        observer.run_started(config.arm, steps_per_epoch * config.epochs, config.epochs, backbone.weights, report)
        log = None
        if config.tensorboard and world.leads:
            log = TensorBoardLog(path / runs.TENSORBOARD, report, resumed_at=resume["loop"]["step"] if resume else None)
        keep = resume["lengths"] if resume else None
        journal: RunJournal | SilentJournal = SilentJournal()
        if world.leads:
            journal = RunJournal(path, card, folder.splits["val"], observer, keep=keep, tensorboard=log)
        pairing = {"dataset": folder.fingerprint(), "head_init": head_digest, "weights": backbone.weights}
        reset_peak_memory(device)
        settings = fit_settings(config, folder, device)
        trained: nn.Module = model
        train_on: Batches | FeatureBatches = train
        val_on: Batches | FeatureBatches = val
        if world.size == 1:
            one_by_one, _ = make_run_batches(config.model_copy(update={"workers": 0}), folder, backbone, device)
            batches = train, val, one_by_one
            trained, train_on, val_on = on_features(config, folder, backbone, batches, device, settings, observer)
        try:
            with catch_signals() as stop:
                result = fit(
                    trained,
                    train_on,
                    val_on,
                    optimizer,
                    schedule,
                    settings,
                    device=device,
                    journal=journal,
                    stop=stop,
                    resume=resume,
                    world=world,
                )
        except Exception as error:
            status = "interrupted" if isinstance(error, Interrupted | PeerError) else "failed"
            if world.leads:
                write_json(path / runs.SUMMARY, {**_identity(config), "status": status, "error": str(error), "pairing": pairing})
            if isinstance(error, Interrupted | NonFiniteError):
                # All have met it. The first one shall have written before another is gone: torchrun ends the rest then.
                world.highest(0)
            if isinstance(error, torch.OutOfMemoryError):
                raise AreluTlError(
                    f"out of memory on {device}: lower --img-size or --batch-size, or pass --amp or --grad-checkpointing"
                ) from error
            if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # torch's words
                raise AreluTlError(
                    f"a process that loads pictures has died, for want of memory or by a signal: go on with fewer (-j), "
                    f"or with -j 0 ({' '.join(str(error).split())[:120]})"
                ) from error
            raise
        finally:
            journal.close()

        def finish() -> dict[str, Any]:
            summary = _summary(config, path, result, device, pairing, on_features=trained is not model)
            write_json(path / runs.SUMMARY, summary)
            if config.tensorboard:
                log_summary(path / runs.TENSORBOARD, summary, report)
            observer.run_finished(config.arm, summary)
            return summary

        summary = world.lead(finish)
        if number := world.highest(stop.signal_number or 0):  # it came after the loop had looked for the last time
            raise Interrupted(f"stopped after {path.name} was finished", number)
        return summary


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
    reset_head(model, len(folder.classes), seed=config.seed)
    model.to(device)
    if config.grad_checkpointing:
        enable_grad_checkpointing(model)
    return backbone, report, state_digest(model, classifier_names(model))


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
    )


def finished_summary(path: Path) -> dict[str, Any] | None:
    """The summary of a run that is finished already."""
    if not runs.is_run(path):
        return None
    run = runs.load_run(path)
    return run.summary if run.status == "finished" else None


def _resume_state(
    path: Path, device: torch.device, world: World, observer: Observer
) -> tuple[dict[str, Tensor], dict[str, Any]] | tuple[None, None]:
    """(weights, state) to go on from, if any."""
    checkpoint, damaged = newest_checkpoint(path / runs.CHECKPOINTS)
    for bad in damaged:
        observer.note(f"{bad} is damaged and was passed over")
    if checkpoint is None:
        return None, None
    weights, state = load_checkpoint(checkpoint)
    observer.note(f"{path.name} goes on from {checkpoint.name}")
    if changed := changed_environment(read_json(path / runs.ENVIRONMENT), device):
        observer.note(f"{path.name} began elsewhere ({changed}): resumable, not bitwise")
    if (before := state.get("processes", 1)) != world.size:
        observer.note(f"{path.name} was trained by {before} processes and now by {world.size}: resumable, not bitwise")
    return weights, state


def _load_checkpoint_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    require_finite(weights, f"the checkpoint of {path}", model.state_dict)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:300]
        raise ArtefactError(f"the checkpoint of {path} does not fit the model of its run.yaml: {told}") from None


def _identity(config: FinetuneConfig) -> dict[str, Any]:
    return {"arm": config.arm, "lr": config.lr, "seed": config.seed}


def _summary(
    config: FinetuneConfig, path: Path, result: FitResult, device: torch.device, pairing: dict[str, Any], *, on_features: bool
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
        "micro_batch": state.micro_batch,
        "on_features": on_features,
        "device": str(device),
        "pairing": {**pairing, "epochs": state.digests},
    }
