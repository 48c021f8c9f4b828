"""Train several cells at once on this machine, in worker processes that share its devices.

Each worker trains one cell after another. If a worker dies, only its own cell fails. Each worker
has its own session, so that a terminal's Ctrl-C reaches only the parent, which forwards each signal
it receives: a training run saves its state at the first one and exits at once at the second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType

import torch

from arelu_tl.data.folder import PictureFolder
from arelu_tl.experiment.launch.cell import Cell, Outcome, run_cell
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.rehearsal import Rehearsal, rehearse
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.device import choose_device

_POLL_SECONDS = 0.2
# How long to wait for a worker to end before it is killed.
_PATIENCE_SECONDS = 120.0
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    began: float = 0.0
    knows_folder: bool = False


class Processes:
    """``jobs`` worker processes; a context manager that ends them on exit."""

    parallel = True

    def __init__(self, folder: PictureFolder, device: str | None, jobs: int) -> None:
        self.slots = jobs
        self._folder = folder
        self._device = choose_device(device)
        self._devices = share_devices(device, jobs)
        self._threads = share_threads(jobs)
        self._processors = max(1, (os.cpu_count() or 1) // jobs)
        self._workers: list[_Worker] = []
        self._stopped = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every worker; one that still trains (after an error in the parent) saves first."""
        if not self._stopped:
            self.stop(signal.SIGTERM)
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(_PATIENCE_SECONDS)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()

    @property
    def running(self) -> int:
        return sum(worker.cell is not None for worker in self._workers)

    def rehearse(self, configs: Sequence[FinetuneConfig]) -> list[Rehearsal]:
        """Rehearse in this process with a worker's threads and share of memory."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            share = max(self._devices.count(device) for device in self._devices)
            return [
                rehearse(config, self._folder, self._device, measure=True, share=share)
                for config in configs
            ]
        finally:
            torch.set_num_threads(before)
            if self._device.type == "cuda":  # the workers need the memory
                torch.cuda.empty_cache()

    def start(self, cell: Cell) -> None:
        """Send a cell to an idle worker, which is started if necessary."""
        if not self._workers:
            # Start all at once, because each takes seconds to import torch.
            self._workers = [self._spawn(slot) for slot in range(self.slots)]
        slot = next(slot for slot, worker in enumerate(self._workers) if worker.cell is None)
        if self._workers[slot].process.exitcode is not None:
            self._workers[slot].pipe.close()
            self._workers[slot] = self._spawn(slot)
        worker = self._workers[slot]
        worker.cell, worker.began = cell, time.monotonic()
        try:
            worker.pipe.send((None if worker.knows_folder else self._folder, cell))
            worker.knows_folder = True
        except OSError:  # the worker has just died; wait() will detect it
            return

    def wait(self) -> list[Outcome]:
        """Return the outcomes of cells that have ended, after a short timeout."""
        busy = [worker for worker in self._workers if worker.cell is not None]
        connection.wait([worker.pipe for worker in busy], timeout=_POLL_SECONDS)
        outcomes = []
        for worker in busy:
            outcome = _receive(worker.pipe)
            if outcome is None and worker.process.exitcode is not None:
                # It may have sent its outcome between the two checks.
                outcome = _receive(worker.pipe) or self._died(worker)
            if outcome is not None:
                worker.cell = None
                outcomes.append(outcome)
        return outcomes

    def stop(self, signal_number: int) -> None:
        """Send the signal to workers that train, and end the idle ones."""
        self._stopped = True
        for worker in self._workers:
            if worker.cell is None:
                worker.pipe.close()
            elif worker.process.exitcode is None and worker.process.pid is not None:
                os.kill(worker.process.pid, signal_number)

    def _spawn(self, slot: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        given = (
            theirs,
            self._devices[slot],
            self._threads,
            self._processors,
            multiprocessing.get_start_method(),
        )
        process = context.Process(target=_work, args=given, name=f"job {slot}")
        with _signals_blocked(), _openmp_threads(self._threads):
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _died(self, worker: _Worker) -> Outcome:
        """Return the outcome of the cell whose process ended without sending one."""
        if worker.cell is None or worker.process.exitcode is None:
            raise ValueError("not a dead worker with a cell")
        code, cell, seconds = worker.process.exitcode, worker.cell, time.monotonic() - worker.began
        record = runs.load_run(cell.path) if runs.is_run(cell.path) else None
        if record is not None and record.status == "finished":
            return Outcome(cell.name, "finished", seconds=seconds, summary=record.summary)
        if self._stopped:
            return Outcome(
                cell.name, "interrupted", f"{cell.name} was stopped", 128 + signal.SIGTERM, seconds
            )
        how = (
            f"was ended by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        why = ": the system does so when memory runs out" if code == -signal.SIGKILL else ""
        return Outcome(cell.name, "failed", f"its process {how}{why}", 1, seconds)


def share_devices(asked: str | None, jobs: int) -> list[str | None]:
    """Return a device for each job: the GPUs in turn, or the device that was asked for."""
    if choose_device(asked).type == "cuda" and asked in (None, "cuda"):
        return [f"cuda:{job % torch.cuda.device_count()}" for job in range(jobs)]
    return [asked] * jobs


def share_threads(jobs: int) -> int:
    """Return the threads of each job: an equal share, or OMP_NUM_THREADS if it is set."""
    alone = torch.get_num_threads()
    return alone if "OMP_NUM_THREADS" in os.environ else max(1, alone // jobs)


def _receive(pipe: Connection) -> Outcome | None:
    """Return the outcome waiting in the pipe; None if there is none or it is incomplete."""
    try:
        if pipe.poll():
            outcome: Outcome = pipe.recv()
            return outcome
    except (EOFError, OSError):  # its process has died
        return None
    return None


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start a process with stop signals blocked until it unblocks them.

    Until it has its own session it is in our process group, and a terminal's Ctrl-C would kill it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started together with the process, it would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _openmp_threads(number: int) -> Iterator[None]:
    """Set OMP_NUM_THREADS for a child process.

    OpenMP reads it when torch is imported, long before the process could change it.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


