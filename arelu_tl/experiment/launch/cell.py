"""One cell of a sweep, from its settings to how it ended; and the ways to train many, of which this file has the simplest."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import AreluTlError, Interrupted, StorageError
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.rehearsal import Rehearsal, rehearse
from arelu_tl.experiment.run import train_run
from arelu_tl.records.config import FinetuneConfig

# A sweep begun right after another one was killed may meet that one's workers, still saving.
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Cell:
    """One run of a sweep and how far it is.

    Attributes:
        number: its place in the grid, from 1.
        status: missing, interrupted, running (a process that trained it has died, or trains it now), failed or finished.
        done: share of its epochs that are trained.
    """

    number: int
    config: FinetuneConfig
    path: Path
    status: str
    done: float = 0.0

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def begun(self) -> bool:
        """Whether an earlier invocation has begun it and not ended it."""
        return self.status in ("interrupted", "running")

    @property
    def waits(self) -> bool:
        """Whether there is something left to train."""
        return self.status == "missing" or self.begun


@dataclass(frozen=True)
class Outcome:
    """How the training of a cell ended; plain values that travel between processes.

    Attributes:
        status: finished; failed (which costs the others nothing); interrupted by a signal; or storage: the disk refused,
            or another process trains this very run.
        error: what went wrong, in one line.
        exit_code: that of the error.
        seconds: how long it took, loading and evaluation included.
        summary: of a finished run.
    """

    name: str
    status: Literal["finished", "failed", "interrupted", "storage"]
    error: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)


class Launcher(Protocol):
    """A way to train cells, at most ``slots`` at once.

    A ``parallel`` one leaves signals to its caller, who passes them on with ``stop``.
    """

    parallel: bool
    slots: int

    @property
    def running(self) -> int:
        """Cells whose outcome has not been told yet."""

    def rehearse(self, configs: Sequence[FinetuneConfig]) -> list[Rehearsal]:
        """See ``run.rehearse``; measured as the cells will run.

        Raises:
            ConfigError, BackboneError, SurgeryError, DataError: one of them cannot be trained.
        """

    def start(self, cell: Cell) -> None:
        """Begin to train a cell; whatever becomes of it is its outcome."""

    def wait(self) -> list[Outcome]:
        """The cells that have ended; after a moment also without one."""

    def stop(self, signal_number: int) -> None:
        """Let each running cell save its state and end; ``wait`` still tells how each of them did."""


def run_cell(
    cell: Cell, folder: PictureFolder, device: torch.device, observer: Observer, *, processors: int | None = None
) -> Outcome:
    """Train a cell (see ``train_run``); whatever it raises, bar what ends a process, becomes its outcome."""
    began = time.monotonic()
    status: Literal["failed", "interrupted", "storage"]
    try:
        summary = train_run(cell.path, cell.config, folder, device, observer, processors=processors, patience=PATIENCE_SECONDS)
        return Outcome(cell.name, "finished", seconds=time.monotonic() - began, summary=summary)
    except Interrupted as stopped:
        status, error, code = "interrupted", str(stopped), stopped.exit_code
    except KeyboardInterrupt:  # while a model was loaded or calibrated, when there is no state yet to save
        status, error, code = "interrupted", f"stopped before {cell.name} had begun", 128 + signal.SIGINT
    except StorageError as refused:
        status, error, code = "storage", str(refused), refused.exit_code
    except Exception as failure:  # noqa: BLE001  one cell's failure, whatever it is, must not cost the others
        status, error = "failed", f"{type(failure).__name__}: {failure}"
        code = failure.exit_code if isinstance(failure, AreluTlError) else 1
    return Outcome(cell.name, status, error, code, time.monotonic() - began)


class InProcess:
    """One cell after the other in this process, watched step by step."""

    parallel = False
    slots = 1

    def __init__(self, folder: PictureFolder, device: torch.device, observer: Observer) -> None:
        self._folder, self._device, self._observer = folder, device, observer
        self._ended: list[Outcome] = []

    @property
    def running(self) -> int:
        return len(self._ended)

    def rehearse(self, configs: Sequence[FinetuneConfig]) -> list[Rehearsal]:
        return [rehearse(config, self._folder, self._device, measure=True) for config in configs]

    def start(self, cell: Cell) -> None:
        self._ended.append(run_cell(cell, self._folder, self._device, self._observer))

    def wait(self) -> list[Outcome]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self, signal_number: int) -> None:
        """Nothing runs while somebody could call this."""
