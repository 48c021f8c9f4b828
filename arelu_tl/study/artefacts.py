"""A trained model as the content of a file or folder: frozen, folded, in fewer bits if asked, and proved at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from arelu_tl.backbone import build_architecture
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.errors import ArtefactError
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import FoldReport, fold
from arelu_tl.exporting.freeze import FrozenSite, freeze
from arelu_tl.exporting.onnx_file import answers, onnx_metadata, open_session, to_onnx, with_metadata
from arelu_tl.exporting.onnx_precision import quantize_dynamic, quantize_static, to_fp16
from arelu_tl.exporting.onnx_preprocessing import pixel_model, with_preprocessing
from arelu_tl.exporting.plain import TIMM_ACTIVATION, as_timm, fold_modules
from arelu_tl.exporting.proof import Proof, prove
from arelu_tl.exporting.pt2_file import pt2_answers, same_to_the_bit, to_pt2
from arelu_tl.records.trained_on import TrainedOn
from arelu_tl.study.card import ModelCard
from arelu_tl.study.export_pictures import ExportPictures

# Where Pillow filters columns first and the graph rows, photographs differ by 0.1 to 0.2 levels in the mean.
_PIXELS_APART = 0.5
Precision = Literal["float32", "fp16", "int8-dynamic", "int8-static"]


@dataclass(frozen=True)
class Artefact:
    """Attributes:
    content: of the file.
    proofs, fold: see ``ExportReport``.
    core: an ONNX file's part from preprocessed pictures to logits, {} of metadata; as ``content`` for a pt2 file.
    """

    content: bytes
    proofs: list[Proof]
    fold: FoldReport | None
    core: bytes


def make_graph(model: nn.Module, card: ModelCard, *, folding: bool) -> tuple[fx.GraphModule, list[FrozenSite], FoldReport | None]:
    """``model`` frozen and captured, its gains and normalisations folded unless they shall stay.

    Raises:
        ArtefactError: torch cannot capture it.
    """
    frozen, sites = freeze(model)
    module = capture(frozen, _example(card))
    return module, sites, fold(module, site_products(module, sites)) if folding else None


def make_onnx(
    model: nn.Module,
    card: ModelCard,
    batches: Sequence[Tensor],
    pictures: ExportPictures,
    *,
    folding: bool = True,
    precision: Precision = "float32",
    preprocessing: bool = False,
    trained_on: TrainedOn | None = None,
) -> Artefact:
    """One ONNX file.

    In float32 it is held to the trained model. In fewer bits the float32 file is, and what the fewer bits change is for the
    caller to measure. Preprocessing inside is held to Pillow's, and the whole to its parts.

    Raises:
        ArtefactError: it has no form in ONNX, or a proof fails.
        ConfigError: the preprocessing has no form in ONNX.
        DataError: there are no pictures to quantize by.
    """
    module, sites, folded = make_graph(model, card, folding=folding)
    core = to_onnx(module, _example(card))
    # What is proved then is what the fewer bits are made of.
    before = "" if precision == "float32" else "in float32, "
    proofs = [
        prove(f"{before}onnxruntime, optimisation {state}", model, answers(core, optimised=state == "on"), batches)
        for state in ("off", "on")
    ]
    if precision == "fp16":
        core = to_fp16(core)
    elif precision == "int8-dynamic":
        core = quantize_dynamic(core)
    elif precision == "int8-static":
        core = quantize_static(core, pictures.calibration())
    whole = core
    if preprocessing:
        whole = with_preprocessing(core, card.data_config)
        proofs.append(_prove_preprocessing(whole, core, card, pictures))
    told = {**card.to_json(), "form": "frozen", "frozen_sites": [asdict(site) for site in sites], "precision": precision}
    return Artefact(with_metadata(whole, onnx_metadata(told, trained_on)), proofs, folded, core)


def _prove_preprocessing(whole: bytes, core: bytes, card: ModelCard, pictures: ExportPictures) -> Proof:
    """Hold the pixels in the graph to Pillow's, and the whole file to what the core says of these very pixels."""
    pixels, reference = open_session(pixel_model(card.data_config)), answers(core)
    ours = Preprocessing(card.data_config)
    mean, std = (np.array(card.data_config[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))
    session = open_session(whole)
    inputs: list[Tensor] = []
    for picture in pictures.decoded():
        (made,) = pixels.run(None, {"pictures": np.asarray(picture)[None]})
        apart = np.abs(made[0].astype(int) - np.asarray(ours.resized(picture)).transpose(2, 0, 1)).mean()
        if apart > _PIXELS_APART:
            raise ArtefactError(
                f"the preprocessing in the graph does not give Pillow's pixels: {apart:.2f} levels of 256 apart in the mean, "
                f"allowed {_PIXELS_APART}; nothing was written"
            )
        inputs.append(torch.from_numpy(np.array(picture)[None]))

    def expected(batch: Tensor) -> Tensor:
        (made,) = pixels.run(None, {"pictures": batch.numpy()})
        prepared = (made.astype(np.float32) / np.float32(255) - mean) / std
        return reference(torch.from_numpy(prepared)).softmax(1)

    def given(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pictures": batch.numpy()})[0])

    pair = torch.cat([inputs[0], inputs[0].flip(2)])
    return prove(
        "onnxruntime, preprocessing inside", expected, given, [*inputs, pair], answers="probabilities", of="the file's without"
    )


def make_pt2(
    model: nn.Module,
    card: ModelCard,
    batches: Sequence[Tensor],
    *,
    folding: bool = True,
    trained_on: TrainedOn | None = None,
) -> Artefact:
    """One file of torch.export, held to the module it was made of to the bit, and to the trained model.

    Raises:
        ArtefactError: torch cannot export it, or a proof fails.
    """
    module, sites, folded = make_graph(model, card, folding=folding)
    told = {**card.to_json(), "form": "frozen", "frozen_sites": [asdict(site) for site in sites]}
    content = to_pt2(module, _example(card), onnx_metadata(told, trained_on))
    loaded = pt2_answers(content)
    same_to_the_bit(module, loaded, batches)
    return Artefact(content, [prove("torch.export", model, loaded, batches)], folded, content)


@dataclass(frozen=True)
class PlainModel:
    """Attributes:
    model: of plain layers.
    card: what tells how it is built.
    fold: what became of its gains; None where they stayed.
    unlike_timm: why timm alone cannot build it; None where it can.
    """

    model: nn.Module
    card: ModelCard
    fold: FoldReport | None
    unlike_timm: str | None


# Arms of plain ReLUs, which timm builds.
UNTOUCHED = ("relu", "recalibrated")


def make_plain(model: nn.Module, card: ModelCard, *, folding: bool, unlike_timm: str | None = None) -> PlainModel:
    """``model`` frozen, with its modules as they are; where possible as timm alone would build it.

    Args:
        unlike_timm: why it shall not be that, where it has turned out that timm does not build it.

    Raises:
        ArtefactError: torch cannot capture it.
    """
    frozen, sites = freeze(model)
    report = None
    if folding:
        frozen, sites, report = fold_modules(frozen, sites, _example(card))
    if card.arm in UNTOUCHED and unlike_timm is None:
        return PlainModel(frozen, replace(card, form="timm", sites=[]), report, None)
    if not sites:
        return PlainModel(frozen, card, report, unlike_timm or f"its activations are {card.arm}, put in by arelu-tl")
    arguments = {**card.model_args, "act_layer": TIMM_ACTIVATION}

    def build() -> nn.Module:
        return build_architecture(card.architecture, num_classes=len(card.classes), img_size=card.img_size, model_args=arguments)

    timm_model, problem = None, unlike_timm or "its gains are kept as products"
    if folding and unlike_timm is None:
        timm_model, problem = as_timm(frozen, sites, build)
    frozen_sites = [asdict(site) for site in sites]
    if timm_model is not None:
        return PlainModel(timm_model, replace(card, form="timm", model_args=arguments, frozen_sites=frozen_sites), report, None)
    return PlainModel(frozen, replace(card, form="frozen", frozen_sites=frozen_sites), report, problem)


def _example(card: ModelCard) -> Tensor:
    return torch.zeros(2, *card.data_config["input_size"])


def without_paths(card: ModelCard) -> ModelCard:
    """``card`` without the folder that a local backbone, or its weights, were read from."""

    def named(source: str) -> str:
        kind, colon, place = source.partition(":")
        return f"{kind}:{Path(place).name}" if colon and kind == "local-dir" else source

    return replace(card, backbone=named(card.backbone), weights=named(card.weights))


def training_summary(config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the card wants to know of the training.

    Args:
        config: of run.yaml.
        summary: of summary.json.
    """
    asked = ("lr", "seed", "epochs", "batch_size", "opt", "weight_decay", "init", "model_ema")
    reached = ("steps", "best_step", "best_top1", "final_top1", "aulc")
    return {key: config[key] for key in asked if key in config} | {k: summary[k] for k in reached if k in summary}
