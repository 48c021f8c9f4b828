"""A trained model as the content of a file or folder: frozen, folded, in fewer bits if asked, and proved at every step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from arelu_tl.backbone.loading import build_architecture
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.errors import ArtefactError
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import FoldReport, fold
from arelu_tl.exporting.onnx_file import (
    answers,
    metadata_of,
    onnx_metadata,
    open_session,
    read_metadata,
    require_slopes,
    to_onnx,
    with_metadata,
)
from arelu_tl.exporting.onnx_precision import quantize_dynamic, quantize_static, to_fp16
from arelu_tl.exporting.onnx_preprocessing import showing_input, with_preprocessing
from arelu_tl.exporting.pictures import ExportPictures
from arelu_tl.exporting.plain import TIMM_ACTIVATION, as_timm, fold_modules
from arelu_tl.exporting.proof import FLOOR, Proof, Yardstick, hold, in_float64, prove
from arelu_tl.exporting.pt2_file import read_pt2, to_pt2
from arelu_tl.models.freeze import FrozenSite, freeze
from arelu_tl.models.onnx_session import INPUT
from arelu_tl.records.card import ModelCard
from arelu_tl.records.trained_on import TrainedOn

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
    yardstick: Yardstick,
    pictures: ExportPictures,
    *,
    folding: bool = True,
    precision: Precision = "float32",
    preprocessing: bool = False,
    trained_on: TrainedOn | None = None,
) -> Artefact:
    """One ONNX file.

    In float32 it is held to the trained model, as ``yardstick`` tells it. In fewer bits the float32 file is, and what the fewer
    bits change is for the caller to measure. Preprocessing inside is held to Pillow's, and the whole to its parts.

    Raises:
        ArtefactError: it has no form in ONNX, or a proof fails.
        ConfigError: the preprocessing has no form in ONNX.
        DataError: there are no pictures to quantize by.
    """
    module, sites, folded = make_graph(model, card, folding=folding)
    core = to_onnx(module, _example(card))
    require_slopes(core, module)
    # What is proved then is what the fewer bits are made of.
    before = "" if precision == "float32" else "in float32, "
    proofs = [prove(f"{before}the graph in torch", yardstick, module)]
    proofs += [
        prove(f"{before}onnxruntime, optimisation {state}", yardstick, answers(core, optimised=state == "on"))
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
        proofs.append(_prove_preprocessing(whole, core, model, card, pictures))
    told = {**card.to_json(), "form": "frozen", "frozen_sites": [asdict(site) for site in sites], "precision": precision}
    content = with_metadata(whole, onnx_metadata(told, trained_on))
    require_described("the ONNX file", metadata_of(content), card)
    return Artefact(content, proofs, folded, core)


def _prove_preprocessing(whole: bytes, core: bytes, model: nn.Module, card: ModelCard, pictures: ExportPictures) -> Proof:
    """Hold what the file makes of pictures to Pillow's, and what it answers to what the core says of just that.

    An answer may differ from the core's by what the core's, in however many bits, differs from the trained model's, and by
    ``FLOOR`` in any case.
    """
    reference, exact, ours = answers(core), in_float64(model), Preprocessing(card.data_config)
    inside, session = open_session(showing_input(whole)), open_session(whole)
    levels = 255 * np.array(card.data_config["std"], np.float64).reshape(3, 1, 1)
    shown = []
    for picture in pictures.decoded():
        shown.append(np.array(picture)[None])
        (prepared,) = inside.run(None, {INPUT: shown[-1]})
        apart = np.abs((prepared[0] - ours(picture)) * levels).mean()
        # Written so that NaN is not let through.
        if not apart <= _PIXELS_APART:
            raise ArtefactError(
                f"the preprocessing in the graph does not give Pillow's pixels: {apart:.2f} levels of 256 apart in the mean, "
                f"allowed {_PIXELS_APART}; nothing was written"
            )
    difference = share = own = 0.0
    runtime = "onnxruntime, preprocessing inside"
    for batch in (*shown, np.concatenate([shown[0], shown[0][:, :, ::-1]])):
        prepared, told = (torch.from_numpy(each.run(None, {INPUT: batch})[0]) for each in (inside, session))
        expected = reference(prepared).double().softmax(1)
        cost = float((expected - exact(prepared).softmax(1)).abs().max())
        allowed = max(cost, FLOOR)
        error = hold(runtime, told, expected, allowed, answers="probabilities")
        difference, share, own = max(difference, error), max(share, error / allowed), max(own, cost)
    return Proof(runtime, len(shown) + 2, difference, share, own, answers="probabilities", of="the file's without")


def require_described(what: str, told: Mapping[str, Any], card: ModelCard) -> None:
    """Hold what an artefact says of itself, read back from it, to the trained model's card.

    Args:
        told: "classes" and "preprocessing".

    Raises:
        ArtefactError: it says something else.
    """
    for key, given in (("classes", card.classes), ("preprocessing", card.data_config)):
        if json.dumps(told[key], sort_keys=True) != json.dumps(given, sort_keys=True):
            raise ArtefactError(f"{what} does not hold the {key} of the trained model; nothing was written")


def make_pt2(
    model: nn.Module,
    card: ModelCard,
    yardstick: Yardstick,
    *,
    folding: bool = True,
    trained_on: TrainedOn | None = None,
) -> Artefact:
    """One file of torch.export, held to the trained model, as ``yardstick`` tells it.

    Raises:
        ArtefactError: torch cannot export it, or a proof fails.
    """
    module, sites, folded = make_graph(model, card, folding=folding)
    told = {**card.to_json(), "form": "frozen", "frozen_sites": [asdict(site) for site in sites]}
    content = to_pt2(module, _example(card), described := onnx_metadata(told, trained_on))
    loaded, texts = read_pt2(content, described)
    require_described("the pt2 file", read_metadata(texts), card)
    return Artefact(content, [prove("torch.export", yardstick, loaded)], folded, content)


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
