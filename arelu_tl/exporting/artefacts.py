"""Build the content of an exported file or folder from a trained model.

The model is frozen and folded, and on request stored in fewer bits. Every step is proved.
"""

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

# Pillow may filter columns first, the graph filters rows first: photographs then differ by
# 0.1 to 0.2 levels in the mean.
_PIXELS_APART = 0.5
Precision = Literal["float32", "fp16", "int8-dynamic", "int8-static"]


@dataclass(frozen=True)
class Artefact:
    """The content of one exported file, and how it was proved.

    Attributes:
        content: of the file.
        proofs, fold: see ``ExportReport``.
        core: for ONNX, the part from preprocessed pictures to logits, without metadata; for pt2,
            the same as ``content``.
    """

    content: bytes
    proofs: list[Proof]
    fold: FoldReport | None
    core: bytes


def make_graph(
    model: nn.Module, card: ModelCard, *, folding: bool
) -> tuple[fx.GraphModule, list[FrozenSite], FoldReport | None]:
    """Freeze and capture ``model``; with ``folding``, fold its gains and normalisations.

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
    """Make the content of one ONNX file.

    A float32 file is compared with the trained model, by ``yardstick``. For fewer bits, this
    comparison is made on the float32 file, and the caller measures what the fewer bits change.
    Preprocessing in the file is compared with Pillow's, and the whole file with its parts.

    Raises:
        ArtefactError: the model has no form in ONNX, or a proof fails.
        ConfigError: the preprocessing has no form in ONNX.
        DataError: there are no pictures to calibrate the quantization.
    """
    module, sites, folded = make_graph(model, card, folding=folding)
    core = to_onnx(module, _example(card))
    require_slopes(core, module)
    # For fewer bits, the proof covers the float32 graph that they are made from.
    before = "" if precision == "float32" else "in float32, "
    proofs = [prove(f"{before}the graph in torch", yardstick, module)]
    proofs += [
        prove(
            f"{before}onnxruntime, optimisation {state}",
            yardstick,
            answers(core, optimised=state == "on"),
        )
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
    description = {
        **card.to_json(),
        "form": "frozen",
        "frozen_sites": [asdict(site) for site in sites],
        "precision": precision,
    }
    content = with_metadata(whole, onnx_metadata(description, trained_on))
    require_described("the ONNX file", metadata_of(content), card)
    return Artefact(content, proofs, folded, core)


def _prove_preprocessing(
    whole: bytes, core: bytes, model: nn.Module, card: ModelCard, pictures: ExportPictures
) -> Proof:
    """Compare the file's preprocessing with Pillow's, and its answers with those of the core.

    Both answers are computed from the same preprocessed pictures. They may differ by as much as
    the core, in its precision, differs from the trained model, and always by ``FLOOR``.
    """
    reference, exact, ours = answers(core), in_float64(model), Preprocessing(card.data_config)
    inside, session = open_session(showing_input(whole)), open_session(whole)
    levels = 255 * np.array(card.data_config["std"], np.float64).reshape(3, 1, 1)
    shown = []
    for picture in pictures.decoded():
        shown.append(np.array(picture)[None])
        (prepared,) = inside.run(None, {INPUT: shown[-1]})
        apart = np.abs((prepared[0] - ours(picture)) * levels).mean()
        # `not <=` rather than `>`, so that NaN fails too.
        if not apart <= _PIXELS_APART:
            raise ArtefactError(
                f"the preprocessing in the graph does not give Pillow's pixels: {apart:.2f} levels "
                f"of 256 apart in the mean, allowed {_PIXELS_APART}; nothing was written"
            )
    difference = share = own = 0.0
    runtime = "onnxruntime, preprocessing inside"
    for batch in (*shown, np.concatenate([shown[0], shown[0][:, :, ::-1]])):
        prepared, answer = (
            torch.from_numpy(each.run(None, {INPUT: batch})[0]) for each in (inside, session)
        )
        expected = reference(prepared).double().softmax(1)
        cost = float((expected - exact(prepared).softmax(1)).abs().max())
        allowed = max(cost, FLOOR)
        error = hold(runtime, answer, expected, allowed, answers="probabilities")
        difference, share, own = max(difference, error), max(share, error / allowed), max(own, cost)
    return Proof(
        runtime,
        len(shown) + 2,
        difference,
        share,
        own,
        answers="probabilities",
        of="the file's without",
    )


def require_described(what: str, found: Mapping[str, Any], card: ModelCard) -> None:
    """Require that an artefact's metadata, read back from it, equal the trained model's card.

    Args:
        what: the artefact, for the message.
        found: "classes" and "preprocessing", as read back.
        card: of the trained model.

    Raises:
        ArtefactError: they differ.
    """
    for key, given in (("classes", card.classes), ("preprocessing", card.data_config)):
        if json.dumps(found[key], sort_keys=True) != json.dumps(given, sort_keys=True):
            raise ArtefactError(
                f"{what} does not hold the {key} of the trained model; nothing was written"
            )


def make_pt2(
    model: nn.Module,
    card: ModelCard,
    yardstick: Yardstick,
    *,
    folding: bool = True,
    trained_on: TrainedOn | None = None,
) -> Artefact:
    """Make the content of one torch.export file, and compare it with the model by ``yardstick``.

    Raises:
        ArtefactError: torch cannot export it, or a proof fails.
    """
    module, sites, folded = make_graph(model, card, folding=folding)
    description = {
        **card.to_json(),
        "form": "frozen",
        "frozen_sites": [asdict(site) for site in sites],
    }
    content = to_pt2(module, _example(card), described := onnx_metadata(description, trained_on))
    loaded, texts = read_pt2(content, described)
    require_described("the pt2 file", read_metadata(texts), card)
    return Artefact(content, [prove("torch.export", yardstick, loaded)], folded, content)


@dataclass(frozen=True)
class PlainModel:
    """A model made of modules, to be written as a safetensors folder.

    Attributes:
        model: of plain layers.
        card: describes how to build it.
        fold: which gains were folded; None where folding was not asked for.
        unlike_timm: why timm alone cannot build it; None where it can.
    """

    model: nn.Module
    card: ModelCard
    fold: FoldReport | None
    unlike_timm: str | None


# Arms with plain ReLUs, which timm can build.
UNTOUCHED = ("relu", "recalibrated")


def make_plain(
    model: nn.Module, card: ModelCard, *, folding: bool, unlike_timm: str | None = None
) -> PlainModel:
    """Freeze ``model`` and keep its modules; where possible, make it as timm alone would build it.

    Args:
        model: the trained model.
        card: its card.
        folding: whether to fold the sites' gains.
        unlike_timm: why timm cannot build it, where that has already turned out; timm's form is
            then not tried.

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
        return PlainModel(
            frozen,
            card,
            report,
            unlike_timm or f"its activations are {card.arm}, put in by arelu-tl",
        )
    arguments = {**card.model_args, "act_layer": TIMM_ACTIVATION}

    def build() -> nn.Module:
        return build_architecture(
            card.architecture,
            num_classes=len(card.classes),
            img_size=card.img_size,
            model_args=arguments,
        )

    timm_model, problem = None, unlike_timm or "its gains are kept as products"
    if folding and unlike_timm is None:
        timm_model, problem = as_timm(frozen, sites, build)
    frozen_sites = [asdict(site) for site in sites]
    if timm_model is not None:
        return PlainModel(
            timm_model,
            replace(card, form="timm", model_args=arguments, frozen_sites=frozen_sites),
            report,
            None,
        )
    return PlainModel(
        frozen, replace(card, form="frozen", frozen_sites=frozen_sites), report, problem
    )


def _example(card: ModelCard) -> Tensor:
    return torch.zeros(2, *card.data_config["input_size"])


def without_paths(card: ModelCard) -> ModelCard:
    """Remove from ``card`` the folder that a local backbone, or its weights, were read from."""

    def named(source: str) -> str:
        kind, colon, place = source.partition(":")
        return f"{kind}:{Path(place).name}" if colon and kind == "local-dir" else source

    return replace(card, backbone=named(card.backbone), weights=named(card.weights))


def training_summary(config: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Select the training's settings and results that the card shows.

    Args:
        config: of run.yaml, with what ``auto`` has come to.
        summary: of summary.json.
    """
    asked = (
        "lr", "head_lr", "arelu_lr", "seed", "epochs", "batch_size", "opt", "weight_decay", "init",
        "bn_stats", "head_init", "model_ema",
    )  # fmt: skip
    reached = ("steps", "best_step", "best_top1", "final_top1", "aulc")
    settled = {key: config[key] for key in asked if key in config}
    return settled | {key: summary[key] for key in reached if key in summary}
