"""The output of evaluate and predict. Imports no torch, which neither needs for an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arelu_tl.data.gate import Rejected
from arelu_tl.models.evaluate import EvaluationReport
from arelu_tl.models.predict import Prediction
from arelu_tl.render.console import Shown, line
from arelu_tl.render.grid import Column, Grid
from arelu_tl.render.text import Part

# A matrix of more classes is wider than a terminal; confusion.png shows it.
_MOST_CLASSES = 20


def rejected_line(rejected: Rejected) -> tuple[Part, Part]:
    """Say which picture is left out, and why."""
    return ("left out", "yellow"), f" {rejected.path}: {rejected.reason}"


def training_line(report: EvaluationReport) -> list[Part]:
    """Say whether pictures that the model was trained on are counted; [] where there are none."""
    if report.trained_on is None:
        unknown = ("nothing tells which pictures this model was trained on", "yellow")
        return [unknown, ": if there are any among these, they are counted"]
    listed = report.images + len(report.rejected) + (0 if report.counted else report.trained_on)
    known = f"{report.trained_on} of {listed} pictures"
    gone = (
        f"{report.gone} more that it was trained on are gone and would not be known"
        if report.gone
        else ""
    )
    more = f"; {gone}" if gone else ""
    if report.counted and report.trained_on:
        return [
            (f"{known} were trained on and are counted", "yellow"),
            f": this is no accuracy on new pictures{more}",
        ]
    if report.trained_on:
        return [
            f"left out: {known}, which the model was trained on "
            f"(--include-training counts them){more}"
        ]
    return [gone] if gone else []


def evaluation_report(report: EvaluationReport) -> list[Shown]:
    """Show the metrics, those of each class, and for few classes the confusion matrix."""
    top5 = f", top-5 {report.top5:.4f}" if report.top5 is not None else ""
    parts: list[Shown] = [
        line(
            f"{report.images} pictures: accuracy {report.top1:.4f}{top5}, loss {report.loss:.4f}",
            style="bold",
        ),
        line(
            f"macro-F1 {report.macro_f1:.4f}, balanced accuracy {report.balanced_accuracy:.4f}, "
            f"expected calibration error {report.calibration_error:.4f}"
        ),
        "",
        _per_class(report),
    ]
    if len(report.classes) <= _MOST_CLASSES:
        parts += ["", _confusion(report, report.classes)]
    if report.rejected:
        parts.append(
            line(
                f"left out: {len(report.rejected)} of {report.images + len(report.rejected)} "
                "pictures"
            )
        )
    return parts


def _per_class(report: EvaluationReport) -> Grid:
    columns = [Column("class", "name"), *map(Column, ("pictures", "precision", "recall", "F1"))]
    table = Grid(columns, title="per class")
    for row in report.per_class:
        shares = (
            "-" if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall", "f1")
        )
        table.add(row["class"], str(row["support"]), *shares)
    return table


def _confusion(report: EvaluationReport, headings: Sequence[str]) -> Grid:
    """Make the confusion matrix, headed by class names or, where these do not fit, by numbers."""
    named = headings is report.classes
    table = Grid(
        [Column("true class", "name"), *map(Column, headings)],
        title="confusion: a row is the true class, "
        f"a column the {'' if named else 'number of the '}predicted one",
        instead=_confusion(report, [str(number) for number in range(1, len(headings) + 1)])
        if named
        else None,
    )
    for i, (name, counts) in enumerate(zip(report.classes, report.confusion.tolist(), strict=True)):
        cells: list[Part] = [
            (str(n), "bold") if i == j else str(n) if n else "·" for j, n in enumerate(counts)
        ]
        table.add(name if named else f"{i + 1} {name}", *cells)
    return table


def predictions_table(predictions: Sequence[Prediction]) -> Grid:
    """Show a row per picture."""
    table = Grid(
        [
            Column("picture", "name"),
            Column("label", "name"),
            Column("probability"),
            Column("then", "text", gives_way=1),
        ]
    )
    for prediction in predictions:
        best = list(zip(prediction.labels, prediction.probabilities, strict=True))
        rest = ", ".join(f"{label} {p:.3f}" for label, p in best[1:])
        table.add(prediction.path, best[0][0], f"{best[0][1]:.3f}", rest)
    return table


def predictions_json(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return [{path, predictions: [{label, probability}]}]."""
    return [
        {
            "path": p.path,
            "predictions": [
                {"label": a, "probability": b}
                for a, b in zip(p.labels, p.probabilities, strict=True)
            ],
        }
        for p in predictions
    ]


def predictions_header(top: int) -> list[str]:
    """Return the columns of predict's CSV: path, label, probability, label_2, probability_2, ..."""
    return ["path", "label", "probability"] + [
        f"{what}_{n}" for n in range(2, top + 1) for what in ("label", "probability")
    ]


def predictions_row(prediction: Prediction) -> list[str]:
    """Return a picture's row of predict's CSV.

    Names of files and classes are not escaped, even if a spreadsheet would read one as a formula.
    """
    best = zip(prediction.labels, prediction.probabilities, strict=True)
    return [prediction.path, *(cell for label, p in best for cell in (label, f"{p:.6f}"))]
