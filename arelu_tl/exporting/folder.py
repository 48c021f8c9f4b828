"""The safetensors folder: ``config.json`` and ``model.safetensors``, the layout that timm and the Hub use."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from arelu_tl.errors import ArtefactError, StorageError
from arelu_tl.exporting.fold import FoldReport
from arelu_tl.exporting.proof import Proof
from arelu_tl.records.storage import make_folder, read_json, sha256_file, write_json
from arelu_tl.records.weights import load_weights, save_weights

CONFIG = "config.json"
MODEL = "model.safetensors"


@dataclass(frozen=True)
class ExportReport:
    """Attributes:
    path: the folder or file written.
    files: sizes in bytes by name.
    sha256: of the weights, or of the file.
    run: the run that it was made of.
    proofs: how near its answers are to the trained model's; [] for a folder, which holds the trained model itself.
    fold: what became of the frozen activations' gains; None where nothing was folded.
    """

    path: Path
    files: dict[str, int]
    sha256: str
    run: Path | None = None
    proofs: list[Proof] = field(default_factory=list)
    fold: FoldReport | None = None

    def to_json(self) -> dict[str, Any]:
        told = asdict(self)
        return {**told, "path": str(self.path), "run": str(self.run) if self.run is not None else None}


def is_export(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / MODEL).is_file()


def write_export(path: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> ExportReport:
    """Write the folder: weights first, then the configuration that makes it complete.

    Raises:
        StorageError: ``path`` exists and is not empty, or the disk refuses.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StorageError(f"{path} exists and is not empty: choose another --output")
    make_folder(path)
    save_weights(path / MODEL, weights)
    sha256 = sha256_file(path / MODEL)
    data = card["data_config"]
    config = {
        "architecture": card["architecture"],
        "num_classes": len(card["classes"]),
        "label_names": card["classes"],
        "pretrained_cfg": {**data, "num_classes": len(card["classes"]), "license": card["license"]},
        "arelu_tl": card,
        "sha256": {MODEL: sha256},
    }
    write_json(path / CONFIG, config)
    return ExportReport(path, {name: (path / name).stat().st_size for name in (CONFIG, MODEL)}, sha256)


def read_export(path: Path) -> tuple[dict[str, Tensor], object]:
    """(weights, card) of such a folder.

    Raises:
        ArtefactError: damaged, changed since it was written, or not ours.
    """
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or "arelu_tl" not in config:
        raise ArtefactError(f"{path / CONFIG}: was not written by arelu-tl")
    expected = config.get("sha256", {}).get(MODEL)
    if expected != sha256_file(path / MODEL):
        raise ArtefactError(f"{path / MODEL} has changed since it was exported (its SHA-256 is not {CONFIG}'s)")
    return load_weights(path / MODEL)[0], config["arelu_tl"]
