"""Fine-tune one arm and its baseline on one folder of pictures: a study."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from arelu_tl.data.folder import PictureFolder
from arelu_tl.errors import ConfigError, DataError, Interrupted, PeerError
from arelu_tl.experiment.devices import check_batches, device_of, own_slice, slow_mixed_precision
from arelu_tl.experiment.environment import rebuilt_kernels
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.pictures import describe_cache, scanned_pictures
from arelu_tl.experiment.rehearsal import agree, rehearse
from arelu_tl.experiment.run import finished_summary, train_run
from arelu_tl.models.run_pictures import require_pictures
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig, SweepConfig, dump_yaml
from arelu_tl.records.format import FORMAT, require_format
from arelu_tl.records.storage import (
    claim_folder,
    make_folder,
    read_json,
    write_bytes,
    write_json,
    write_text,
)
from arelu_tl.records.trained_on import TrainedOn
from arelu_tl.training.distributed import World, join_world

_Config = TypeVar("_Config", bound=FinetuneConfig)


def finetune(config: FinetuneConfig, *, observer: Observer | None = None) -> runs.StudyRecord:
    """Train ``config.arm`` and, with ``config.baseline``, the unmodified backbone in a new study.

    Under torchrun all processes train each run together. Rank 0 scans the pictures, writes the
    files and calls ``observer``; all return the same record.

    Raises:
        ConfigError, DataError, BackboneError, SurgeryError: before any training starts.
        Interrupted: after a signal, with the state saved; ``resume_study`` continues.
        NonFiniteError, StorageError: training failed, or a file could not be written.
        PeerError: another process that trains the same study has ended.
    """
    observer = observer or Observer()
    if config.data is None:
        raise ConfigError("no folder of pictures: arelu-tl finetune DATA")
    config = absolute(config)
    with join_world() as world, ExitStack() as scanned:
        shown = observer if world.leads else Observer()
        device = device_of(config, world)
        check_batches(config, world)
        folder = world.lead(lambda: scanned.enter_context(scanned_pictures(config, shown)))
        check_batches(config, world, len(folder.splits["train"]))
        if world.leads:
            make_folder(config.output)
        # Building the model before anything is written reports its errors early and leaves no
        # incomplete study. It also finds settings that fit the machine for all arms alike.
        share = world.local_size if device.type == "cpu" else 1
        ours = own_slice(config, world)
        tried = [
            rehearse(_with_arm(ours, arm), folder, device, share=share)
            for arm in _arms_to_rehearse(config, device)
        ]
        config = agree(
            config, [each for of_one in world.gather(tried) for each in of_one], shown.note
        )
        check_batches(config, world, len(folder.splits["train"]))
        if (slow := slow_mixed_precision(device, config)) is not None:
            shown.note(slow)
        study = world.lead(lambda: _begin(config, folder))
        return _train(study, config, folder, device, shown, world)


def _begin(config: FinetuneConfig, folder: PictureFolder) -> Path:
    study = claim_folder(config.output, config.name, "study")
    open_study(study, config, folder)
    return study


def absolute(config: _Config) -> _Config:
    """Return ``config`` with absolute paths.

    The study can then be resumed, and its settings reused, from any working folder.
    """
    places = {
        key: value.resolve()
        for key in ("data", "pretrained_path")
        if (value := getattr(config, key)) is not None
    }
    return config.model_copy(update=places)


def open_study(path: Path, config: FinetuneConfig, folder: PictureFolder) -> None:
    """Write a study's own files before its first run.

    The file that marks the folder as a study is written last.
    """
    write_json(path / runs.DATASET, {"format": FORMAT, **folder.to_json()})
    write_text(path / runs.SPLIT, folder.to_csv())
    _record_trained_on(path, folder)
    write_text(path / runs.STUDY_CONFIG, dump_yaml(config))


def check_pictures(path: Path, folder: PictureFolder) -> None:
    """Raise unless ``folder`` has the same pictures and split as the study at ``path``.

    Raises:
        DataError: the pictures or the split differ.
        ArtefactError: the study has another format.
    """
    record = read_json(path / runs.DATASET)
    require_format(record, path)
    ours, theirs = folder.fingerprint(), str(record["fingerprint"])
    if ours != theirs:
        raise DataError(
            f"{folder.root}: the pictures are not those that {path} was started on (fingerprint of "
            f"their paths, split and bytes: {ours[:12]} here, {theirs[:12]} then): name the folder "
            "that holds those, or begin a new study"
        )


def record_pictures(path: Path, before: Path | None, folder: PictureFolder) -> None:
    """Record in the study at ``path`` where its pictures are now.

    Studies of older versions lack the marks of their training pictures; these are added.

    Args:
        before: the folder that the study names.
    """
    if not (path / runs.TRAINED_ON).exists():
        _record_trained_on(path, folder)
    if folder.root != before:
        runs.record_place(path, folder.root)


def _record_trained_on(path: Path, folder: PictureFolder) -> None:
    write_bytes(
        path / runs.TRAINED_ON,
        TrainedOn.of(sample.digest for sample in folder.splits["train"]).content,
    )


def resume_study(
    path: Path, *, data: Path | None = None, observer: Observer | None = None
) -> runs.StudyRecord:
    """Resume an interrupted study under its own configuration; finished runs are kept as they are.

    Args:
        data: where the pictures are now, if they have moved; the study records the new place.

    Raises:
        DataError: there is no study at ``path``, or its pictures are gone or have changed.
        ArtefactError: its files are damaged.
    """
    observer = observer or Observer()
    if not runs.is_study(path) and runs.is_run(path):
        path = path.resolve().parent
    config = runs.study_config(path)
    if isinstance(config, SweepConfig):
        raise ConfigError(
            f"{path} is a sweep: go on with arelu-tl sweep --resume {shlex.quote(str(path))}"
        )
    before = config.data
    if data is not None:
        config = config.model_copy(update={"data": data.resolve()})
    require_pictures(path, config.data)
    with join_world() as world, ExitStack() as scanned:
        shown = observer if world.leads else Observer()
        device = device_of(config, world)
        folder = world.lead(lambda: scanned.enter_context(scanned_pictures(config, shown)))
        check_pictures(path, folder)
        if world.leads:
            record_pictures(path, before, folder)
        check_batches(config, world, len(folder.splits["train"]))
        return _train(path, config, folder, device, shown, world)


def _train(
    study: Path,
    config: FinetuneConfig,
    folder: PictureFolder,
    device: torch.device,
    observer: Observer,
    world: World,
) -> runs.StudyRecord:
    observer.study_started(study, folder, config.arms_to_train())
    for message in (describe_cache(config, folder), rebuilt_kernels()) if world.leads else ():
        if message:
            observer.note(message)
    program = (
        "arelu-tl"
        if world.size == 1
        else f"torchrun --nproc-per-node {world.local_size} -m arelu_tl"
    )
    hint = f"go on with: {program} finetune --resume {shlex.quote(str(study))}"
    for arm in config.arms_to_train():
        path = study / runs.run_name(arm, config.lr, config.seed)
        if world.lead(partial(finished_summary, path)) is not None:
            observer.note(f"{path.name} is finished already")
            continue
        try:
            train_run(path, _with_arm(config, arm), folder, device, observer, world=world)
        except PeerError as ended:
            raise PeerError(f"{ended}; {path.name} is kept as it was last saved; {hint}") from ended
        except Interrupted as stopped:
            raise Interrupted(f"{stopped}; {hint}", stopped.exit_code - 128) from None
        except KeyboardInterrupt:
            # A model was being loaded or calibrated: there is no state to save yet.
            raise Interrupted(
                f"stopped before {path.name} had begun; {hint}", signal.SIGINT
            ) from None
    return world.lead(lambda: runs.load_study(study))


def _arms_to_rehearse(config: FinetuneConfig, device: torch.device) -> Sequence[str]:
    """Return the arms to rehearse.

    If neither memory nor the compiler decides a setting, ``config.arm`` alone reveals every error.
    """
    decides = config.batch_size == "auto" or config.compile or device.type == "cuda"
    return config.arms_to_train() if decides else [config.arm]


def _with_arm(config: FinetuneConfig, arm: str) -> FinetuneConfig:
    return config.model_copy(update={"arm": arm, "controls": False})
