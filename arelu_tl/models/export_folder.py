"""The safetensors folder (``config.json``, ``model.safetensors``), as timm and the Hub use it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from arelu_tl.errors import ArtefactError, StorageError
from arelu_tl.records.storage import (
    fsync_folder,
    make_folder,
    read_json,
    sha256_file,
    storage_errors,
    write_json,
)
from arelu_tl.records.trained_on import TRAINED_ON, TrainedOn
from arelu_tl.records.weights import load_weights, save_weights

CONFIG = "config.json"
MODEL = "model.safetensors"
# The entries of timm's ``pretrained_cfg`` that it needs to change a model's head, input channels or
# input size.
_FROM_TIMM = ("classifier", "first_conv", "pool_size", "fixed_input_size", "min_input_size")


def is_export(path: Path) -> bool:
    """Return whether ``path`` is an exported folder."""
    return (path / CONFIG).is_file() and (path / MODEL).is_file()


def require_free(path: Path) -> None:
    """Check that an export can be written to ``path``.

    Raises:
        StorageError: ``path`` exists and is not an empty folder, or it cannot be created.
    """
    with storage_errors(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StorageError(
                f"{path} exists{' and is not empty' if path.is_dir() else ''}: "
                "choose another `output`"
            )
        around = next(p for p in path.resolve().parents if p.exists())
    if not around.is_dir() or not os.access(around, os.W_OK):
        raise StorageError(
            f"{path}: {around} is {'read-only' if around.is_dir() else 'no folder'}: "
            "choose another `output`"
        )


def write_export(
    path: Path,
    weights: dict[str, Tensor],
    card: dict[str, Any],
    architecture: Mapping[str, Any],
    trained_on: TrainedOn | None,
    check: Callable[[Path], None],
) -> dict[str, int]:
    """Write a temporary folder beside ``path``, call ``check`` on it, and rename it to ``path``.

    Args:
        path: the folder to write.
        weights: the state dict.
        card: content of the model card. Unless its form is "timm", config.json names an
            architecture that timm does not know. Otherwise timm would build a model with ReLUs, and
            nobody would notice, because activations without weights do not show in a state dict.
        architecture: timm's description of it (``pretrained_cfg``).
        trained_on: its training pictures, where they are known.
        check: a callback that gets the temporary folder and raises if it is wrong.

    Returns:
        {name: size in bytes}.

    Raises:
        StorageError: see ``require_free``, or the disk refuses.
        Exception: any that ``check`` raises; nothing is left behind then.
    """
    require_free(path)
    path = path.resolve()
    made = [folder for folder in path.parents if not folder.exists()]
    make_folder(path.parent)
    with storage_errors(path):
        beside = path.parent / f".export-{secrets.token_hex(8)}"
        beside.mkdir()
        try:
            save_weights(beside / MODEL, weights)
            write_json(
                beside / CONFIG,
                _config(card, architecture, trained_on, sha256_file(beside / MODEL)),
            )
            check(beside)
            # An existing empty folder may be some shell's working directory, so it is filled, not
            # replaced. config.json comes last: it makes the folder complete.
            if path.exists():
                for name in (MODEL, CONFIG):
                    (beside / name).replace(path / name)
                beside.rmdir()
            else:
                beside.rename(path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):  # another export may have been written into it
                    folder.rmdir()
            raise
        fsync_folder(path.parent)
    return {name: (path / name).stat().st_size for name in (CONFIG, MODEL)}


def _config(
    card: dict[str, Any], architecture: Mapping[str, Any], trained_on: TrainedOn | None, sha256: str
) -> dict[str, Any]:
    known = {key: architecture[key] for key in _FROM_TIMM if architecture.get(key) is not None}
    fixed = (
        {"img_size": card["img_size"]} if card["img_size"] and known.get("fixed_input_size") else {}
    )
    named = card["architecture"] if card["form"] == "timm" else f"arelu_tl_{card['architecture']}"
    return {
        "architecture": named,
        "num_classes": len(card["classes"]),
        "label_names": card["classes"],
        "model_args": {**card["model_args"], **fixed},
        "pretrained_cfg": {
            **known,
            **card["data_config"],
            "num_classes": len(card["classes"]),
            "license": card["license"],
        },
        "arelu_tl": card,
        "sha256": {MODEL: sha256},
        **({TRAINED_ON: trained_on.to_text()} if trained_on is not None else {}),
    }


def read_trained_on(path: Path) -> TrainedOn | None:
    """Read what the model in an exported folder was trained on; None where it does not say.

    Raises:
        ArtefactError: the folder is damaged.
    """
    config = read_json(path / CONFIG)
    known = isinstance(config, dict) and TRAINED_ON in config
    return TrainedOn.from_text(config[TRAINED_ON], path / CONFIG) if known else None


def read_export(path: Path) -> tuple[dict[str, Tensor], object]:
    """Read (weights, card) of an exported folder.

    Raises:
        ArtefactError: it is damaged, has changed since the export, or was not written by arelu-tl.
    """
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or "arelu_tl" not in config:
        raise ArtefactError(f"{path / CONFIG}: was not written by arelu-tl")
    hashes = config.get("sha256")
    expected = hashes.get(MODEL) if isinstance(hashes, dict) else None
    if expected != sha256_file(path / MODEL):
        raise ArtefactError(
            f"{path / MODEL} has changed since it was exported (its SHA-256 is not {CONFIG}'s)"
        )
    return load_weights(path / MODEL)[0], config["arelu_tl"]
