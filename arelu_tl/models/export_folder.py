"""The safetensors folder: ``config.json`` and ``model.safetensors``, the layout that timm and the Hub use."""

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
from arelu_tl.records.storage import fsync_folder, make_folder, read_json, sha256_file, storage_errors, write_json
from arelu_tl.records.trained_on import TRAINED_ON, TrainedOn
from arelu_tl.records.weights import load_weights, save_weights

CONFIG = "config.json"
MODEL = "model.safetensors"
# What timm needs of its own description to give the net another head, other channels or other sizes.
_FROM_TIMM = ("classifier", "first_conv", "pool_size", "fixed_input_size", "min_input_size")


def is_export(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / MODEL).is_file()


def require_free(path: Path) -> None:
    """
    Raises:
        StorageError: something is at ``path``, other than an empty folder, or nothing can be made there.
    """
    with storage_errors(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StorageError(f"{path} exists{' and is not empty' if path.is_dir() else ''}: choose another --output")
        around = next(p for p in path.resolve().parents if p.exists())
    if not around.is_dir() or not os.access(around, os.W_OK):
        raise StorageError(f"{path}: {around} is {'read-only' if around.is_dir() else 'no folder'}: choose another --output")


def write_export(
    path: Path,
    weights: dict[str, Tensor],
    card: dict[str, Any],
    architecture: Mapping[str, Any],
    trained_on: TrainedOn | None,
    check: Callable[[Path], None],
) -> dict[str, int]:
    """Write the folder beside its place, and rename it in once ``check``, given that folder, has raised nothing.

    Args:
        card: content of the model card. Unless its form is "timm", the folder names an architecture that timm does not know:
            timm would build a ReLU net where there is none, and activations without weights leave nothing to notice it by.
        architecture: timm's description of it (``pretrained_cfg``).
        trained_on: its training pictures, where they are known.
        check: raises where the folder, as it will be, is not what it should be.

    Returns:
        sizes in bytes by name.

    Raises:
        StorageError: see ``require_free``, or the disk refuses.
        whatever ``check`` raises; nothing is left behind then.
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
            write_json(beside / CONFIG, _config(card, architecture, trained_on, sha256_file(beside / MODEL)))
            check(beside)
            if path.exists():  # somebody may stand in it: it is filled, the file that makes it complete last
                for name in (MODEL, CONFIG):
                    (beside / name).replace(path / name)
                beside.rmdir()
            else:
                beside.rename(path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):  # somebody else's export may have come into it
                    folder.rmdir()
            raise
        fsync_folder(path.parent)
    return {name: (path / name).stat().st_size for name in (CONFIG, MODEL)}


def _config(card: dict[str, Any], architecture: Mapping[str, Any], trained_on: TrainedOn | None, sha256: str) -> dict[str, Any]:
    known = {key: architecture[key] for key in _FROM_TIMM if architecture.get(key) is not None}
    fixed = {"img_size": card["img_size"]} if card["img_size"] and known.get("fixed_input_size") else {}
    named = card["architecture"] if card["form"] == "timm" else f"arelu_tl_{card['architecture']}"
    return {
        "architecture": named,
        "num_classes": len(card["classes"]),
        "label_names": card["classes"],
        "model_args": {**card["model_args"], **fixed},
        "pretrained_cfg": {**known, **card["data_config"], "num_classes": len(card["classes"]), "license": card["license"]},
        "arelu_tl": card,
        "sha256": {MODEL: sha256},
        **({TRAINED_ON: trained_on.to_text()} if trained_on is not None else {}),
    }


def read_trained_on(path: Path) -> TrainedOn | None:
    """What the model in such a folder was trained on; None where the folder does not tell.

    Raises:
        ArtefactError: damaged.
    """
    config = read_json(path / CONFIG)
    known = isinstance(config, dict) and TRAINED_ON in config
    return TrainedOn.from_text(config[TRAINED_ON], path / CONFIG) if known else None


def read_export(path: Path) -> tuple[dict[str, Tensor], object]:
    """(weights, card) of such a folder.

    Raises:
        ArtefactError: damaged, changed since it was written, or not ours.
    """
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or "arelu_tl" not in config:
        raise ArtefactError(f"{path / CONFIG}: was not written by arelu-tl")
    hashes = config.get("sha256")
    expected = hashes.get(MODEL) if isinstance(hashes, dict) else None
    if expected != sha256_file(path / MODEL):
        raise ArtefactError(f"{path / MODEL} has changed since it was exported (its SHA-256 is not {CONFIG}'s)")
    return load_weights(path / MODEL)[0], config["arelu_tl"]
