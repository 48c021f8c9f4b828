"""How good a trained model is on a folder of pictures whose classes are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arelu_tl.data.folder import list_evaluation
from arelu_tl.data.gate import Rejected, hash_pictures
from arelu_tl.data.layout import Layout
from arelu_tl.data.passed_over import PassedOver
from arelu_tl.errors import DataError
from arelu_tl.models.classifier import Answer, Classifier, classify
from arelu_tl.records.trained_on import TrainedOn

_BINS = 15


@dataclass(frozen=True)
class EvaluationReport:
    """What a model said of N pictures, and the numbers made of it.

    Attributes:
        classes: class names.
        root: the folder of pictures.
        paths: of the pictures, relative to ``root`` (N).
        labels, predicted: indices into ``classes``, int64 (N,).
        probability: softmax probability of the predicted class, float64 (N,).
        label_log_probability: logarithm of the true class's probability, float64 (N,).
        label_rank: how many classes the model holds more likely than the true one, int64 (N,).
        rejected: pictures that could not be read, left out.
        trained_on: how many pictures were found that the model was trained on; None where nothing tells.
        counted: whether those are among the N.
        gone: how many more it was trained on, whose content is not known.
    """

    classes: list[str]
    root: Path
    paths: list[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float64]
    label_log_probability: NDArray[np.float64]
    label_rank: NDArray[np.int64]
    rejected: list[Rejected]
    trained_on: int | None = None
    counted: bool = True
    gone: int = 0

    @property
    def images(self) -> int:
        return len(self.paths)

    @property
    def top1(self) -> float:
        """Accuracy, 0..1."""
        return float((self.label_rank < 1).mean())

    @property
    def top5(self) -> float | None:
        """How often the true class is among the five most probable; None for five classes or fewer."""
        return float((self.label_rank < 5).mean()) if len(self.classes) > 5 else None

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(-self.label_log_probability.mean())

    @property
    def calibration_error(self) -> float:
        return calibration_error(self.probability, self.predicted == self.labels)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """How many pictures of class i were predicted as class j (C, C)."""
        from sklearn.metrics import confusion_matrix

        return np.asarray(confusion_matrix(self.labels, self.predicted, labels=range(len(self.classes))), dtype=np.int64)

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """class, support, precision, recall and f1 of each class; None where undefined (division by zero)."""
        from sklearn.metrics import precision_recall_fscore_support

        found = precision_recall_fscore_support(
            self.labels, self.predicted, labels=range(len(self.classes)), zero_division=np.nan
        )
        precision, recall, f1 = ([None if np.isnan(v) else float(v) for v in values] for values in found[:3])
        told = zip(self.classes, map(int, found[3]), precision, recall, f1, strict=True)
        return [{"class": name, "support": n, "precision": p, "recall": r, "f1": f} for name, n, p, r, f in told]

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur, among the pictures or the predictions."""
        return float(np.mean([row["f1"] for row in self.per_class if row["f1"] is not None]))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that the pictures have."""
        return float(np.mean([row["recall"] for row in self.per_class if row["recall"] is not None]))

    def mistakes(self) -> list[int]:
        """Indices of the wrongly labelled pictures, the surest first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return sorted(wrong.tolist(), key=lambda i: (-self.probability[i], self.paths[i]))

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "top1": self.top1,
            "top5": self.top5,
            "macro_f1": self.macro_f1,
            "balanced_accuracy": self.balanced_accuracy,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "per_class": self.per_class,
            "classes": self.classes,
            "confusion": self.confusion.tolist(),
            "training_pictures": {"found": self.trained_on, "counted": self.counted},
            "rejected": [{"path": r.path, "reason": r.reason} for r in self.rejected],
        }


def calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Expected calibration error of the top label, 0..1: |accuracy - mean confidence| of each of 15 bins of equal width,
    weighted by its pictures (Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3).

    Args:
        confidence: probability of the predicted class (N,), N > 0.
        correct: whether it was the true one (N,).
    """
    # Bin m holds the confidences in ((m-1)/15, m/15].
    bins = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=correct, minlength=_BINS) - np.bincount(bins, weights=confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def evaluate(
    classifier: Classifier,
    data: Path,
    *,
    split: str | None = None,
    include_training: bool = False,
    layout: Layout = "auto",
    batch_size: int = 32,
    passed: PassedOver | None = None,
    rejected: Callable[[Rejected], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Evaluate on a folder of pictures (see ``list_evaluation``); those that cannot be read are left out.

    Pictures that the model was trained on are known by their bytes, wherever they lie and whatever they are called, as far as
    ``Classifier.trained_on`` tells; they are left out too.

    Args:
        split: folder of ``data`` to take instead.
        include_training: count the pictures that it was trained on like any others.
        layout: see ``list_evaluation``.
        passed: is given what is in ``data`` and no picture of a class.
        rejected: told of each picture that cannot be read.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: see ``list_evaluation``; DataError too where no picture can be read, or all were trained on.
        ArtefactError: the model does not answer with finite numbers.
    """
    listed = list_evaluation(data, classifier.classes, split=split, layout=layout, passed=passed)
    known = classifier.trained_on()
    trained_on = _trained_on(data, listed, known) if known is not None else set()
    if not include_training:
        if len(trained_on) == len(listed):
            raise DataError(f"{data}: all {len(listed)} pictures were trained on: name others, or pass --include-training")
        listed = [(path, label) for path, label in listed if path not in trained_on]
    bad: list[Rejected] = []
    told: list[_Told] = []
    answers = classify(classifier, (data / path for path, _ in listed), batch_size=batch_size)
    for done, ((path, label), answer) in enumerate(zip(listed, answers, strict=True), start=1):
        if isinstance(answer, Answer):
            told.append(_judge(path, label, answer.log_probabilities))
        else:
            bad.append(Rejected(path, answer.reason))
            if rejected is not None:
                rejected(bad[-1])
        if progress is not None:
            progress(done, len(listed))
    if not told:
        raise DataError(f"{data}: no readable picture")
    paths, *columns = zip(*told, strict=True)
    labels, predicted, rank = (np.array(columns[i], dtype=np.int64) for i in (0, 1, 4))
    probability, of_label = (np.array(columns[i], dtype=np.float64) for i in (2, 3))
    return EvaluationReport(
        classifier.classes, data, list(paths), labels, predicted, probability, of_label, rank, bad,
        trained_on=None if known is None else len(trained_on), counted=known is None or include_training,
        gone=0 if known is None else known.gone,
    )  # fmt: skip


def _trained_on(data: Path, listed: Sequence[tuple[str, int]], known: TrainedOn) -> set[str]:
    """Paths of the pictures that were trained on."""
    digests = hash_pictures(data, [path for path, _ in listed])
    return {path for path, digest in digests.items() if digest in known}


_Told = tuple[str, int, int, float, float, int]


def _judge(path: str, label: int, row: NDArray[np.float64]) -> _Told:
    """All that is kept of an answer, so that a thousand classes cost no more than two."""
    best = int(row.argmax())
    # Of equals the first leads, as argmax has it.
    rank = int((row > row[label]).sum() + (row[:label] == row[label]).sum())
    return path, label, best, float(np.exp(row[best])), float(row[label]), rank


def predictions_rows(report: EvaluationReport) -> Sequence[Sequence[str]]:
    """Rows of predictions.csv: path, label, predicted, probability."""
    names = report.classes
    told = zip(report.paths, report.labels.tolist(), report.predicted.tolist(), report.probability.tolist(), strict=True)
    return [[path, names[label], names[predicted], f"{p:.6f}"] for path, label, predicted, p in told]
