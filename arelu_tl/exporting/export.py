"""Export a trained run for other software: frozen, folded and proved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import nn

from arelu_tl.errors import ArtefactError, ConfigError, DataError, StorageError
from arelu_tl.exporting import hub
from arelu_tl.exporting.artefacts import (
    UNTOUCHED,
    Artefact,
    PlainModel,
    Precision,
    make_onnx,
    make_plain,
    make_pt2,
    require_described,
    training_summary,
    without_paths,
)
from arelu_tl.exporting.onnx_file import answers, require_onnx
from arelu_tl.exporting.pictures import ExportPictures
from arelu_tl.exporting.proof import Proof, Yardstick, measure, proof_batches, prove
from arelu_tl.exporting.report import AccuracyChange, ExportReport
from arelu_tl.exporting.timing import time_export
from arelu_tl.models.export_folder import MODEL as WEIGHTS
from arelu_tl.models.export_folder import require_free, write_export
from arelu_tl.models.load import load_model
from arelu_tl.models.run_pictures import run_of, run_pictures, trained_on
from arelu_tl.records import runs
from arelu_tl.records.card import ModelCard
from arelu_tl.records.storage import make_folder, sha256_file, write_bytes
from arelu_tl.records.trained_on import TrainedOn

FORMATS = ("safetensors", "onnx", "pt2")
_PRECISIONS: dict[str | None, Precision] = {
    None: "float32",
    "dynamic": "int8-dynamic",
    "static": "int8-static",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What to export, apart from the format.

    Attributes:
        folding: fold the sites' gains (and, in a graph, the normalisations) into the weights
            around them.
        trainable: write a folder with the learnt alpha and beta, for further training; nothing
            is frozen.
        preprocessing: ONNX only: take decoded pictures, uint8 (batch, height, width, 3), and give
            probabilities.
        precision: ONNX only: float32, fp16, int8-dynamic or int8-static (calibrated on training
            pictures).
    """

    folding: bool = True
    trainable: bool = False
    preprocessing: bool = False
    precision: Precision = "float32"


def export(
    path: Path | str,
    format: str = "safetensors",  # noqa: A002
    output: Path | str | None = None,
    *,
    folding: bool = True,
    trainable: bool = False,
    with_preprocessing: bool = False,
    quantize: Literal["dynamic", "static"] | None = None,
    fp16: bool = False,
    data: Path | str | None = None,
    benchmark: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    note: Say | None = None,
) -> ExportReport:
    """Export a run; nothing is written unless the export answers as the trained model does.

    Args:
        path: a run folder (its best checkpoint is exported), one of its checkpoints, or a study
            (the run with the best validation accuracy is exported).
        format: "safetensors": a folder with config.json and model.safetensors for ``load_model``,
            and for timm alone where timm has such layers. "onnx", "pt2": one file.
        output: the folder or file to write; None for ``exports/RUN`` in the study, with the
            format's suffix.
        folding: fold the frozen activations' gains into the weights around them, and in an ONNX
            or pt2 file the normalisations too.
        trainable: with "safetensors", keep the learnt alpha and beta for further training.
        with_preprocessing: with "onnx", take decoded pictures, uint8 (batch, height, width, 3),
            and give probabilities.
        quantize: with "onnx", 8 bits: "dynamic", or "static" with ranges calibrated on training
            pictures.
        fp16: with "onnx", 16 bits.
        data: the folder of the run's pictures, if they have moved.
        benchmark: measure its speed next to the baseline arm's export.
        push_to_hub: USER/NAME on the Hugging Face Hub; the export is uploaded there with a README.
        private: make that repository private.
        note: a callback for messages that need no action by the user.

    Raises:
        ConfigError: the format does not have an option, or its packages are missing.
        DataError: see ``load_model``; or fewer bits were asked for and the run's pictures are gone.
        ArtefactError: see ``load_model``; or a proof fails.
        StorageError: the target exists, or the hub refuses; in the second case the export stays
            on disk.
    """
    if quantize not in (None, "dynamic", "static"):
        raise ConfigError(f"`quantize` {quantize}: dynamic or static")
    if quantize is not None and fp16:
        raise ConfigError("`quantize` and `fp16`: choose one")
    precision = "fp16" if fp16 else _PRECISIONS[quantize]
    options = ExportOptions(folding, trainable, with_preprocessing, precision)
    check_options(format, options)
    if push_to_hub is not None:
        hub.check_hub(push_to_hub)
    elif private:
        raise ConfigError("`private`: with `push_to_hub` only")
    place = Path(data) if data is not None else None
    if place is not None and not place.is_dir():
        raise DataError(f"`data` {place}: no such folder")
    say: Say = note or (lambda text: None)
    source = _best_of_study(Path(path), say)
    target = Path(output) if output is not None else _place(source, format)
    require_free(target)
    if format != "safetensors" and target.exists():
        raise StorageError(f"{target} is a folder: choose another `output`")
    model, card = load_model(source)
    if card.form != "trained" or not (runs.is_run(run_of(source))):
        raise DataError(f"{source}: is an export already; name the run that it was made of")
    run = runs.load_run(run_of(source))
    card = replace(
        without_paths(card),
        training=training_summary(run.settled_config.model_dump(mode="json"), run.summary),
    )
    pictures = ExportPictures(run_pictures(source, place), card.classes, card.data_config)
    known = trained_on(source, place)
    if known is None or known.gone:
        say(
            "its training pictures are gone, and the study has no record of them: "
            "evaluate will not know them in other folders"
        )
    if precision != "float32":
        pictures.require()
    with torch.inference_mode():
        report = _write(format, target, model, card, pictures, known, options, say)
    report = replace(report, run=run.path)
    if benchmark:
        report = time_export(report, format, card, options.folding, run, say)
    if push_to_hub is not None:
        report = replace(report, url=hub.push_to_hub(report, card, push_to_hub, private=private))
    return report


