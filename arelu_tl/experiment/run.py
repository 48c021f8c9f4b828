"""One run: one arm, one learning rate, one seed, from pretrained weights to a finished folder."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from arelu_tl.backbone.loading import pretrained_cfg
from arelu_tl.data.folder import PictureFolder
from arelu_tl.data.loader import Batches
from arelu_tl.errors import AreluTlError, ArtefactError, Interrupted, NonFiniteError, PeerError
from arelu_tl.experiment.build import (
    SavedRun,
    begin,
    fit_settings,
    go_on,
    make_run_batches,
    make_run_optimizer,
    make_run_schedule,
)
from arelu_tl.experiment.environment import changed_environment, describe_environment
from arelu_tl.experiment.head_only import on_features
from arelu_tl.experiment.journal import RunJournal
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.tensorboard import TensorBoardLog, log_summary
from arelu_tl.records import runs
from arelu_tl.records.card import ModelCard
from arelu_tl.records.config import FinetuneConfig, dump_yaml
from arelu_tl.records.runs import aulc
from arelu_tl.records.storage import hold_folder, make_folder, read_json, remove_file, write_json, write_text
from arelu_tl.training.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint
from arelu_tl.training.distributed import ALONE, World
from arelu_tl.training.features import FeatureBatches
from arelu_tl.training.fit import FitResult, FitState, SilentJournal, fit
from arelu_tl.training.interruption import catch_signals
from arelu_tl.training.memory import peak_memory_bytes, reset_peak_memory
from arelu_tl.training.saved_state import read_lengths, read_record
from arelu_tl.version import __version__


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
    begun = world.lead(lambda: bool(list_checkpoints(path / runs.CHECKPOINTS)))
    start = None if begun else begin(config, folder, device)
    if world.leads:
        make_folder(path)
    with hold_folder(path, what="being trained", patience=patience) if world.leads else nullcontext():
        if (finished := world.lead(lambda: finished_summary(path))) is not None:  # by whoever held it
            return finished
        saved = world.lead(lambda: _saved_run(path, config, device, world, observer))
        resume = None if saved is None else saved.state
        if saved is not None:
            start = go_on(config, len(folder.classes), device, saved)
        elif start is None:  # all that was saved is damaged
            start = begin(config, folder, device)
        backbone, report = start.backbone, start.report
        model = backbone.model
        if config.sync_bn and world.size > 1:
            convert_sync_batchnorm(model)
        optimizer = make_run_optimizer(config, model)
        train, val = make_run_batches(config, folder, backbone, device, processors, world)
        steps_per_epoch = -(-len(train) // config.grad_accum_steps)
        schedule = make_run_schedule(config, optimizer, steps_per_epoch)
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
        keep = read_lengths(resume) if resume else None
        journal: RunJournal | SilentJournal = SilentJournal()
        if world.leads:
            kept = {"start": start.to_state()}
            journal = RunJournal(path, card, folder.splits["val"], observer, kept=kept, keep=keep, tensorboard=log)
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
                write_json(
                    path / runs.SUMMARY, {**_identity(config), "status": status, "error": str(error), "pairing": start.pairing}
                )
            if isinstance(error, Interrupted | NonFiniteError):
                # All have met it. The first one shall have written before another is gone: torchrun ends the rest then.
                world.highest(0)
            if isinstance(error, ArtefactError):
                raise ArtefactError(f"{path}: {error}") from None
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
            summary = _summary(config, path, result, device, start.pairing, on_features=trained is not model)
            write_json(path / runs.SUMMARY, summary)
            if config.tensorboard:
                log_summary(path / runs.TENSORBOARD, summary, report)
            observer.run_finished(config.arm, summary)
            return summary

        summary = world.lead(finish)
        if number := world.highest(stop.signal_number or 0):  # it came after the loop had looked for the last time
            raise Interrupted(f"stopped after {path.name} was finished", number)
        return summary


def finished_summary(path: Path) -> dict[str, Any] | None:
    """The summary of a run that is finished already."""
    if not runs.is_run(path):
        return None
    run = runs.load_run(path)
    return run.summary if run.status == "finished" else None


def _saved_run(path: Path, config: FinetuneConfig, device: torch.device, world: World, observer: Observer) -> SavedRun | None:
    """What there is to go on from, if anything."""
    checkpoint, damaged = newest_checkpoint(path / runs.CHECKPOINTS)
    for bad in damaged:
        observer.note(f"{bad} is damaged and was passed over")
    if checkpoint is None:
        return None
    weights, state = load_checkpoint(checkpoint)
    try:
        read_record(FitState, state.get("loop"), "loop")
        read_lengths(state)
    except ArtefactError as error:
        raise ArtefactError(f"{checkpoint}: {error}") from None
    observer.note(f"{path.name} goes on from {checkpoint.name}")
    if changed := changed_environment(read_json(path / runs.ENVIRONMENT), device):
        observer.note(f"{path.name} began elsewhere ({changed}): resumable, not bitwise")
    if (before := state.get("processes", 1)) != world.size:
        observer.note(f"{path.name} was trained by {before} processes and now by {world.size}: resumable, not bitwise")
    return SavedRun(checkpoint, weights, state, None if config.arm == "relu" else read_json(path / runs.SURGERY))


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
