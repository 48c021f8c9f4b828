"""Use a trained model: evaluate it on a folder, predict pictures, export it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from arelu_tl.data import eval_transform, make_eval_batches, open_picture, scan_evaluation
from arelu_tl.data.decode import UndecodableError
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.records import runs
from arelu_tl.study.environment import choose_device
from arelu_tl.study.reload import load_model
from arelu_tl.training import evaluate


@dataclass(frozen=True)
class Prediction:
    """One picture's labels, most probable first; ``probabilities`` are of the softmax over all classes."""

    path: str
    labels: list[str]
    probabilities: list[float]


@dataclass(frozen=True)
class EvaluationReport:
    """Attributes:
    images: pictures evaluated.
    top1, loss: accuracy 0..1 and mean cross-entropy in nats.
    classes: class names, in the order of the matrix.
    confusion: confusion[i][j] pictures of class i were predicted as class j.
    rejected: undecodable pictures, left out.
    """

    images: int
    top1: float
    loss: float
    classes: list[str]
    confusion: list[list[int]]
    rejected: list[str]

    def per_class(self) -> list[dict[str, Any]]:
        """precision, recall (None where undefined) and support of each class."""
        rows = []
        for i, name in enumerate(self.classes):
            support = sum(self.confusion[i])
            predicted = sum(row[i] for row in self.confusion)
            right = self.confusion[i][i]
            rows.append(
                {"class": name, "support": support, "precision": right / predicted if predicted else None}
                | {"recall": right / support if support else None}
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "top1": self.top1,
            "loss": self.loss,
            "per_class": self.per_class(),
            "classes": self.classes,
            "confusion": self.confusion,
            "rejected": self.rejected,
        }


def evaluate_folder(
    model_path: Path,
    data: Path,
    *,
    split: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Evaluate a run or an exported folder on a folder of pictures (see ``scan_evaluation``).

    A run is evaluated on the validation pictures only, where ``data`` is the folder that it was trained on.

    Raises:
        DataError, ArtefactError, ConfigError: see ``scan_evaluation``, ``load_model`` and ``choose_device``.
    """
    target = choose_device(device)
    model, card = load_model(model_path)
    only = held_out(model_path, data) if split is None else None
    folder = scan_evaluation(data, card.classes, split=split, only=only, on_bad_image=on_bad_image, progress=progress)
    samples = folder.splits["val"]
    batches = make_eval_batches(data, samples, eval_transform(card.data_config), batch_size=batch_size)
    result = evaluate(model.to(target), batches.epoch(), target)
    confusion = [[0] * len(card.classes) for _ in card.classes]
    for sample, predicted in zip(samples, result.predicted.tolist(), strict=True):
        confusion[sample.label][predicted] += 1
    return EvaluationReport(
        images=len(samples),
        top1=result.top1,
        loss=result.loss,
        classes=card.classes,
        confusion=confusion,
        rejected=[r.path for r in folder.rejected],
    )


def held_out(model_path: Path, data: Path) -> set[str] | None:
    """Paths of the validation pictures, where the model is a run that was trained on this very folder."""
    split = model_path.resolve().parent / runs.SPLIT
    if not runs.is_run(model_path) or not split.is_file():
        return None
    trained_on = runs.load_run(model_path).config.data
    if trained_on is None or trained_on.resolve() != data.resolve():
        return None
    with open(split, encoding="utf-8", newline="") as file:
        return {row["path"] for row in csv.DictReader(file) if row["split"] == "val"}


@torch.inference_mode()
def predict(model_path: Path, images: Sequence[Path], *, top: int = 5, device: str | None = None) -> list[Prediction]:
    """Label pictures with a run or an exported folder, preprocessed as in validation.

    Raises:
        DataError: a picture is missing or cannot be decoded.
    """
    if top < 1:
        raise ConfigError("--top must be at least 1")
    target = choose_device(device)
    model, card = load_model(model_path)
    model.to(target)
    transform = eval_transform(card.data_config)
    told = []
    for path in images:
        try:
            picture = open_picture(path)
        except (UndecodableError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise DataError(f"{path}: {reason}") from None
        best = model(transform(picture)[None].to(target)).float().softmax(1)[0].topk(min(top, len(card.classes)))
        told.append(Prediction(str(path), [card.classes[i] for i in best.indices.tolist()], best.values.tolist()))
    return told
