"""Train cells as tasks of a Ray cluster (extra ``ray``), each with its CPUs and, if any, a GPU.

Every node must see the pictures and the study's folder under the same paths.
"""

from __future__ import annotations

import importlib
import os
import platform
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import AreluTlError, ConfigError, DataError
from arelu_tl.experiment.launch.cell import Cell, Outcome, run_cell
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.rehearsal import Rehearsal, rehearse
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.device import choose_device

_POLL_SECONDS = 0.2
# More CPUs than this hardly speed up a run, but keep other runs waiting.
_CPUS_A_CELL = 4
# Only the list of pictures is put into Ray's object store; by default a local store would take a
# third of the memory.
_STORE_BYTES = 128 * 2**20


def require_ray() -> Any:
    """Return the package ``ray``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "`launcher='ray'` needs the package ray: pip install 'arelu-tl[ray]'"
        ) from None


@dataclass(frozen=True)
class Share:
    """The CPUs and GPUs of one cell, and how many cells the cluster can train at once."""

    cpus: int
    gpus: int
    slots: int


def share_cluster(
    nodes: Sequence[Mapping[str, float]], *, jobs: int | None, use_gpus: bool
) -> Share:
    """Divide a cluster's nodes ({"CPU": ..., "GPU": ...} each) among cells.

    With ``jobs`` each cell gets an equal share of all CPUs, but at most those of the largest node.
    Without ``jobs`` each gets up to four CPUs, and on GPU nodes at most the node's CPUs per GPU.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1] if use_gpus else []
    cpus = [int(node.get("CPU", 0)) for node in with_gpus or nodes]
    working = [number for number in cpus if number] or [1]
    if jobs is not None:
        each = min(sum(working) // jobs, max(working))
    elif with_gpus:
        each = min(_CPUS_A_CELL, *(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpus))
    else:
        each = min(_CPUS_A_CELL, *working)
    each = max(1, each)
    if with_gpus:
        room = sum(min(int(node["GPU"]), int(node.get("CPU", 0)) // each) for node in with_gpus)
    else:
        room = sum(number // each for number in working)
    return Share(each, 1 if with_gpus else 0, jobs or max(1, room))


@contextmanager
def ray_tasks(
    folder: PictureFolder, device: str | None, *, jobs: int | None, address: str | None
) -> Iterator[RayTasks]:
    """Join a Ray cluster or start a local one, and leave it at the end.

    Raises:
        ConfigError: there is no cluster at ``address``, or it has no GPU though ``device`` is one.
    """
    ray = require_ray()
    # Ray installs a handler that would end the process at once.
    handler = signal.getsignal(signal.SIGTERM)
    joins = not ray.is_initialized()
    try:
        if joins:
            _join(ray, address or os.environ.get("RAY_ADDRESS") or "local")
        yield RayTasks(ray, folder, device, jobs)
    finally:
        if joins:
            ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


def _join(ray: Any, address: str) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        _knock(address)
        ray.init(address=address, **settings)
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {_in_a_line(error)}") from None


class RayTasks:
    """A ``Launcher`` on the cluster that the package ``ray`` has joined."""

    parallel = True

    def __init__(
        self, ray: Any, folder: PictureFolder, device: str | None, jobs: int | None
    ) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = share_cluster(nodes, jobs=jobs, use_gpus=not (device or "").startswith("cpu"))
        if (device or "").startswith("cuda") and not share.gpus:
            raise ConfigError(f"`device` {device}: the Ray cluster has no GPU")
        self.slots = share.slots
        self._ray = ray
        self._task_device = "cuda" if share.gpus else device
        self._cpus = share.cpus
        # A dead task is recorded as failed; a retry could run while the first still holds the run's
        # folder.
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_retries": 0}
        self._train, self._rehearse = (ray.remote(**options)(task) for task in (_train, _rehearse))
        self._shared = ray.put(folder)
        self._tasks: dict[Any, Cell] = {}
        self._stopped = False

    @property
    def running(self) -> int:
        return len(self._tasks)

    def rehearse(self, configs: Sequence[FinetuneConfig]) -> list[Rehearsal]:
        """Rehearse on the cluster, see ``Launcher.rehearse``."""
        # A task has its GPU alone, but all tasks may share a node's memory.
        share = 1 if self._task_device == "cuda" else self.slots
        tasks = [
            self._rehearse.remote(self._shared, config, self._task_device, self._cpus, share)
            for config in configs
        ]
        try:
            results = self._ray.get(tasks)
        except self._ray.exceptions.RayError as error:
            raise ConfigError(
                f"a training step fails on the Ray cluster: {_in_a_line(error)}"
            ) from None
        for each in results:
            if isinstance(each, AreluTlError):
                raise each
        return list(results)

    def start(self, cell: Cell) -> None:
        """Begin to train a cell as a task of the cluster."""
        absolute = replace(cell, path=cell.path.resolve())
        self._tasks[self._train.remote(self._shared, absolute, self._task_device, self._cpus)] = (
            cell
        )

    def wait(self) -> list[Outcome]:
        """Return the outcomes of tasks that have ended, after a short timeout."""
        if not self._tasks:
            return []
        ended, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=_POLL_SECONDS)
        return [self._outcome(task, self._tasks.pop(task)) for task in ended]

    def stop(self, signal_number: int) -> None:
        """Cancel the tasks: Ray raises KeyboardInterrupt in them, which acts like SIGINT."""
        self._stopped = True
        for task in self._tasks:
            self._ray.cancel(task, force=False)

    def _outcome(self, task: Any, cell: Cell) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(task)
            return outcome
        except self._ray.exceptions.RayError as error:
            if self._stopped:
                return Outcome(
                    cell.name,
                    "interrupted",
                    f"stopped before {cell.name} had begun",
                    128 + signal.SIGTERM,
                )
            return Outcome(cell.name, "failed", f"its Ray task failed: {_in_a_line(error)}", 1)


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT or ray://HOST:PORT.

    Ray itself would retry for many minutes.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _in_a_line(error: BaseException) -> str:
    """Return the last line of a Ray error; the lines above are another machine's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _look_around(folder: PictureFolder, study: Path | None) -> None:
    """Raise unless this node can see the pictures and the study's folder.

    Raises:
        DataError: it cannot.
    """
    for what, path in (("the pictures", folder.root), ("the study's folder", study)):
        if path is not None and not path.is_dir():
            raise DataError(
                f"{what} {path} cannot be seen from node {platform.node()}: put it on a path that "
                "all nodes share"
            )


def _rehearse(
    folder: PictureFolder, config: FinetuneConfig, device: str | None, cpus: int, share: int = 1
) -> Rehearsal | AreluTlError:
    """Rehearse on a node; an error is returned as a value, because Ray would wrap it in its own."""
    try:
        _look_around(folder, None)
        torch.set_num_threads(cpus)
        return rehearse(config, folder, choose_device(device), measure=True, share=share)
    except AreluTlError as error:
        return error


def _train(folder: PictureFolder, cell: Cell, device: str | None, cpus: int) -> Outcome:
    """Train a cell on a node."""
    try:
        _look_around(folder, cell.path.parent)
    except DataError as error:
        return Outcome(cell.name, "failed", f"DataError: {error}", error.exit_code)
    torch.set_num_threads(cpus)
    return run_cell(cell, folder, choose_device(device), Observer(), processors=cpus)
