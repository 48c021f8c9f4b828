"""Train a grid of arms, learning rates and seeds on one folder of pictures; each cell is a run."""

from __future__ import annotations

import shlex
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import (
    AreluTlError,
    ConfigError,
    DataError,
    Interrupted,
    NonFiniteError,
    StorageError,
)
from arelu_tl.experiment.devices import slow_mixed_precision
from arelu_tl.experiment.environment import rebuilt_kernels
from arelu_tl.experiment.finetune import absolute, check_pictures, open_study, record_pictures
from arelu_tl.experiment.launch.cell import Cell, InProcess, Launcher, Outcome
from arelu_tl.experiment.launch.processes import Processes
from arelu_tl.experiment.launch.ray_tasks import RayTasks, ray_tasks, require_ray
from arelu_tl.experiment.launch.schedule import Schedule
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.pictures import describe_cache, scanned_pictures
from arelu_tl.experiment.rehearsal import Rehearsal, agree
from arelu_tl.models.run_pictures import require_pictures
from arelu_tl.records import runs
from arelu_tl.records.amounts import format_duration, parse_duration
from arelu_tl.records.config import (
    GRID_KEYS,
    PLACE_KEYS,
    WHERE_KEYS,
    SweepConfig,
    check_config,
    dump_yaml,
)
from arelu_tl.records.storage import (
    claim_folder,
    make_folder,
    storage_errors,
    write_json,
    write_text,
)
from arelu_tl.training.device import choose_device
from arelu_tl.training.distributed import is_one_of_many
from arelu_tl.training.interruption import StopRequest, catch_signals


def sweep(
    config: SweepConfig, *, retry_failed: bool = False, observer: Observer | None = None
) -> runs.StudyRecord:
    """Train every cell of the grid that is not trained yet, within the limits of ``config``.

    A sweep with the same name and settings is resumed; its grid may have grown, and it may be
    trained elsewhere. A cell that fails, or whose process dies, is recorded and the others
    continue. Several cells at once (``jobs``) are trained in processes that import the main module
    again: a script that calls this needs the usual ``if __name__ == "__main__"``.

    Args:
        retry_failed: train cells that failed before again: from their last checkpoint, or from the
            start if the training itself had failed.

    Returns:
        The study with all its runs. Failed runs have that status; runs that did not fit the time
        budget are missing.

    Raises:
        ConfigError, DataError, BackboneError, SurgeryError: before any training starts.
        Interrupted: after a signal, with the state saved; the same command continues.
        StorageError: a file could not be written, which would stop every further cell too; or
            another process trains one of the cells.
    """
    began = time.monotonic()
    observer = observer or Observer()
    if config.data is None:
        raise ConfigError("no folder of pictures: arelu-tl sweep DATA")
    if is_one_of_many():
        raise ConfigError(
            "a sweep starts its processes itself: run it without torchrun, with `jobs` to train "
            "several at once"
        )
    # The arms are recorded one by one, so that the grid can grow.
    named = {"arms": config.arms_to_train(), "controls": False}
    config = absolute(config).model_copy(update=named)
    if config.launcher == "ray":
        require_ray()
    else:
        choose_device(config.device)
    path = config.output / config.name if config.name is not None else None
    begun = path is not None and runs.is_study(path)
    if path is not None and begun:
        config = _grown(path, config)
    with scanned_pictures(config, observer) as folder:
        if path is not None and begun:
            check_pictures(path, folder)
            record_pictures(path, runs.study_config(path).data, folder)
        cells = plan_cells(path if begun else None, config, retry_failed=retry_failed)
        waiting = [cell for cell in cells if cell.waits]
        if begun and not waiting:
            observer.note("every cell of the grid is trained already")
        make_folder(config.output)
        with _launcher(config, folder, len(waiting), observer) as launcher:
            rehearsals = _rehearse(waiting, launcher)
            if not begun:
                config = agree(config, list(rehearsals.values()), observer.note)
                if (
                    config.launcher == "local"
                    and (slow := slow_mixed_precision(choose_device(config.device), config))
                    is not None
                ):
                    observer.note(slow)
                cells = plan_cells(None, config)
                waiting = cells
            seconds = {
                cell.name: _seconds(cell, rehearsals[cell.config.arm], folder) for cell in waiting
            }
            budget = parse_duration(config.time_budget) if config.time_budget is not None else None
            schedule = Schedule(cells, seconds, slots=launcher.slots, budget=budget)
            late = time.monotonic() - began
            if not schedule.fits(late):
                duration = format_duration(late + schedule.block_seconds(late))
                raise ConfigError(
                    f"`time_budget` {config.time_budget}: a run of every arm takes about "
                    f"{duration}: allow more"
                )
            if retry_failed:
                _forget_diverged(waiting)
            if path is None or not begun:
                path = claim_folder(config.output, config.name, "sweep")
                open_study(path, config, folder)
                schedule = Schedule(
                    plan_cells(path, config), seconds, slots=launcher.slots, budget=budget
                )
            else:
                write_text(path / runs.STUDY_CONFIG, dump_yaml(config))
            observer.study_started(path, folder, list(config.arms))
            for message in (describe_cache(config, folder), rebuilt_kernels()):
                if message:
                    observer.note(message)
            observer.sweep_planned(len(cells), len(waiting), schedule.to_go(late))
            _train(path, len(cells), schedule, launcher, observer, lambda: time.monotonic() - began)
    return runs.load_study(path)


