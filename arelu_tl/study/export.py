"""A trained run as something that other people's software runs: frozen, folded, proved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from arelu_tl.data import eval_transform, open_picture
from arelu_tl.data.decode import UndecodableError
from arelu_tl.errors import ConfigError, DataError, StorageError
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import FoldReport, fold
from arelu_tl.exporting.folder import ExportReport, write_export
from arelu_tl.exporting.freeze import freeze
from arelu_tl.exporting.onnx_file import answers, onnx_metadata, require_onnx, to_onnx, write_onnx
from arelu_tl.exporting.proof import Proof, proof_batches, prove
from arelu_tl.records import runs
from arelu_tl.study.card import ModelCard
from arelu_tl.study.reload import load_model
from arelu_tl.study.use import held_out

FORMATS = ("safetensors", "onnx")
_PROOF_PICTURES = 10


def export(
    path: Path | str,
    format: str = "safetensors",  # noqa: A002
    output: Path | str | None = None,
    *,
    folding: bool = True,
    note: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export a run's best checkpoint.

    Args:
        path: a run folder, or a study, of which the run with the best validation accuracy is taken.
        format: "safetensors": a folder with config.json and model.safetensors, the trained model itself, for ``load_model``.
            "onnx": one file, its activations frozen, which answers as the trained model does or is not written.
        output: the folder or file to write; ``exports/RUN`` or ``exports/RUN.onnx`` in the study when None.
        folding: with "onnx", let the frozen activations' gains and the normalisations disappear into the weights around them.
        note: told what a user should know and need not act on.

    Raises:
        ConfigError: another format, or its packages are missing.
        DataError, ArtefactError: see ``load_model``; ArtefactError too where the proof fails.
        StorageError: the place is taken.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: only {', '.join(FORMATS)} so far")
    if format == "onnx":
        require_onnx()
    run = _best_of_study(Path(path), note or (lambda text: None))
    target = Path(output) if output is not None else _place(run, ".onnx" if format == "onnx" else "")
    if format == "onnx" and target.exists():
        raise StorageError(f"{target} exists: choose another --output")
    model, card = load_model(run)
    if format == "safetensors":
        return replace(write_export(target, model.state_dict(), _without_paths(card).to_json()), run=run)
    content, proofs, folded = _make_onnx(run, model, card, folding=folding, note=note or (lambda text: None))
    write_onnx(target, content)
    sha256 = hashlib.sha256(content).hexdigest()
    return ExportReport(target, {target.name: len(content)}, sha256, run=run, proofs=proofs, fold=folded)


def _place(run: Path, ending: str) -> Path:
    return run.resolve().parent / "exports" / f"{run.resolve().name}{ending}"


def _best_of_study(path: Path, note: Callable[[str], None]) -> Path:
    if runs.is_run(path) or not runs.is_study(path):
        return path
    trained = [run for run in runs.load_study(path).runs if run.status == "finished"]
    if not trained:
        raise DataError(f"{path}: no run of this study has finished")
    best = max(trained, key=lambda run: (run.summary["best_top1"], -run.summary["best_step"]))
    note(f"of {len(trained)} runs {best.path.name} is best: validation accuracy {best.summary['best_top1']:.4f}")
    return best.path


def _without_paths(card: ModelCard) -> ModelCard:
    """``card`` without the folder that a local backbone was read from."""
    kind, colon, place = card.backbone.partition(":")
    return replace(card, backbone=f"{kind}:{Path(place).name}") if colon and kind == "local-dir" else card


def _make_onnx(
    run: Path, model: nn.Module, card: ModelCard, *, folding: bool, note: Callable[[str], None]
) -> tuple[bytes, list[Proof], FoldReport | None]:
    frozen, sites = freeze(model)
    size = card.data_config["input_size"]
    module = capture(frozen, torch.zeros(2, *size))
    products, by_channel = site_products(module)
    folded = None
    if folding:
        folded = fold(module, products)
        folded.kept |= dict.fromkeys(by_channel, "its gain differs from channel to channel")
    told = _without_paths(card).to_json()
    told["frozen_sites"] = [{"name": s.name, "slopes": s.slopes, "gains": s.gains, "cap": s.cap} for s in sites]
    content = to_onnx(module, torch.zeros(2, *size), onnx_metadata(told))
    pictures = _pictures(run, card)
    if pictures is None:
        note("the validation pictures are gone: proved on random input alone")
    batches = proof_batches(size, pictures)
    with torch.inference_mode():
        proofs = [
            prove(f"onnxruntime, optimisation {state}", model, answers(content, optimised=state == "on"), batches)
            for state in ("off", "on")
        ]
    return content, proofs, folded


def _pictures(run: Path, card: ModelCard) -> Tensor | None:
    """A few validation pictures (N, C, H, W), spread over the classes; None where they are not there any more."""
    if not runs.is_run(run):
        return None
    root = runs.load_run(run).config.data
    paths = sorted(held_out(run, root) or ()) if root is not None else []
    chosen = paths[:: max(1, len(paths) // _PROOF_PICTURES)][:_PROOF_PICTURES]
    transform = eval_transform(card.data_config)
    try:
        return torch.stack([transform(open_picture(root / path)) for path in chosen]) if root is not None and chosen else None
    except (OSError, UndecodableError):
        return None
