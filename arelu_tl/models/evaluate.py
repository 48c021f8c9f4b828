"""Evaluate a trained model on a folder of pictures with known classes."""

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
from arelu_tl.data.passed_over import PassedOver
from arelu_tl.errors import DataError
from arelu_tl.models.classifier import Answer, Classifier, classify
from arelu_tl.records.settings import Layout
from arelu_tl.records.trained_on import TrainedOn

_BINS = 15


@dataclass(frozen=True)
class EvaluationReport:
    """A model's answers to N pictures, and the metrics computed from them.

    Attributes:
        classes: class names.
        root: the folder of pictures.
        paths: of the pictures, relative to ``root`` (N).
        labels, predicted: indices into ``classes``, int64 (N,).
        probability: softmax probability of the predicted class, float64 (N,).
        label_log_probability: logarithm of the true class's probability, float64 (N,).
        label_rank: rank of the true class, from 0; ties are in class order, int64 (N,).
        rejected: pictures that could not be read; they are not among the N.
        trained_on: number of pictures found that the model was trained on; None where its training
            pictures are unknown.
        counted: whether those are among the N.
        gone: number of further training pictures whose content is unknown.
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
        """Share of pictures whose true class is among the five most probable.

        None for five classes or fewer.
        """
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
        """Number of pictures of class i predicted as class j, (C, C)."""
        from sklearn.metrics import confusion_matrix

        return np.asarray(
            confusion_matrix(self.labels, self.predicted, labels=range(len(self.classes))),
            dtype=np.int64,
        )

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """class, support, precision, recall and f1 of each class; None for division by zero."""
        from sklearn.metrics import precision_recall_fscore_support

        found = precision_recall_fscore_support(
            self.labels, self.predicted, labels=range(len(self.classes)), zero_division=np.nan
        )
        precision, recall, f1 = (
            [None if np.isnan(v) else float(v) for v in values] for values in found[:3]
        )
        rows = zip(self.classes, map(int, found[3]), precision, recall, f1, strict=True)
        return [
            {"class": name, "support": n, "precision": p, "recall": r, "f1": f}
            for name, n, p, r, f in rows
        ]

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur among the pictures or the predictions."""
        return float(np.mean([row["f1"] for row in self.per_class if row["f1"] is not None]))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that occur among the pictures."""
        return float(
            np.mean([row["recall"] for row in self.per_class if row["recall"] is not None])
        )

    def mistakes(self) -> list[int]:
        """Return the indices of the wrongly labelled pictures, the most confident first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return sorted(wrong.tolist(), key=lambda i: (-self.probability[i], self.paths[i]))

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as plain JSON values."""
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
    """Compute the expected calibration error of the top label, 0..1.

    It is the mean of |accuracy - mean confidence| over 15 bins of equal width, weighted by their
    numbers of pictures (Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3).

    Args:
        confidence: probability of the predicted class (N,), N > 0.
        correct: whether the prediction was right (N,).
    """
    # Bin m holds the confidences in ((m-1)/15, m/15].
    bins = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=correct, minlength=_BINS) - np.bincount(
        bins, weights=confidence, minlength=_BINS
    )
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
    """Evaluate on a folder of pictures (see ``list_evaluation``).

    Pictures that cannot be read are left out. So are those that the model was trained on; they are
    recognised by their bytes, independent of folder and name, if ``Classifier.trained_on`` has
    their digests.

    Args:
        classifier: the model.
        data: the folder.
        split: the subfolder of ``data`` to evaluate on.
        include_training: count the pictures that the model was trained on like any others.
        layout: see ``list_evaluation``.
        batch_size: pictures per batch.
        passed: collects what is in ``data`` but is not a picture of a class.
        rejected: a callback for each picture that cannot be read.
        progress: a callback with (pictures done, pictures in all).

    Raises:
        DataError: see ``list_evaluation``; or no picture can be read, or all were trained on.
        ArtefactError: an answer of the model is NaN or infinite.
    """
    listed = list_evaluation(data, classifier.classes, split=split, layout=layout, passed=passed)
    known = classifier.trained_on()
    trained_on = _trained_on(data, listed, known) if known is not None else set()
    if not include_training:
        if len(trained_on) == len(listed):
            raise DataError(
                f"{data}: all {len(listed)} pictures were trained on: name others, "
                "or pass `include_training`"
            )
        listed = [(path, label) for path, label in listed if path not in trained_on]
    bad: list[Rejected] = []
    judged: list[_Judged] = []
    answers = classify(classifier, (data / path for path, _ in listed), batch_size=batch_size)
    for done, ((path, label), answer) in enumerate(zip(listed, answers, strict=True), start=1):
        if isinstance(answer, Answer):
            judged.append(_judge(path, label, answer.log_probabilities))
        else:
            bad.append(Rejected(path, answer.reason))
            if rejected is not None:
                rejected(bad[-1])
        if progress is not None:
            progress(done, len(listed))
    if not judged:
        raise DataError(f"{data}: no readable picture")
    paths, *columns = zip(*judged, strict=True)
    labels, predicted, rank = (np.array(columns[i], dtype=np.int64) for i in (0, 1, 4))
    probability, of_label = (np.array(columns[i], dtype=np.float64) for i in (2, 3))
    return EvaluationReport(
        classifier.classes, data, list(paths), labels, predicted, probability, of_label, rank, bad,
        trained_on=None if known is None else len(trained_on),
        counted=known is None or include_training, gone=0 if known is None else known.gone,
    )  # fmt: skip


def _trained_on(data: Path, listed: Sequence[tuple[str, int]], known: TrainedOn) -> set[str]:
    """Return the paths of the pictures that were trained on."""
    digests = hash_pictures(data, [path for path, _ in listed])
    return {path for path, digest in digests.items() if digest in known}


_Judged = tuple[str, int, int, float, float, int]


def _judge(path: str, label: int, row: NDArray[np.float64]) -> _Judged:
    """Reduce an answer to what is kept, so that memory does not depend on the number of classes.

    Returns:
        (path, label, predicted class, its probability, log-probability of the label, its rank).
    """
    best = int(row.argmax())
    # Ties are in class order, as in argmax.
    rank = int((row > row[label]).sum() + (row[:label] == row[label]).sum())
    return path, label, best, float(np.exp(row[best])), float(row[label]), rank


def predictions_rows(report: EvaluationReport) -> Sequence[Sequence[str]]:
    """Return the rows of predictions.csv: path, label, predicted, probability."""
    names = report.classes
    rows = zip(
        report.paths,
        report.labels.tolist(),
        report.predicted.tolist(),
        report.probability.tolist(),
        strict=True,
    )
    return [
        [path, names[label], names[predicted], f"{p:.6f}"] for path, label, predicted, p in rows
    ]
