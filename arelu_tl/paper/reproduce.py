"""The paper's comparison on MNIST-Conv.

Every activation is trained once for every rate, seed and optimiser.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock

import torch

from arelu_tl.errors import ArtefactError, ConfigError, DataError, Interrupted
from arelu_tl.paper import config as reproduction
from arelu_tl.paper.config import FREE_KEYS, GRID_KEYS, ReproduceConfig
from arelu_tl.paper.digits import load_digit_set
from arelu_tl.paper.runs import (
    ended_runs,
    open_task,
    require_same_pictures,
    training_environment,
    write_runs,
)
from arelu_tl.paper.units import Outcome, Task, Unit, net_steps, plan_units, train_unit
from arelu_tl.records.config import check_config, dump_yaml, read_yaml
from arelu_tl.records.storage import claim_folder, hold_folder, make_folder, write_text
from arelu_tl.training.device import choose_device
from arelu_tl.training.interruption import StopRequest, catch_signals


class Watcher:
    """Callbacks for the progress of a reproduction; these do nothing.

    They are called from the thread that started it.
    """

    def planned(
        self, path: Path, tasks: Sequence[Task], runs: int, done: int, net_steps: int
    ) -> None:
        """Announce ``runs`` trainings in total, of which ``done`` have already ended.

        The rest takes ``net_steps`` steps of single nets.
        """

    def advanced(self, net_steps: int) -> None:
        """Report the steps of single nets since the last call."""

    def unit_done(self, unit: Unit) -> None:
        """Report that a stack has been trained and its runs are written."""


def reproduce(
    config: ReproduceConfig, *, watcher: Watcher | None = None
) -> tuple[Path, ReproduceConfig, list[Task]]:
    """Train every net of the grid that has not been trained yet.

    Returns:
        The study's folder; its configuration, including the grid that it was begun with; and its
        tasks, each with a folder of runs.

    Raises:
        ConfigError, DataError: before any training starts.
        Interrupted: after a signal. Complete stacks are kept; the same study can be continued.
        StorageError: writing failed, or another process holds the study.
    """
    watcher = watcher or Watcher()
    device = choose_device(config.device or "cpu")
    if config.data is not None:
        config = config.model_copy(update={"data": config.data.resolve()})
    there = config.output / config.name if config.name is not None else None
    with ExitStack() as held:
        if there is not None and there.exists():
            # Lock it before reading it: another process may be extending its grid.
            path = there
            held.enter_context(hold_folder(path, what="being trained"))
            config = _grown(path, config)
            tasks = _tasks(config)
            stop = held.enter_context(catch_signals())
        else:
            tasks = _tasks(config)
            # From here on there is a study that can be continued.
            stop = held.enter_context(catch_signals())
            path = claim_folder(make_folder(config.output), config.name, "reproduction")
            held.enter_context(hold_folder(path, what="being trained"))
        for task in tasks:
            require_same_pictures(path / task.folder, task)
        write_text(path / reproduction.CONFIG, dump_yaml(config))
        for task in tasks:
            open_task(path / task.folder, config, task)
        done = {
            (task.folder, run.config.arm, run.config.lr, run.config.seed)
            for task in tasks
            for run in ended_runs(path / task.folder)
        }
        units = plan_units(config, tasks, done)
        left = sum(len(unit.nets) for unit in units)
        of = len(tasks) * len(config.activations) * len(config.lrs) * len(config.seeds)
        watcher.planned(path, tasks, of, of - left, sum(net_steps(config, unit) for unit in units))
        _train(path, config, units, device, watcher, stop)
    return path, config, tasks


def resumed(path: Path) -> ReproduceConfig:
    """Return the configuration of the reproduction in ``path``, to continue it unchanged.

    Raises:
        DataError: there is no reproduction at ``path``.
        ArtefactError: it is damaged.
    """
    file = path / reproduction.CONFIG
    if not file.is_file():
        raise DataError(f"{path} is no reproduction: it has no {reproduction.CONFIG}")
    try:
        values = read_yaml(file)
        # Its current place and name: it may have been moved or renamed.
        place = {"output": path.resolve().parent, "name": path.resolve().name}
        return check_config(values, ReproduceConfig).model_copy(update=place)
    except ConfigError as error:
        raise ArtefactError(f"{file}: {error}") from None


def _grown(path: Path, config: ReproduceConfig) -> ReproduceConfig:
    """Return ``config`` with the grid of the reproduction at ``path`` added to its own.

    Raises:
        ConfigError: there is something else at ``path``, or the study was begun with other
            settings, which the message names.
    """
    if not (path / reproduction.CONFIG).is_file():
        raise ConfigError(f"{path} is there already and no reproduction: choose another `name`")
    before = resumed(path)
    ours, theirs = (
        {**each.model_dump(mode="json"), "dataset": each.chosen_dataset}
        for each in (config, before)
    )
    # A transfer has one optimiser and the sets that --data chooses; otherwise these belong to the
    # grid and the place.
    fixed = set(ours) - FREE_KEYS | ({"opts", "data"} if config.transfer else set())
    apart = [
        f"{key} {theirs[key]} there and {ours[key]} here"
        for key in ours
        if key in fixed and ours[key] != theirs[key]
    ]
    if apart:
        raise ConfigError(
            f"{path} was begun with other settings ({'; '.join(apart)}): choose another `name`"
        )
    joined = {
        key: list(dict.fromkeys([*getattr(before, key), *getattr(config, key)]))
        for key in GRID_KEYS
    }
    return config.model_copy(update=joined)


def _tasks(config: ReproduceConfig) -> list[Task]:
    if not config.transfer:
        digits = load_digit_set(config.chosen_dataset, config.data, download=config.download)
        return [Task(opt, opt, digits) for opt in config.opts]
    names = ("digits", "sklearn-digits") if config.data is None else ("mnist", "svhn")
    one, other = (load_digit_set(name, config.data, download=config.download) for name in names)
    if one.channels != other.channels:
        one, other = one.coloured(), other.coloured()
    return [
        Task(f"{a.name}-to-{b.name}", config.opts[0], b, a) for a, b in ((one, other), (other, one))
    ]


def _train(
    path: Path,
    config: ReproduceConfig,
    units: Sequence[Unit],
    device: torch.device,
    watcher: Watcher,
    stop: StopRequest,
) -> None:
    """Distribute units over threads, and write their results.

    Each thread trains its stack on one CPU core.
    """
    jobs = config.jobs or (os.cpu_count() or 1 if device.type == "cpu" else 1)
    threads = torch.get_num_threads()
    fingerprints = {unit.task.folder: unit.task.target.fingerprint() for unit in units}
    environment = training_environment(device)
    counter = _Counter()
    hint = f"go on with: arelu-tl reproduce --resume {shlex.quote(str(path))}"
    with ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ended = Event()  # an error here stops the threads as a signal does

        def run(unit: Unit) -> Outcome | None:
            def stopped() -> bool:
                return stop.signal_number is not None or ended.is_set()

            return train_unit(config, unit, device, stopped=stopped, advanced=counter.add)

        waiting: dict[Future[Outcome | None], Unit] = {
            pool.submit(run, unit): unit for unit in units
        }
        try:
            while waiting and stop.signal_number is None:
                over, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                watcher.advanced(counter.take())
                for future in over:
                    unit = waiting.pop(future)
                    if (outcome := future.result()) is not None:
                        write_runs(
                            path / unit.task.folder,
                            config,
                            outcome,
                            fingerprints[unit.task.folder],
                            environment,
                        )
                        watcher.unit_done(unit)
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)
            # Settings that the threads make for themselves also become the initial ones of later
            # threads.
            torch.set_num_threads(threads)
    if stop.signal_number is not None:
        left = sum(len(unit.nets) for unit in waiting.values())
        raise Interrupted(f"stopped with {left} trainings to go; {hint}", stop.signal_number)


class _Counter:
    """A counter of steps: threads add to it, one thread takes."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._steps = 0

    def add(self, steps: int) -> None:
        with self._lock:
            self._steps += steps

    def take(self) -> int:
        with self._lock:
            steps, self._steps = self._steps, 0
            return steps
