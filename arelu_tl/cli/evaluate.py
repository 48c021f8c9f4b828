"""arelu-tl evaluate MODEL DATA: how good a trained model is on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide
from arelu_tl.errors import DataError
from arelu_tl.records.storage import require_folder


def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            help="A run folder, an exported folder, or an .onnx file, which needs no torch."
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of pictures, one folder a class; its val folder if it has one."
        ),
    ],
    split: Annotated[
        str | None, typer.Option(help="Folder of DATA to evaluate instead, as test.")
    ] = None,
    include_training: Annotated[
        bool,
        typer.Option(
            "--include-training", help="Count the pictures that the model was trained on, too."
        ),
    ] = False,
    layout: Annotated[
        Literal["auto", "flat", "split"],
        typer.Option(
            help="split: DATA/{train,val}/CLASS/*; flat: DATA/CLASS/*; auto: by what is there and "
            "the model's classes."
        ),
    ] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Pictures at a time.")
    ] = 32,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1, mps; the best there is when not given, cpu for an .onnx file."
        ),
    ] = None,
    on_bad_image: Annotated[
        Literal["error", "skip"],
        typer.Option(
            help="A picture that cannot be read is named and left out; with error the exit code "
            "is then 2."
        ),
    ] = "error",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for evaluation.json, predictions.csv, confusion.png and mistakes.png (the "
            "surest mistakes).",
            show_default="nothing is written",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Evaluate a trained model: accuracy, F1, calibration, each class's precision and recall,
    confusion matrix.

    Pictures that the model was trained on are known by their content, wherever they lie, and left
    out.
    """
    require_folder(data)

    from arelu_tl.data.gate import by_reason
    from arelu_tl.data.passed_over import PassedOver
    from arelu_tl.models.classifier import open_classifier
    from arelu_tl.models.evaluate import evaluate as evaluate_pictures
    from arelu_tl.models.tables import evaluation_report, rejected_line, training_line
    from arelu_tl.render.bar import PictureBar
    from arelu_tl.render.console import Output

    if output is not None:
        from arelu_tl.models.files import EVALUATION, write_evaluation
        from arelu_tl.records.storage import require_room

        require_room(output, EVALUATION)
    sink = Output(as_json=json, quiet=quiet, wide=wide)
    classifier = open_classifier(model, device)
    passed = PassedOver()
    with PictureBar(sink, "evaluating") as bar:
        report = evaluate_pictures(
            classifier, data, split=split, layout=layout, include_training=include_training,
            batch_size=batch_size, passed=passed, progress=bar,
            rejected=lambda each: sink.warn(*rejected_line(each)),
        )  # fmt: skip
    if text := training_line(report):
        # That training pictures were left out as they should be is no warning: --quiet hides it.
        (sink.warn if report.counted or report.gone else sink.note)(*text)
    if left := passed.line():
        sink.note(left)
    written = write_evaluation(report, output) if output is not None else []
    files = [f"wrote {', '.join(map(str, written))}"] if written else []
    sink.report(*evaluation_report(report), *files, data=report.to_json())
    if output is None:
        sink.note(
            "for the confusion matrix and the worst mistakes as pictures name a folder with "
            "--output"
        )
    if report.rejected and on_bad_image == "error":
        left_out = len(report.rejected)
        raise DataError(
            f"left out: {left_out} of {report.images + left_out} pictures "
            f"({by_reason(report.rejected)}); "
            "--on-bad-image skip lets it pass"
        )
