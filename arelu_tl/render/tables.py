"""Reports as rich tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from arelu_tl.analysis import ArmResult, Comparison, PairComparison
from arelu_tl.render.console import plain
from arelu_tl.study.use import EvaluationReport, Prediction


def _or_dash(value: float | int | None, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def comparison_report(comparison: Comparison) -> Group:
    """Each pair's table, verdict and proof."""
    parts: list[RenderableType] = []
    for pair in comparison.pairs:
        parts += [pair_table(pair), Text(pair.sentence, style="bold"), Text(_proof(pair), style="dim"), ""]
    if comparison.unpaired:
        parts.append(Text(f"without a partner: {', '.join(comparison.unpaired)}"))
    return Group(*parts)


def pair_table(pair: PairComparison) -> Table:
    """The baseline and the arm, a row each."""
    table = Table(title=f"lr {pair.lr:g}, seed {pair.seed}, {pair.steps} steps", title_justify="left")
    for heading in ("arm", "final", "best", "at step", "AULC", f"to {pair.target:.1%}", "train s", "img/s", "drift"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for result in (pair.baseline, pair.arm):
        table.add_row(*_cells(result))
    return table


def _cells(result: ArmResult) -> list[str]:
    return [
        result.arm if result.status == "finished" else f"{result.arm} ({result.status})",
        f"{result.final_top1:.3f}",
        f"{result.best_top1:.3f}",
        str(result.best_step),
        f"{result.aulc:.3f}",
        f"step {result.steps_to_target}" if result.steps_to_target is not None else "never",
        f"{result.seconds:.0f}",
        _or_dash(result.images_per_second, ".1f"),
        _or_dash(result.drift, ".2f"),
    ]


def _proof(pair: PairComparison) -> str:
    same = ", ".join(f"{what} {value[:12]}" for what, value in pair.proof.items() if value and what != "weights")
    tail = f"; McNemar on the best checkpoints' predictions: p = {pair.mcnemar_p:.3g}" if pair.mcnemar_p is not None else ""
    return f"same in both: {same or 'not recorded yet'}{tail}"


def evaluation_report(report: EvaluationReport) -> Group:
    """Accuracy, the classes' precision and recall, and for up to 20 classes the confusion matrix."""
    summary = Text(f"{report.images} pictures: accuracy {report.top1:.4f}, loss {report.loss:.4f}", style="bold")
    per_class = Table(title="per class", title_justify="left")
    for heading in ("class", "pictures", "precision", "recall"):
        per_class.add_column(heading, justify="left" if heading == "class" else "right")
    for row in report.per_class():
        per_class.add_row(
            plain(row["class"]), str(row["support"]), _or_dash(row["precision"], ".3f"), _or_dash(row["recall"], ".3f")
        )
    parts: list[RenderableType] = [summary, per_class]
    if len(report.classes) <= 20:
        parts.append(_confusion(report))
    if report.rejected:
        parts.append(Text(f"left out: {', '.join(plain(path) for path in report.rejected)}"))
    return Group(*parts)


def _confusion(report: EvaluationReport) -> Table:
    table = Table(title="confusion: row is the true class, column the predicted one", title_justify="left")
    table.add_column("")
    for name in report.classes:
        table.add_column(plain(name), justify="right")
    for i, (name, counts) in enumerate(zip(report.classes, report.confusion, strict=True)):
        cells = [f"[bold]{n}[/]" if i == j else str(n) if n else "·" for j, n in enumerate(counts)]
        table.add_row(plain(name), *cells)
    return table


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """A row for each picture."""
    table = Table()
    table.add_column("picture")
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
