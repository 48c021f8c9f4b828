"""Atomic checkpoints: written to a temporary folder, hashed, then renamed.

The newest checkpoint whose hashes match is loaded.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from arelu_tl.errors import ArtefactError
from arelu_tl.records.format import FORMAT, require_format
from arelu_tl.records.storage import (
    fsync_folder,
    make_folder,
    read_json,
    replaced_file,
    sha256_file,
    storage_errors,
    write_json,
)
from arelu_tl.records.weights import load_weights, save_weights

MODEL = "model.safetensors"
STATE = "state.pt"
MANIFEST = "manifest.json"
_KEEP = 2


def save_checkpoint(
    folder: Path, step: int, model: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Write ``folder/step-N`` and remove all but the newest two.

    Args:
        folder: the run's checkpoints folder.
        step: number of completed optimiser steps.
        model: the model's state dict.
        state: everything else: tensors, numbers, strings and containers of them, which
            ``weights_only`` loading accepts.

    Raises:
        StorageError: a file cannot be written; earlier checkpoints are intact.
    """
    make_folder(folder)
    target = folder / f"step-{step}"
    beside = folder / f"step-{step}.tmp"
    with storage_errors(target):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        save_weights(beside / MODEL, model)
        with replaced_file(beside / STATE) as file:
            write_state(file, state)
        hashes = {name: sha256_file(beside / name) for name in (MODEL, STATE)}
        write_json(beside / MANIFEST, {"format": FORMAT, "step": step, "sha256": hashes})
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        fsync_folder(folder)
        listed = list_checkpoints(folder)
        # Newer checkpoints than this one were damaged and skipped; the run has diverged from them.
        stale = [path for number, path in listed if number > step]
        kept = [path for number, path in listed if number <= step]
        for old in stale + kept[:-_KEEP]:
            shutil.rmtree(old)
    return target


def write_state(file: IO[bytes], state: dict[str, Any]) -> None:
    """Write ``state`` to ``file`` with ``torch.save``, tensor by tensor and without copying them.

    Raises:
        OSError: writing to ``file`` fails.
    """
    sink = _Sink(file)
    torch.save(state, sink)  # type: ignore[arg-type]
    if sink.error is not None:
        raise sink.error


class _Sink:
    """Keeps a file's OSError: torch.save turns it into a RuntimeError that hides a full disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing: the caller that opened the file flushes it."""


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of every checkpoint, oldest first."""
    found = []
    for path in folder.glob("step-*") if folder.is_dir() else []:
        digits = path.name.removeprefix("step-")
        if digits.isdecimal() and path.is_dir():
            found.append((int(digits), path))
    return sorted(found)


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """Find the newest checkpoint whose hashes match.

    Returns:
        (its path or None, the paths of newer checkpoints, which are damaged).

    Raises:
        ArtefactError: one of them has another format.
    """
    damaged: list[Path] = []
    for _, path in reversed(list_checkpoints(folder)):
        if _intact(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def _intact(path: Path) -> bool:
    """Return whether the hashes match, and the manifest's step matches the folder's name.

    The step is compared because no hash covers the manifest itself.

    Raises:
        ArtefactError: the manifest names another format.
    """
    try:
        manifest = read_json(path / MANIFEST)
    except ArtefactError:
        return False
    if isinstance(manifest, dict):
        require_format(manifest, path)
    try:
        hashes, step = manifest["sha256"], manifest["step"]
        return path.resolve().name == f"step-{step:d}" and all(
            sha256_file(path / name) == hashes[name] for name in (MODEL, STATE)
        )
    except (OSError, LookupError, TypeError, ValueError):
        return False


def is_checkpoint(path: Path) -> bool:
    """Return whether ``path`` is a checkpoint folder, damaged or not."""
    return (path / MANIFEST).is_file() and (path / STATE).is_file()


def load_checkpoint_model(path: Path) -> tuple[dict[str, Tensor], int]:
    """Load (model state dict on the CPU, completed steps) from a checkpoint folder.

    Raises:
        ArtefactError: it is damaged, or has another format.
    """
    _require_intact(path)
    return load_weights(path / MODEL)[0], int(path.resolve().name.removeprefix("step-"))


def _require_intact(path: Path) -> None:
    if not _intact(path):
        raise ArtefactError(
            f"{path}: checkpoint is damaged (its files are not those that {MANIFEST} tells of)"
        )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load (model state dict, state) from a checkpoint folder, on the CPU.

    Raises:
        ArtefactError: it is damaged, has another format, or contains objects other than data.
    """
    _require_intact(path)
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch's reader raises errors of any class
        message = " ".join(str(error).split()) or type(error).__name__
        raise ArtefactError(
            f"{path / STATE}: not a state that can be loaded safely: {message}"
        ) from None
    if not isinstance(state, dict):
        raise ArtefactError(
            f"{path / STATE}: holds a {type(state).__name__}, not a training's state"
        )
    return load_weights(path / MODEL)[0], state
