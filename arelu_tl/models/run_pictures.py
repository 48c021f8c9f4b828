"""The training and validation pictures of a run, where they still exist. Imports no torch."""

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
    """The pictures of a run.

    Attributes:
        root: their folder.
        train, val: (path below root, class name) of each picture.
    """

    root: Path
    train: list[tuple[str, str]]
    val: list[tuple[str, str]]


def run_of(path: Path) -> Path:
    """Return the run folder of a run folder or checkpoint ``path``; for others ``path`` itself."""
    here = path.resolve()
    return here.parents[1] if here.parent.name == runs.CHECKPOINTS else here


def run_pictures(path: Path, data: Path | None = None) -> RunPictures | None:
    """Read the study's split; None where ``path`` is not a run, or the folder of pictures is gone.

    Args:
        path: a run folder, or a checkpoint in one.
        data: the folder of pictures, if it has moved.

    Raises:
        ArtefactError: the run's files are corrupt, or name a picture outside the folder of
            pictures.
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
                raise ArtefactError(
                    f"{split}: {row['path']} is no path inside the folder of pictures"
                )
            listed[row["split"]].append((row["path"], row["label"]))
    return RunPictures(root, listed["train"], listed["val"])


def trained_on(path: Path, data: Path | None = None) -> TrainedOn | None:
    """Read the digests of the pictures that a run was trained on; None where they are unknown.

    The study has a record of them. Studies from before this record existed have none: there the
    pictures themselves are hashed, if they are still where the split says.

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
            raise ArtefactError(
                f"{record} cannot be read: {os.strerror(error.errno or 0)}"
            ) from None
    pictures = run_pictures(path, data)
    if pictures is None:
        return None
    digests = hash_pictures(pictures.root, [picture for picture, _ in pictures.train])
    return TrainedOn.of(digests.values(), len(pictures.train) - len(digests)) if digests else None


def require_pictures(study: Path, data: Path | None) -> None:
    """Check that ``data``, if given, exists; it is the folder of the study's pictures.

    Raises:
        DataError: it does not.
    """
    if data is not None and not data.exists():
        is_sweep = runs.is_study(study) and isinstance(runs.study_config(study), SweepConfig)
        command = "sweep" if is_sweep else "finetune"
        raise DataError(
            f"{data}: the pictures of {study} are not there any more: say where they are now with "
            f"arelu-tl {command} --resume {shlex.quote(str(study))} --data FOLDER"
        )


def spread(pictures: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Choose ``count`` of the pictures, evenly spread in the order of class and path."""
    ordered = sorted(pictures, key=lambda picture: (picture[1], picture[0]))
    count = min(count, len(ordered))
    return [ordered[i * len(ordered) // count] for i in range(count)]
