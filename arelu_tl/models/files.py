"""The files that evaluate writes: the metrics, every picture's label, and two figures."""

from __future__ import annotations

from pathlib import Path

from arelu_tl.models.evaluate import EvaluationReport, predictions_rows
from arelu_tl.models.mistakes import mistakes_figure
from arelu_tl.records.csv_table import csv_text
from arelu_tl.records.storage import (
    make_folder,
    remove_file,
    require_room,
    write_bytes,
    write_json,
    write_text,
)
from arelu_tl.render.figures.canvas import png
from arelu_tl.render.figures.confusion import MOST_DRAWN, confusion_figure, most_confused

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
CONFUSION = "confusion.png"
MISTAKES = "mistakes.png"


def write_evaluation(report: EvaluationReport, folder: Path) -> list[Path]:
    """Write the files, and replace those of an earlier evaluation.

    Without mistakes there is no mistakes.png.

    Raises:
        StorageError: see ``require_room``, or the disk refuses.
    """
    require_room(folder, EVALUATION)
    make_folder(folder)
    write_json(folder / EVALUATION, report.to_json(), indent=None)
    header = ["path", "label", "predicted", "probability"]
    write_text(folder / PREDICTIONS, csv_text(header, predictions_rows(report)))
    counts, names = most_confused(report.confusion, report.classes, MOST_DRAWN)
    title = f"accuracy {report.top1:.4f}"
    if len(names) < len(report.classes):
        title = f"the {len(names) - 1} classes with most mistakes; {title}"
    figure = confusion_figure([(title, counts)], names)
    written = [folder / EVALUATION, folder / PREDICTIONS]
    for name, drawn in ((CONFUSION, figure), (MISTAKES, mistakes_figure(report))):
        if drawn is not None:
            write_bytes(folder / name, png(drawn))
            written.append(folder / name)
        else:
            remove_file(folder / name)
    return written
