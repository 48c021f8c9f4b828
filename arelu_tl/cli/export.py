"""arelu-tl export RUN: a trained model as something that outlives the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, require_folder


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or a study, of which the best run is taken.")],
    format: Annotated[  # noqa: A002
        Literal["safetensors", "onnx"], typer.Option(help="A folder for load_model, or one file for onnxruntime.")
    ] = "safetensors",
    output: Annotated[
        Path | None, typer.Option(help="Folder or file to write.", show_default="exports/RUN in the study, .onnx added")
    ] = None,
    fold: Annotated[bool, typer.Option(help="With onnx: fold gains and normalisations into the weights around them.")] = True,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a run's best checkpoint with class names and preprocessing inside."""
    require_folder(run)

    from arelu_tl.render.console import Output, plain
    from arelu_tl.render.tables import export_report
    from arelu_tl.study.export import export as export_run

    output_ = Output(as_json=json, quiet=quiet)
    report = export_run(run, format, output, folding=fold, note=lambda text: output_.note(plain(text)))
    output_.report(export_report(report), data=report.to_json())