def plan_cells(path: Path | None, config: SweepConfig, *, retry_failed: bool = False) -> list[Cell]:
    """Return every cell of the grid with its state in the study folder ``path``, None if new."""
    cells = []
    for number, cell in enumerate(config.cells(), start=1):
        name = runs.run_name(cell.arm, cell.lr, cell.seed)
        place = path / name if path is not None else Path(name)
        status, done = "missing", 0.0
        if path is not None and runs.is_run(place):
            record = runs.load_run(place)
            status = "missing" if record.status == "failed" and retry_failed else record.status
            done = min(1.0, record.rows[-1]["epoch"] / cell.epochs) if record.rows else 0.0
        cells.append(Cell(number, cell, place, status, done))
    return cells


def _forget_diverged(cells: Sequence[Cell]) -> None:
    """Remove the checkpoints of runs that became non-finite: from the last one they would again."""
    for cell in cells:
        if (
            runs.is_run(cell.path)
            and runs.load_run(cell.path).summary.get("exit_code") == NonFiniteError.exit_code
        ):
            with storage_errors(cell.path):
                shutil.rmtree(cell.path / runs.CHECKPOINTS, ignore_errors=True)


def _launcher(
    config: SweepConfig, folder: PictureFolder, waiting: int, observer: Observer
) -> AbstractContextManager[InProcess | Processes | RayTasks]:
    """Return the launcher; none that starts processes if there is nothing left to train."""
    if config.launcher == "ray" and waiting:
        return ray_tasks(folder, config.device, jobs=config.jobs, address=config.ray_address)
    jobs = min(config.jobs or 1, waiting)
    if config.launcher == "local" and jobs > 1:
        return Processes(folder, config.device, jobs)
    return nullcontext(
        InProcess(folder, choose_device(config.device if waiting else None), observer)
    )


def _rehearse(waiting: Sequence[Cell], launcher: Launcher) -> dict[str, Rehearsal]:
    """Rehearse one cell of each arm, to find errors before hours are spent on other arms."""
    first = {cell.config.arm: cell.config for cell in reversed(waiting)}
    return dict(zip(first, launcher.rehearse(list(first.values())), strict=True))


def _train(
    study: Path,
    cells: int,
    schedule: Schedule,
    launcher: Launcher,
    observer: Observer,
    clock: Callable[[], float],
) -> None:
    """Train cells until none is left, the time is used up or the sweep ends; record failures."""
    hint = f"the same command goes on, or: arelu-tl sweep --resume {shlex.quote(str(study))}"
    running: dict[str, Cell] = {}
    done, waiting = 0, schedule.waiting
    end: AreluTlError | None = None
    signals = catch_signals() if launcher.parallel else nullcontext(StopRequest())
    try:
        with signals as stop:
            while True:
                if end is None and stop.signal_number is not None:
                    end = Interrupted(
                        f"stopped with {launcher.running} runs under way; {hint}",
                        stop.signal_number,
                    )
                    launcher.stop(stop.signal_number)
                while (
                    end is None
                    and launcher.running < launcher.slots
                    and (cell := schedule.next(clock())) is not None
                ):
                    if not launcher.parallel:
                        observer.cell_started(cell.number, cells, cell.name)
                    running[cell.name] = cell
                    launcher.start(cell)
                if not running:
                    break
                for outcome in launcher.wait():
                    cell = running.pop(outcome.name)
                    done += 1
                    schedule.ended(
                        cell,
                        outcome.seconds
                        if outcome.status == "finished" and not cell.begun
                        else None,
                    )
                    if outcome.status == "failed":
                        _record_failure(cell, outcome)
                        observer.note(f"{cell.name} failed: {' '.join(outcome.error.split())}")
                    if launcher.parallel:
                        observer.cell_ended(
                            cell.name,
                            outcome.status,
                            outcome.summary,
                            done,
                            waiting,
                            schedule.to_go(clock()),
                        )
                    if end is None and outcome.status in ("interrupted", "storage"):
                        end = _ending(outcome, hint)
                        launcher.stop(signal.SIGTERM)
    except KeyboardInterrupt:  # between two cells of this process
        raise Interrupted(f"stopped between two runs; {hint}", signal.SIGINT) from None
    if end is not None:
        raise end
    if left := schedule.left():
        observer.note(
            f"the time budget has no room for {len(left)} more runs: the same command goes on with "
            f"{left[0].name}"
        )


