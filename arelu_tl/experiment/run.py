"""One run: one arm, one learning rate, one seed, from pretrained weights to a finished folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arelu_tl.backbone.loading import pretrained_cfg
from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import AreluTlError, ArtefactError, Interrupted, NonFiniteError, PeerError
from arelu_tl.experiment.build import RunStart, SavedRun, Training, begin, build_training, go_on
from arelu_tl.experiment.choices import choose_start, starts
from arelu_tl.experiment.environment import changed_environment, describe_environment
from arelu_tl.experiment.head_only import on_features
from arelu_tl.experiment.journal import RunJournal
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.probe import PROBED, Probe, evaluate_probe
from arelu_tl.experiment.tensorboard import TensorBoardLog, log_summary
from arelu_tl.records import runs
from arelu_tl.records.card import ModelCard
from arelu_tl.records.config import FinetuneConfig, dump_yaml
from arelu_tl.records.rows import Summary
from arelu_tl.records.storage import (
    hold_folder,
    make_folder,
    read_json,
    write_json,
    write_text,
)
from arelu_tl.training.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint
from arelu_tl.training.distributed import ALONE, World
from arelu_tl.training.fit import FitResult, FitState, Journal, SilentJournal, fit
from arelu_tl.training.interruption import StopRequest, catch_signals
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
) -> Summary:
    """Train ``config.arm`` in the folder ``path``, from its last checkpoint if there is one.

    Args:
        processors: number of CPUs that this run may use; None for all of the machine's.
        patience: seconds to wait until another process, which may be stopping, leaves the folder.
        world: the processes that train the run together; rank 0 writes its folder.

    Returns:
        The content of summary.json.

    Raises:
        BackboneError, SurgeryError, ConfigError: before training, and before the folder is made.
        Interrupted, NonFiniteError, StorageError: while training; summary.json has the status.
        StorageError: another process trains this run.
        PeerError: another process of ``world`` has ended.
    """
    run = RunFolder(path, config, observer, world)
    start = None if run.begun() else run.begin(folder, device)
    with run.held(patience):
        if (summary := run.finished()) is not None:  # by the process that held the folder
            return summary
        saved = run.saved(device)
        if saved is not None:
            start = go_on(config, len(folder.classes), device, saved)
        elif start is None:  # every checkpoint is damaged
            start = run.begin(folder, device)
        if saved is None:
            start = run.prepared(start, folder, device)
        training = build_training(
            config.model_copy(update=start.settled),
            folder,
            start.backbone,
            device,
            processors,
            world,
        )
        # From here on there is something to save: a signal is waited with until the next step.
        with catch_signals() as stop:
            if saved is None:
                run.record_start(start, device)
            observer.run_started(
                config.arm, training.steps, config.epochs, start.backbone.weights, start.report
            )
            with run.journal(start, folder, saved) as journal:
                if world.size == 1:
                    training = on_features(training, config, folder, start.backbone, observer)
                result = run.fit(training, journal, stop, start, saved)
        return run.finish(result, training, start, stop)


class RunFolder:
    """The folder of a run during training; of several processes only rank 0 writes it."""

    def __init__(
        self, path: Path, config: FinetuneConfig, observer: Observer, world: World
    ) -> None:
        self.path, self.config, self.observer, self.world = path, config, observer, world

    def begun(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return self.world.lead(lambda: bool(list_checkpoints(self.path / runs.CHECKPOINTS)))

    @contextmanager
    def held(self, patience: float) -> Iterator[None]:
        """Make the folder and lock it against other processes that would train this run."""
        if not self.world.leads:
            yield
            return
        make_folder(self.path)
        with hold_folder(self.path, what="being trained", patience=patience):
            yield

    def finished(self) -> Summary | None:
        """Return the summary if the run is finished already."""
        return self.world.lead(lambda: finished_summary(self.path))

    def saved(self, device: torch.device) -> SavedRun | None:
        """Return the content of the newest undamaged checkpoint, if there is one.

        Raises:
            ArtefactError: its hashes match, but its content is not that of a checkpoint.
        """
        return self.world.lead(lambda: self._newest(device))

    def _newest(self, device: torch.device) -> SavedRun | None:
        checkpoint, damaged = newest_checkpoint(self.path / runs.CHECKPOINTS)
        for bad in damaged:
            self.observer.note(f"{bad} is damaged and was passed over")
        if checkpoint is None:
            return None
        weights, state = load_checkpoint(checkpoint)
        try:
            read_record(FitState, state.get("loop"), "loop")
            read_lengths(state)
        except ArtefactError as error:
            raise ArtefactError(f"{checkpoint}: {error}") from None
        name = self.path.name
        self.observer.note(f"{name} goes on from {checkpoint.name}")
        if changed := changed_environment(read_json(self.path / runs.ENVIRONMENT), device):
            self.observer.note(f"{name} began elsewhere ({changed}): resumable, not bitwise")
        if (before := state.get("processes", 1)) != self.world.size:
            change = f"{name} was trained by {before} processes and now by {self.world.size}"
            self.observer.note(f"{change}: resumable, not bitwise")
        surgery = None if self.config.net == "relu" else read_json(self.path / runs.SURGERY)
        return SavedRun(checkpoint, weights, state, surgery)

    def begin(self, folder: PictureFolder, device: torch.device) -> RunStart:
        """Start a new run with the first of the starts to choose from; see ``build.begin``."""
        first = starts(self.config)[0]
        return begin(self.config.model_copy(update={"init": first}), folder, device)

    def prepared(self, start: RunStart, folder: PictureFolder, device: torch.device) -> RunStart:
        """Settle and record what ``auto`` stands for, and probe the start that is chosen."""
        begun = self.config.arm, starts(self.config)[0]

        def build(config: FinetuneConfig) -> RunStart:
            built = (config.arm, config.init) == begun
            return start if built else begin(config, folder, device)

        best, choices, trained = choose_start(self.config, folder, device, build, self.world)
        settled, pairing, probe = choices.settings(), best.pairing, None
        if self.world.leads:
            write_json(self.path / runs.CHOICES, choices.to_json())
            for text in choices.lines():
                self.observer.note(f"{self.config.arm}: {text}")
        if trained is not None and settled["head_init"] == "probe":
            # The evaluation before the first step is the probe's.
            probe = Probe(None, None, trained.lr, trained.pictures)
            pairing = {**pairing, "head_init": PROBED}
            self.observer.note(f"{self.config.arm}: begins with a linear probe of its features")
        elif trained is not None:
            probe = self.world.lead(
                lambda: evaluate_probe(trained, self.config, folder, best.backbone, device)
            )
        shown = None if probe is None else probe.to_json()
        return replace(best, pairing=pairing, settled=settled, probe=shown)

    def record_start(self, start: RunStart, device: torch.device) -> None:
        """Write what is known before the first step."""
        if not self.world.leads:
            return
        write_text(self.path / runs.RUN_CONFIG, dump_yaml(self.config))
        write_json(self.path / runs.ENVIRONMENT, describe_environment(device, self.world.size))
        if start.report is not None:
            write_json(self.path / runs.SURGERY, start.report.to_json())

    @contextmanager
    def journal(
        self, start: RunStart, folder: PictureFolder, saved: SavedRun | None
    ) -> Iterator[Journal]:
        """Open the loop's journal, cut to where ``saved`` was made; silent except on rank 0."""
        if not self.world.leads:
            yield SilentJournal()
            return
        log = None
        if self.config.tensorboard:
            resumed_at = None if saved is None else saved.state["loop"]["step"]
            log = TensorBoardLog(self.path / runs.TENSORBOARD, start.report, resumed_at=resumed_at)
        journal = RunJournal(
            self.path,
            _card(self.config, start, folder.classes),
            folder.splits["val"],
            self.observer,
            kept={"start": start.to_state()},
            keep=None if saved is None else read_lengths(saved.state),
            tensorboard=log,
        )
        try:
            yield journal
        finally:
            journal.close()

    def fit(
        self,
        training: Training,
        journal: Journal,
        stop: StopRequest,
        start: RunStart,
        saved: SavedRun | None,
    ) -> FitResult:
        """Train to the end; an error that stops it is recorded in summary.json."""
        reset_peak_memory(training.device)
        try:
            return fit(
                training.model,
                training.train,
                training.val,
                training.optimizer,
                training.schedule,
                training.settings,
                device=training.device,
                journal=journal,
                stop=stop,
                resume=None if saved is None else saved.state,
                world=self.world,
            )
        except Exception as error:
            self._record_end(error, start.pairing)
            if isinstance(error, ArtefactError):
                raise ArtefactError(f"{self.path}: {error}") from None
            raise _explained(error, training.device) from error

    def _record_end(self, error: Exception, pairing: dict[str, Any]) -> None:
        if self.world.leads:
            ended: Summary = {
                "arm": self.config.arm,
                "lr": self.config.lr,
                "seed": self.config.seed,
                "status": "interrupted" if isinstance(error, Interrupted | PeerError) else "failed",
                "error": str(error),
                "pairing": pairing,
            }
            write_json(self.path / runs.SUMMARY, ended)
        if isinstance(error, Interrupted | NonFiniteError):
            # All ranks have this error. Wait until rank 0 has written: torchrun ends the others as
            # soon as one process exits.
            self.world.highest(0)

    def finish(
        self, result: FitResult, training: Training, start: RunStart, stop: StopRequest
    ) -> Summary:
        """Write and return the summary.

        Raises:
            Interrupted: a signal arrived after the loop's last check for one.
        """

        def write() -> Summary:
            summary = _summary(self.config, self.path, result, training, start)
            write_json(self.path / runs.SUMMARY, summary)
            if self.config.tensorboard:
                log_summary(self.path / runs.TENSORBOARD, summary, start.report)
            self.observer.run_finished(self.config.arm, summary)
            return summary

        summary = self.world.lead(write)
        if number := self.world.highest(stop.signal_number or 0):
            raise Interrupted(f"stopped after {self.path.name} was finished", number)
        return summary


