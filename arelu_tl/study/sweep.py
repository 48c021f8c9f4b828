"""A grid of arms, learning rates and seeds on one folder of pictures: every cell a run, trained once, whatever happens."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arelu_tl.data import PictureFolder
from arelu_tl.errors import AreluTlError, ConfigError, DataError, Interrupted, StorageError
from arelu_tl.records import runs
from arelu_tl.records.config import GRID_KEYS, PLACE_KEYS, FinetuneConfig, SweepConfig, dump_yaml
from arelu_tl.records.storage import claim_folder, make_folder, write_json, write_text
from arelu_tl.study.environment import choose_device
from arelu_tl.study.finetune import absolute, check_pictures, open_study, scan
from arelu_tl.study.observer import Observer
from arelu_tl.study.run import Rehearsal, rehearse, train_run


@dataclass(frozen=True)
class Cell:
    """One run of a sweep and how far it is: missing, interrupted, failed or finished."""

    config: FinetuneConfig
    path: Path
    status: str

    @property
    def waits(self) -> bool:
        """Whether there is something left to train."""
        return self.status in ("missing", "interrupted", "running")


def sweep(config: SweepConfig, *, retry_failed: bool = False, observer: Observer | None = None) -> runs.StudyRecord:
    """Train every cell of the grid that has not been trained yet.

    A sweep of the same name and settings is gone on with; its grid may have grown. A cell that fails is recorded and the
    rest goes on.

    Args:
        retry_failed: train the cells that failed before once more.

    Returns:
        The study with all its runs; those that failed say so in their status.

    Raises:
        ConfigError, DataError, BackboneError, SurgeryError: before any training starts.
        Interrupted: after a signal, with the state saved; the same command goes on.
        StorageError: the disk refused, which no further cell would survive.
    """
    observer = observer or Observer()
    if config.data is None:
        raise ConfigError("no folder of pictures: arelu-tl sweep DATA")
    config = absolute(config)
    device = choose_device(config.device)
    path = config.output / config.name if config.name is not None else None
    begun = path is not None and runs.is_study(path)
    if path is not None and begun:
        config = _grown(path, config)
    folder = scan(config, observer)
    if path is not None and begun:
        check_pictures(path, folder)
        write_text(path / runs.STUDY_CONFIG, dump_yaml(config))
    cells = plan_cells(path if begun else None, config, retry_failed=retry_failed)
    waiting = [cell.config for cell in cells if cell.waits]
    if begun and not waiting:
        observer.note("every cell of the grid is trained already")
    make_folder(config.output)
    # One of each arm, at the first rate: whatever is wrong with one is told before hours are spent on the others.
    first = {cell.arm: cell for cell in reversed(waiting)}
    rehearsals = {arm: rehearse(cell, folder, device, measure=True) for arm, cell in first.items()}
    if path is None or not begun:
        path = claim_folder(config.output, config.name, "sweep")
        open_study(path, config, folder)
        cells = plan_cells(path, config)
    observer.study_started(path, folder, list(config.arms))
    observer.sweep_planned(len(cells), len(waiting), sum(_seconds(c, rehearsals[c.arm], folder) for c in waiting))
    _train(path, cells, folder, observer)
    return runs.load_study(path)


def plan_cells(path: Path | None, config: SweepConfig, *, retry_failed: bool = False) -> list[Cell]:
    """Every cell of the grid with its state in the study folder ``path`` (None: there is none yet)."""
    cells = []
    for cell in config.cells():
        name = runs.run_name(cell.arm, cell.lr, cell.seed)
        place = path / name if path is not None else Path(name)
        status = runs.load_run(place).status if path is not None and runs.is_run(place) else "missing"
        cells.append(Cell(cell, place, "missing" if status == "failed" and retry_failed else status))
    return cells


def _train(study: Path, cells: Sequence[Cell], folder: PictureFolder, observer: Observer) -> None:
    hint = f"the same command goes on, or: arelu-tl sweep --resume {shlex.quote(str(study))}"
    for number, cell in enumerate(cells, start=1):
        if not cell.waits:
            continue
        observer.cell_started(number, len(cells), cell.path.name)
        try:
            train_run(cell.path, cell.config, folder, choose_device(cell.config.device), observer)
        except Interrupted as stopped:
            raise Interrupted(f"{stopped}; {hint}", stopped.exit_code - 128) from None
        except KeyboardInterrupt:  # while a model was loaded or calibrated, when there is no state yet to save
            raise Interrupted(f"stopped before {cell.path.name} had begun; {hint}", signal.SIGINT) from None
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001  one cell's failure, whatever it is, must not cost the others
            _record_failure(cell, error)
            observer.note(f"{cell.path.name} failed: {' '.join(str(error).split())}")


def _record_failure(cell: Cell, error: Exception) -> None:
    """Leave a run that says why it failed, also where it failed before it had a folder."""
    make_folder(cell.path)
    if not runs.is_run(cell.path):
        write_text(cell.path / runs.RUN_CONFIG, dump_yaml(cell.config))
    config = cell.config
    told = {"arm": config.arm, "lr": config.lr, "seed": config.seed, "status": "failed"}
    told |= {"error": f"{type(error).__name__}: {error}", "exit_code": error.exit_code if isinstance(error, AreluTlError) else 1}
    write_json(cell.path / runs.SUMMARY, {**runs.load_run(cell.path).summary, **told})


def _grown(path: Path, config: SweepConfig) -> SweepConfig:
    """``config`` with the grid of the study at ``path`` joined to its own.

    Raises:
        ConfigError: the study is no sweep, or was begun with other settings, which are named.
    """
    before = runs.load_study(path).config
    if not isinstance(before, SweepConfig):
        raise ConfigError(f"{path} is the study of a finetune, not a sweep: choose another --name")
    ours, theirs = config.model_dump(mode="json"), before.model_dump(mode="json")
    free = {*GRID_KEYS, *PLACE_KEYS, "arm", "lr", "seed", "baseline"} - {"data"}
    apart = [f"{key} {theirs[key]} there and {ours[key]} here" for key in ours if key not in free and ours[key] != theirs[key]]
    if apart:
        raise ConfigError(f"{path} was begun with other settings ({'; '.join(apart)}): choose another --name")
    joined = {key: list(dict.fromkeys([*getattr(before, key), *getattr(config, key)])) for key in GRID_KEYS}
    return config.model_copy(update=joined)


def _seconds(cell: FinetuneConfig, rehearsal: Rehearsal, folder: PictureFolder) -> float:
    """What a cell will take, from a measured step; validation is a forward pass, about a third of one."""
    train, val = (len(folder.splits[split]) for split in ("train", "val"))
    evaluations = 1 + cell.epochs * (1 + (train // cell.batch_size // cell.eval_every if cell.eval_every else 0))
    return rehearsal.setup_seconds + rehearsal.seconds_per_picture * (cell.epochs * train + evaluations * val / 3)


def resume_sweep(path: Path, *, retry_failed: bool = False, observer: Observer | None = None) -> runs.StudyRecord:
    """Go on with the sweep in ``path`` under its own configuration.

    Raises:
        DataError: there is no sweep at ``path``, or its pictures have changed.
    """
    config = runs.load_study(path).config
    if not isinstance(config, SweepConfig):
        raise DataError(f"{path} is no sweep: go on with arelu-tl finetune --resume {shlex.quote(str(path))}")
    place = {"output": path.resolve().parent, "name": path.resolve().name}
    return sweep(config.model_copy(update=place), retry_failed=retry_failed, observer=observer)
