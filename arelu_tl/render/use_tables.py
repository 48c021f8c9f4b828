"""What evaluate and predict report, as tables, rows and lines. Imports no torch: neither needs it for an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from arelu_tl.data.gate import Rejected
from arelu_tl.render.console import plain
from arelu_tl.render.text import shorten, visible
from arelu_tl.study.evaluate import EvaluationReport
from arelu_tl.study.predict import Prediction

# A matrix of more classes is wider than a terminal; the picture shows it.
_MOST_CLASSES = 20
_LONGEST_NAME = 24


def rejected_line(rejected: Rejected) -> str:
    """A picture that is left out, in rich markup."""
    return f"[yellow]left out[/] {plain(rejected.path)}: {plain(rejected.reason)}"


def training_line(report: EvaluationReport) -> str | None:
    """What became of the pictures that the model was trained on, in rich markup; None where there are none."""
    if report.trained_on is None:
        return "[yellow]nothing tells which pictures this model was trained on[/]: if there are any among these, they are counted"
    listed = report.images + len(report.rejected) + (0 if report.counted else report.trained_on)
    told = f"{report.trained_on} of {listed} pictures"
    gone = f"; {report.gone} more that it was trained on are gone and would not be known" if report.gone else ""
    if report.counted and report.trained_on:
        return f"[yellow]{told} were trained on and are counted[/]: this is no accuracy on new pictures{gone}"
    if report.trained_on:
        return f"left out: {told}, which the model was trained on (--include-training counts them){gone}"
    return gone.removeprefix("; ") or None


def evaluation_report(report: EvaluationReport) -> Group:
    """The numbers, each class's, and for few classes the confusion matrix."""
    top5 = f", top-5 {report.top5:.4f}" if report.top5 is not None else ""
    parts: list[RenderableType] = [
        Text(f"{report.images} pictures: accuracy {report.top1:.4f}{top5}, loss {report.loss:.4f}", style="bold"),
        Text(
            f"macro-F1 {report.macro_f1:.4f}, balanced accuracy {report.balanced_accuracy:.4f}, "
            f"expected calibration error {report.calibration_error:.4f}"
        ),
        _per_class(report),
    ]
    if len(report.classes) <= _MOST_CLASSES:
        # No title: rich would break it at the width of the table.
        parts += [Text("confusion: a row is the true class, a column the predicted one", style="italic"), _confusion(report)]
    if report.rejected:
        parts.append(Text(f"left out: {len(report.rejected)} of {report.images + len(report.rejected)} pictures"))
    return Group(*parts)


def _per_class(report: EvaluationReport) -> Table:
    table = Table(title="per class", title_justify="left")
    for heading in ("class", "pictures", "precision", "recall", "F1"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for row in report.per_class:
        shares = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(plain(row["class"]), str(row["support"]), *shares)
    return table


def _confusion(report: EvaluationReport) -> Table:
    table = Table()
    table.add_column("")
    names = [plain(shorten(visible(name), _LONGEST_NAME)) for name in report.classes]
    for name in names:
        table.add_column(name, justify="right")
    for i, (name, counts) in enumerate(zip(names, report.confusion.tolist(), strict=True)):
        cells = [f"[bold]{n}[/]" if i == j else str(n) if n else "·" for j, n in enumerate(counts)]
        table.add_row(name, *cells)
    return table


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """A row for each picture."""
    table = Table()
    table.add_column("picture", overflow="fold")
    table.add_column("label")
    table.add_column("probability", justify="right")
    table.add_column("then")
    for prediction in predictions:
        told = list(zip(prediction.labels, prediction.probabilities, strict=True))
        rest = ", ".join(f"{plain(label)} {p:.3f}" for label, p in told[1:])
        table.add_row(plain(prediction.path), plain(told[0][0]), f"{told[0][1]:.3f}", rest)
    return table


def predictions_json(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """[{path, predictions: [{label, probability}]}]."""
    return [
        {
            "path": p.path,
            "predictions": [{"label": a, "probability": b} for a, b in zip(p.labels, p.probabilities, strict=True)],
        }
        for p in predictions
    ]


def predictions_header(top: int) -> list[str]:
    """Columns of predict's CSV: path,label,probability,label_2,probability_2 and so on."""
    return ["path", "label", "probability"] + [f"{what}_{n}" for n in range(2, top + 1) for what in ("label", "probability")]


def predictions_row(prediction: Prediction) -> list[str]:
    """A picture's row of it. Cells are what the files and classes are called, also where a spreadsheet sees a formula."""
    told = zip(prediction.labels, prediction.probabilities, strict=True)
    return [prediction.path, *(cell for label, p in told for cell in (label, f"{p:.6f}"))]