def finished_summary(path: Path) -> Summary | None:
    """Return the summary of a finished run; None if it is not finished."""
    if not runs.is_run(path):
        return None
    run = runs.load_run(path)
    return run.summary if run.status == "finished" else None


def _card(config: FinetuneConfig, start: RunStart, classes: list[str]) -> ModelCard:
    backbone = start.backbone
    return ModelCard(
        backbone=backbone.name,
        architecture=str(pretrained_cfg(backbone.model).get("architecture") or backbone.name),
        img_size=config.img_size,
        arm=config.net,
        classes=classes,
        data_config=backbone.data_config,
        model_args=backbone.model_args,
        sites=start.report.to_json()["sites"] if start.report else [],
        step=0,
        top1=0.0,
        loss=0.0,
        weights=backbone.weights,
        license=backbone.license,
        version=__version__,
    )


def _explained(error: Exception, device: torch.device) -> Exception:
    """Return ``error`` with advice for the user if torch gives none."""
    if isinstance(error, torch.OutOfMemoryError):
        return AreluTlError(
            f"out of memory on {device}: lower `img_size` or `batch_size`, or pass `amp` or "
            "`grad_checkpointing`"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # torch's words
        return AreluTlError(
            "a process that loads pictures has died, for want of memory or by a signal: go on "
            f"with fewer (-j), or with -j 0 ({' '.join(str(error).split())[:120]})"
        )
    return error


def _summary(
    config: FinetuneConfig, path: Path, result: FitResult, training: Training, start: RunStart
) -> Summary:
    state, curve, probe = result.state, runs.load_run(path).curve(), start.probe
    if probe is not None and probe["top1"] is None:
        probe = {**probe, "top1": curve[0]["top1"], "loss": curve[0]["loss"]}
    return {
        "arm": config.arm,
        "lr": config.lr,
        "head_lr": config.model_copy(update=start.settled).optimizer().head_lr or config.lr,
        "bn_stats": start.settled.get("bn_stats", config.bn_stats),
        "seed": config.seed,
        "status": "finished",
        "steps": state.step,
        "epochs": state.epoch,
        "stopped_early": state.stopped_early,
        **runs.curve_results(curve),
        "seconds": round(state.seconds, 3),
        "images_per_second": round(state.images / state.seconds, 3) if state.seconds else None,
        "peak_memory_bytes": peak_memory_bytes(training.device),
        "micro_batch": state.micro_batch,
        "on_features": training.model is not start.backbone.model,
        "device": str(training.device),
        "probe": probe,
        "pairing": {**start.pairing, "epochs": state.digests},
    }