class _Stop:
    """A worker's handler of SIGINT and SIGTERM outside of the training loop.

    It interrupts a cell that is being prepared; between two cells it only records the request.
    """

    def __init__(self) -> None:
        self.busy = self.asked = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        for each in _STOPPING:
            signal.signal(each, signal.SIG_DFL)
        if self.busy:
            raise KeyboardInterrupt


def _work(
    pipe: Connection, device: str | None, threads: int, processors: int, start_method: str
) -> None:
    """Run a worker: receive cells and send outcomes until the other end of the pipe is closed."""
    # The default start method in a spawned process is "spawn" too: its decoding processes would
    # each import torch again, for every run.
    multiprocessing.set_start_method(start_method, force=True)
    stop = _Stop()
    for number in _STOPPING:
        signal.signal(number, stop)
    if hasattr(os, "setsid"):
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    folder: PictureFolder | None = None
    try:
        while not stop.asked:
            received, cell = pipe.recv()
            folder = received or folder
            pipe.send(_train(cell, folder, device, processors, stop))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent has no more cells, or has died.
        return


def _train(
    cell: Cell, folder: PictureFolder | None, device: str | None, processors: int, stop: _Stop
) -> Outcome:
    if folder is None:
        raise ValueError("a cell came before its pictures")
    stopped = Outcome(
        cell.name, "interrupted", f"stopped before {cell.name} had begun", 128 + signal.SIGTERM
    )
    try:
        stop.busy = True
        if stop.asked:
            return stopped
        return run_cell(cell, folder, choose_device(device), Observer(), processors=processors)
    except KeyboardInterrupt:
        return stopped
    finally:
        stop.busy = False


def _end_with_parent() -> None:
    """Save and end this cell once the parent has died, because nothing waits for it then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