def _ending(outcome: Outcome, hint: str) -> AreluTlError:
    """Return the error that ends the sweep after ``outcome``, which affects more than one cell."""
    if outcome.status == "storage":
        return StorageError(outcome.error)
    return Interrupted(f"{outcome.error}; {hint}", outcome.exit_code - 128)


def _record_failure(cell: Cell, outcome: Outcome) -> None:
    """Record why a run failed, even if it failed before it had a folder."""
    make_folder(cell.path)
    if not runs.is_run(cell.path):
        write_text(cell.path / runs.RUN_CONFIG, dump_yaml(cell.config))
    config = cell.config
    failure = {"arm": config.arm, "lr": config.lr, "seed": config.seed, "status": "failed"}
    failure |= {"error": outcome.error, "exit_code": outcome.exit_code}
    write_json(cell.path / runs.SUMMARY, {**runs.load_run(cell.path).summary, **failure})


def _grown(path: Path, config: SweepConfig) -> SweepConfig:
    """Return ``config`` with the grid of the study at ``path`` added to its own.

    Raises:
        ConfigError: the study is no sweep, or was begun with other settings, which are named.
    """
    before = runs.study_config(path)
    if not isinstance(before, SweepConfig):
        raise ConfigError(f"{path} is the study of a finetune, not a sweep: choose another `name`")
    # Settings that were chosen automatically when the study began stay fixed.
    found = {
        "batch_size": config.batch_size == "auto",
        "micro_batch": config.micro_batch is None,
        "compile": config.compile,
    }
    config = config.model_copy(
        update={key: getattr(before, key) for key, open_ in found.items() if open_}
    )
    ours, theirs = config.model_dump(mode="json"), before.model_dump(mode="json")
    free = {*GRID_KEYS, *WHERE_KEYS, *PLACE_KEYS, "arm", "lr", "seed", "baseline"} - {
        "pretrained_path"
    }  # whether the pictures are the same is checked by their fingerprint
    apart = [
        f"{key} {theirs[key]} there and {ours[key]} here"
        for key in ours
        if key not in free and ours[key] != theirs[key]
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


def _seconds(cell: Cell, rehearsal: Rehearsal, folder: PictureFolder) -> float:
    """Predict a cell's duration from a measured step; a validation pass takes a third of a step."""
    config = cell.config
    train, val = (len(folder.splits[split]) for split in ("train", "val"))
    evaluations = 1 + config.epochs * (
        1 + (train // config.pictures_in_a_batch // config.eval_every if config.eval_every else 0)
    )
    pictures = config.epochs * train + evaluations * val / 3
    return rehearsal.setup_seconds + rehearsal.seconds_per_picture * pictures * (1 - cell.done)


def resumed_config(path: Path, where: Mapping[str, Any]) -> SweepConfig:
    """Return the configuration of the sweep in ``path``, to resume it as it was or elsewhere.

    Args:
        where: changed settings among ``WHERE_KEYS``, and ``data`` if the pictures have moved.

    Raises:
        DataError: there is no sweep at ``path``, or its pictures are gone.
        ConfigError: ``where`` contradicts itself.
    """
    config = runs.study_config(path)
    if not isinstance(config, SweepConfig):
        raise DataError(
            f"{path} is no sweep: go on with arelu-tl finetune --resume {shlex.quote(str(path))}"
        )
    place = {"output": path.resolve().parent, "name": path.resolve().name}
    elsewhere = {"ray_address": None} if where.get("launcher") == "local" else {}
    resumed = check_config({**config.model_dump(), **place, **elsewhere, **where}, SweepConfig)
    require_pictures(path, resumed.data)
    return resumed
