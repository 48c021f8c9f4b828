"""Checkpoints that are whole or absent: written beside, hashed, renamed in; the newest whose hashes match is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from arelu_tl.errors import ArtefactError
from arelu_tl.records.format import FORMAT, require_format
from arelu_tl.records.storage import fsync_folder, make_folder, read_json, replaced_file, sha256_file, storage_errors, write_json
from arelu_tl.records.weights import load_weights, save_weights

MODEL = "model.safetensors"
STATE = "state.pt"
MANIFEST = "manifest.json"
_KEEP = 2


def save_checkpoint(folder: Path, step: int, model: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write ``folder/step-N`` and remove all but the newest two.

    Args:
        folder: the run's checkpoints folder.
        step: optimiser steps done.
        model: the model's state dict.
        state: everything else; tensors, numbers, strings and containers of them, as ``weights_only`` loading takes.

    Raises:
        StorageError: the disk refuses; earlier checkpoints are intact.
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
        # Newer ones than this were damaged and passed over; the run has taken another way since.
        stale = [path for number, path in listed if number > step]
        kept = [path for number, path in listed if number <= step]
        for old in stale + kept[:-_KEEP]:
            shutil.rmtree(old)
    return target


def write_state(file: IO[bytes], state: dict[str, Any]) -> None:
    """``torch.save`` into ``file``, tensor by tensor and without a copy of them.

    Raises:
        OSError: what writing to ``file`` raises.
    """
    sink = _Sink(file)
    torch.save(state, sink)  # type: ignore[arg-type]
    if sink.error is not None:
        raise sink.error


class _Sink:
    """Keeps what goes wrong with a file: torch.save makes of a full disk a RuntimeError that does not say so."""

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
        """Left to who opened the file."""


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint, oldest first."""
    found = []
    for path in folder.glob("step-*") if folder.is_dir() else []:
        digits = path.name.removeprefix("step-")
        if digits.isdecimal() and path.is_dir():
            found.append((int(digits), path))
    return sorted(found)


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint whose hashes match (None if there is none), and the damaged ones that were newer.

    Raises:
        ArtefactError: one of them is of another format.
    """
    damaged: list[Path] = []
    for _, path in reversed(list_checkpoints(folder)):
        if _intact(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def _intact(path: Path) -> bool:
    """Whether the hashes match, and the step is the one that the folder is named after: the manifest itself has no hash.

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
    return (path / MANIFEST).is_file() and (path / STATE).is_file()


def load_checkpoint_model(path: Path) -> tuple[dict[str, Tensor], int]:
    """(model state dict on the CPU, steps done) of a checkpoint folder.

    Raises:
        ArtefactError: it is damaged, or of another format.
    """
    _require_intact(path)
    return load_weights(path / MODEL)[0], int(path.resolve().name.removeprefix("step-"))


def _require_intact(path: Path) -> None:
    if not _intact(path):
        raise ArtefactError(f"{path}: checkpoint is damaged (its files are not those that {MANIFEST} tells of)")


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(model state dict, state) of a checkpoint folder, on the CPU.

    Raises:
        ArtefactError: it is damaged, of another format, or holds more than data.
    """
    _require_intact(path)
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  of a file that is none torch's reader raises whatever it stumbles over
        told = " ".join(str(error).split()) or type(error).__name__
        raise ArtefactError(f"{path / STATE}: not a state that can be loaded safely: {told}") from None
    if not isinstance(state, dict):
        raise ArtefactError(f"{path / STATE}: holds a {type(state).__name__}, not a training's state")
    return load_weights(path / MODEL)[0], state
