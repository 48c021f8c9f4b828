"""The pictures that a run was trained and validated on, where they still are. Imports no torch."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from arelu_tl.data.gate import hash_pictures
from arelu_tl.errors import ArtefactError, DataError
from arelu_tl.records import runs
from arelu_tl.records.config import SweepConfig
from arelu_tl.records.csv_table import read_table
from arelu_tl.records.storage import leaves_folder
from arelu_tl.records.trained_on import TrainedOn


@dataclass(frozen=True)
class RunPictures:
    """Attributes:
    root: their folder.
    train, val: (path below root, class name) of each.
    """

    root: Path
    train: list[tuple[str, str]]
    val: list[tuple[str, str]]


def run_of(path: Path) -> Path:
    """The run folder that ``path``, a run folder or a checkpoint in one, belongs to; ``path`` itself where it is neither."""
    here = path.resolve()
    return here.parents[1] if here.parent.name == runs.CHECKPOINTS else here


def run_pictures(path: Path, data: Path | None = None) -> RunPictures | None:
    """What the study's split says; None where ``path`` is no run, or its pictures are not there.

    Args:
        path: a run folder, or a checkpoint in one.
        data: where the pictures are now, if not where they were.

    Raises:
        ArtefactError: the run's files are corrupt, or name a picture outside the folder of pictures.
    """
    run = run_of(path)
    split = run.parent / runs.SPLIT
    if not runs.is_run(run) or not split.is_file():
        return None
    root = data or runs.load_run(run).config.data
    if root is None or not root.is_dir():
        return None
    listed: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
    for row in read_table(split):
        if row.get("split") in listed:
            if leaves_folder(row["path"]):
                raise ArtefactError(f"{split}: {row['path']} is no path inside the folder of pictures")
            listed[row["split"]].append((row["path"], row["label"]))
    return RunPictures(root, listed["train"], listed["val"])


def trained_on(path: Path, data: Path | None = None) -> TrainedOn | None:
    """What a run was trained on, by content; None where nothing tells.

    The study has a record of it. One that was begun before there was such a record is known by the pictures themselves, as far
    as they are where its split says.

    Args:
        path, data: see ``run_pictures``.

    Raises:
        ArtefactError: the run's files are corrupt.
    """
    run = run_of(path)
    record = run.parent / runs.TRAINED_ON
    if runs.is_run(run) and record.is_file():
        try:
            return TrainedOn.read(record.read_bytes(), record)
        except OSError as error:
            raise ArtefactError(f"{record} cannot be read: {os.strerror(error.errno or 0)}") from None
    pictures = run_pictures(path, data)
    if pictures is None:
        return None
    digests = hash_pictures(pictures.root, [picture for picture, _ in pictures.train])
    return TrainedOn.of(digests.values(), len(pictures.train) - len(digests)) if digests else None


def require_pictures(study: Path, data: Path | None) -> None:
    """
    Raises:
        DataError: ``data``, where the pictures of the study or of a run in it are, is not there.
    """
    if data is not None and not data.exists():
        is_sweep = runs.is_study(study) and isinstance(runs.study_config(study), SweepConfig)
        command = "sweep" if is_sweep else "finetune"
        raise DataError(
            f"{data}: the pictures of {study} are not there any more: say where they are now with "
            f"arelu-tl {command} --resume {shlex.quote(str(study))} --data FOLDER"
        )


def spread(pictures: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """``count`` of the pictures, evenly spread over all of them in order of class and path."""
    ordered = sorted(pictures, key=lambda picture: (picture[1], picture[0]))
    count = min(count, len(ordered))
    return [ordered[i * len(ordered) // count] for i in range(count)]
