"""arelu-tl predict MODEL IMAGE...: labels and probabilities."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide
from arelu_tl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from arelu_tl.models.predict import Prediction


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            help="A run folder, an exported folder, or an .onnx file, which needs no torch."
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Pictures, folders of them (to any depth), or quoted patterns as '*/*.jpg'.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Labels for each picture.")] = 3,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Pictures at a time.")
    ] = 32,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1, mps; the best there is when not given, cpu for an .onnx file."
        ),
    ] = None,
    csv: Annotated[
        bool,
        typer.Option(
            "--csv", help="Print a row for each picture, as it is done.", rich_help_panel="Output"
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Label pictures with a trained model.

    A picture that is missing or cannot be read is named on stderr and left out, and the exit code
    is 2.
    """
    if csv and json:
        raise ConfigError("--csv or --json, not both")

    from arelu_tl.data.gate import by_reason
    from arelu_tl.models.classifier import open_classifier
    from arelu_tl.models.predict import Prediction, find_pictures
    from arelu_tl.models.predict import predict as predict_pictures
    from arelu_tl.models.tables import predictions_json, predictions_table, rejected_line
    from arelu_tl.render.bar import PictureBar
    from arelu_tl.render.console import Output

    output = Output(as_json=json, quiet=quiet, wide=wide)
    found = find_pictures(images)
    for missing in found.missing:
        output.warn(*rejected_line(missing))
    if passed := found.passed.line():
        output.note(passed)
    left_out = [*found.missing]
    if not found.paths:
        raise DataError("no picture to label")
    classifier = open_classifier(model, device)
    predictions: list[Prediction] = []
    show = _csv_printer(min(top, len(classifier.classes))) if csv else predictions.append
    # On a terminal the rows themselves show the progress; a bar would break them up.
    with PictureBar(output, "labelling", hidden=csv and sys.stdout.isatty()) as bar:
        for each in predict_pictures(
            classifier, found.paths, top=top, batch_size=batch_size, progress=bar
        ):
            if isinstance(each, Prediction):
                show(each)
            else:
                left_out.append(each)
                output.warn(*rejected_line(each))
    if not csv:
        output.report(predictions_table(predictions), data=predictions_json(predictions))
    if left_out:
        asked = len(found.paths) + len(found.missing)
        raise DataError(f"left out: {len(left_out)} of {asked} ({by_reason(left_out)})")


def _csv_printer(top: int) -> Callable[[Prediction], None]:
    """Print the header, and return a function that prints a prediction's row."""
    from arelu_tl.models.tables import predictions_header, predictions_row
    from arelu_tl.records.csv_table import csv_lines

    sys.stdout.writelines(csv_lines([predictions_header(top)]))
    return lambda prediction: sys.stdout.writelines(csv_lines([predictions_row(prediction)]))
