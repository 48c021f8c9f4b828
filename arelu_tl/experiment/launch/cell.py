"""A cell of a sweep, its outcome, the launcher protocol, and the launcher within this process."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import AreluTlError, Interrupted, StorageError
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.rehearsal import Rehearsal, rehearse
from arelu_tl.experiment.run import train_run
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.records.rows import Summary

# The workers of a sweep that was just killed may still be saving when the next one begins.
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Cell:
    """One run of a sweep and its progress.

    Attributes:
        number: its place in the grid, from 1.
        status: missing, interrupted, running (a process trains it now, or died while training it),
            failed or finished.
        done: share of its epochs that are trained, 0..1.
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
        """Whether an earlier invocation began it and did not finish it."""
        return self.status in ("interrupted", "running")

    @property
    def waits(self) -> bool:
        """Whether it still has to be trained."""
        return self.status == "missing" or self.begun


@dataclass(frozen=True)
class Outcome:
    """How the training of a cell ended; plain values that can be sent between processes.

    Attributes:
        status: finished; failed (other cells are not affected); interrupted by a signal; or
            storage: a file could not be written, or another process trains the same run.
        error: what went wrong, in one line.
        exit_code: exit code of the error.
        seconds: duration, loading and evaluation included.
        summary: the summary of a finished run.
    """

    name: str
    status: Literal["finished", "failed", "interrupted", "storage"]
    error: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    summary: Summary | None = None


class Launcher(Protocol):
    """A way to train cells, at most ``slots`` at once.

    A ``parallel`` launcher does not handle signals: its caller forwards them with ``stop``.
    """

    parallel: bool
    slots: int

    @property
    def running(self) -> int:
        """Number of cells whose outcome has not been returned yet."""

    def rehearse(self, configs: Sequence[FinetuneConfig]) -> list[Rehearsal]:
        """Rehearse and measure ``configs`` as the cells will run; see ``rehearsal.rehearse``.

        Raises:
            ConfigError, BackboneError, SurgeryError, DataError: one of them cannot be trained.
        """

    def start(self, cell: Cell) -> None:
        """Begin to train a cell; every failure is reported in its outcome."""

    def wait(self) -> list[Outcome]:
        """Return the outcomes of cells that have ended; after a short timeout, an empty list."""

    def stop(self, signal_number: int) -> None:
        """Make each running cell save its state and end; ``wait`` still returns their outcomes."""


def run_cell(
    cell: Cell,
    folder: PictureFolder,
    device: torch.device,
    observer: Observer,
    *,
    processors: int | None = None,
) -> Outcome:
    """Train a cell (see ``train_run``) and return any error it raises as its outcome."""
    began = time.monotonic()
    status: Literal["failed", "interrupted", "storage"]
    try:
        summary = train_run(
            cell.path,
            cell.config,
            folder,
            device,
            observer,
            processors=processors,
            patience=PATIENCE_SECONDS,
        )
        return Outcome(cell.name, "finished", seconds=time.monotonic() - began, summary=summary)
    except Interrupted as stopped:
        status, error, code = "interrupted", str(stopped), stopped.exit_code
    except KeyboardInterrupt:
        # A model was being loaded or calibrated: there is no state to save yet.
        status, error, code = (
            "interrupted",
            f"stopped before {cell.name} had begun",
            128 + signal.SIGINT,
        )
    except StorageError as refused:
        status, error, code = "storage", str(refused), refused.exit_code
    except Exception as failure:  # noqa: BLE001  no error of one cell may stop the others
        status, error = "failed", f"{type(failure).__name__}: {failure}"
        code = failure.exit_code if isinstance(failure, AreluTlError) else 1
    return Outcome(cell.name, status, error, code, time.monotonic() - began)


class InProcess:
    """Trains one cell after another in this process; the observer sees every step."""

    parallel = False
    slots = 1

    def __init__(self, folder: PictureFolder, device: torch.device, observer: Observer) -> None:
        self._folder, self._device, self._observer = folder, device, observer
        self._ended: list[Outcome] = []

    @property
    def running(self) -> int:
        return len(self._ended)

    def rehearse(self, configs: Sequence[FinetuneConfig]) -> list[Rehearsal]:
        """Rehearse in this process, see ``Launcher.rehearse``."""
        return [rehearse(config, self._folder, self._device, measure=True) for config in configs]

    def start(self, cell: Cell) -> None:
        """Train a cell to its end."""
        self._ended.append(run_cell(cell, self._folder, self._device, self._observer))

    def wait(self) -> list[Outcome]:
        """Return the outcomes since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def stop(self, signal_number: int) -> None:
        """Do nothing: no cell is running when this can be called."""