def check_options(format: str, options: ExportOptions) -> None:  # noqa: A002
    """Check that ``format`` exists, has these options, and has its packages installed.

    Raises:
        ConfigError: it does not.
    """
    if format not in FORMATS:
        raise ConfigError(f"`format` {format}: one of {', '.join(FORMATS)}")
    for name, asked in (
        ("`with_preprocessing`", options.preprocessing),
        ("`quantize` and `fp16`", options.precision != "float32"),
    ):
        if asked and format != "onnx":
            raise ConfigError(f"{name}: with `format='onnx'` only")
    if options.trainable and format != "safetensors":
        raise ConfigError(
            "`trainable`: with `format='safetensors'` only; a file of operators has nothing to "
            "train"
        )
    if format == "onnx":
        require_onnx()


def _write(
    format: str,  # noqa: A002
    target: Path,
    model: nn.Module,
    card: ModelCard,
    pictures: ExportPictures,
    known: TrainedOn | None,
    options: ExportOptions,
    say: Say,
) -> ExportReport:
    shown = pictures.proof()
    if shown is None:
        say("the validation pictures are gone: proved on random input alone")
    yardstick = measure(model, proof_batches(card.data_config["input_size"], shown))
    if format == "safetensors":
        return _write_folder(target, model, card, yardstick, known, options)
    if format == "onnx":
        made = make_onnx(
            model, card, yardstick, pictures,
            folding=options.folding, precision=options.precision,
            preprocessing=options.preprocessing, trained_on=known,
        )  # fmt: skip
    else:
        made = make_pt2(model, card, yardstick, folding=options.folding, trained_on=known)
    accuracy = None
    if options.precision != "float32":
        accuracy = _accuracy_change(model, made, pictures)
    make_folder(target.parent)
    write_bytes(target, made.content)
    return ExportReport(
        target, {target.name: len(made.content)}, hashlib.sha256(made.content).hexdigest(),
        proofs=made.proofs, fold=made.fold, accuracy=accuracy,
    )  # fmt: skip


def _write_folder(
    target: Path,
    model: nn.Module,
    card: ModelCard,
    yardstick: Yardstick,
    known: TrainedOn | None,
    options: ExportOptions,
) -> ExportReport:
    plain = _plain(model, card, options)
    described = getattr(model, "pretrained_cfg", None) or {}
    proofs: list[Proof] = []

    def check(folder: Path) -> None:
        ours, its_card = load_model(folder)
        require_described(
            "the folder", {"classes": its_card.classes, "preprocessing": its_card.data_config}, card
        )
        proofs[:] = [prove("read back", yardstick, ours)]
        if plain.card.form == "timm":
            try:
                theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
                proofs.append(prove("timm alone", yardstick, theirs))
            except (RuntimeError, TypeError, ArtefactError) as error:
                raise _UnlikeTimmError(" ".join(str(error).split())[:200]) from None
            names, data = (
                theirs.pretrained_cfg["label_names"],
                timm.data.resolve_model_data_config(theirs),
            )
            data = {key: data[key] for key in card.data_config}
            require_described(
                "the folder, to timm,", {"classes": names, "preprocessing": data}, card
            )

    try:
        files = write_export(
            target, plain.model.state_dict(), plain.card.to_json(), described, known, check
        )
    except _UnlikeTimmError as error:
        plain = _plain(model, card, options, unlike_timm=f"timm does not load it ({error})")
        files = write_export(
            target, plain.model.state_dict(), plain.card.to_json(), described, known, check
        )
    return ExportReport(
        target, files, sha256_file(target / WEIGHTS),
        form=plain.card.form, unlike_timm=plain.unlike_timm, proofs=proofs, fold=plain.fold,
    )  # fmt: skip


class _UnlikeTimmError(Exception):
    """timm alone does not load the folder, or loads a different model from it."""


def _plain(
    model: nn.Module, card: ModelCard, options: ExportOptions, unlike_timm: str | None = None
) -> PlainModel:
    if options.trainable and card.arm not in UNTOUCHED:
        return PlainModel(
            model,
            card,
            None,
            f"what its activations ({card.arm}) have learnt is kept to be trained on",
        )
    return make_plain(
        model, card, folding=options.folding and not options.trainable, unlike_timm=unlike_timm
    )


def _accuracy_change(model: nn.Module, made: Artefact, pictures: ExportPictures) -> AccuracyChange:
    after = answers(made.core)
    count = right_before = right_after = same = 0
    for batch, labels in pictures.judged():
        first, then = model(batch).argmax(1), after(batch).argmax(1)
        count += len(labels)
        right_before += int((first == labels).sum())
        right_after += int((then == labels).sum())
        same += int((first == then).sum())
    return AccuracyChange(count, right_before / count, right_after / count, same / count)


def _place(source: Path, format: str) -> Path:  # noqa: A002
    run = run_of(source)
    name = run.name if source.resolve() == run else f"{run.name}-{source.resolve().name}"
    return run.parent / "exports" / (name if format == "safetensors" else f"{name}.{format}")


def _best_of_study(path: Path, say: Say) -> Path:
    if runs.is_run(path) or not runs.is_study(path):
        return path
    study = runs.load_study(path)
    best = study.best()
    say(
        f"of {len(study.runs)} runs {best.path.name} is best: "
        f"validation accuracy {best.summary['best_top1']:.4f}"
    )
    return best.path
