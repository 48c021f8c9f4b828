"""arelu-tl export RUN: export a trained model in a format that does not need its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide
from arelu_tl.records.storage import refuse_executable, require_folder

_ONNX = "ONNX only"
_HUB = "Hugging Face Hub"


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run folder, one of its checkpoints, or a study, of which the best run is taken."
        ),
    ],
    format: Annotated[  # noqa: A002
        Literal["safetensors", "onnx", "pt2"],
        typer.Option(
            help="A folder for load_model (and timm, where it has such layers), or a file for "
            "onnxruntime or torch."
        ),
    ] = "safetensors",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder or file to write.",
            show_default="exports/RUN in the study, .onnx or .pt2 added",
        ),
    ] = None,
    fold: Annotated[
        bool,
        typer.Option(
            help="Fold gains (in a file, normalisations too) into the weights around them."
        ),
    ] = True,
    trainable: Annotated[
        bool,
        typer.Option(help="safetensors only: keep alpha and beta as learnt, to be trained on."),
    ] = False,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            help="Decoded pictures of any size (uint8, NHWC) in, probabilities out.",
            rich_help_panel=_ONNX,
        ),
    ] = False,
    quantize: Annotated[
        Literal["dynamic", "static"] | None,
        typer.Option(
            help="8 bits; static by the ranges seen on training pictures. The accuracy is "
            "measured.",
            rich_help_panel=_ONNX,
        ),
    ] = None,
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="16 bits. The accuracy is measured.", rich_help_panel=_ONNX),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Where the run's pictures are now, if not where they were.")
    ] = None,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Time it beside the baseline arm's export.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="Upload it to this USER/NAME, with a README.", rich_help_panel=_HUB),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="Let that repository be private.", rich_help_panel=_HUB),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Export a trained model with class names and preprocessing inside, proved to answer as the
    trained one does."""
    refuse_executable(run)
    require_folder(run)

    from arelu_tl.exporting.export import export as export_run
    from arelu_tl.exporting.tables import export_report
    from arelu_tl.render.console import Output

    output_ = Output(as_json=json, quiet=quiet, wide=wide)
    report = export_run(
        run, format, output,
        folding=fold, trainable=trainable, with_preprocessing=with_preprocessing,
        quantize=quantize, fp16=fp16,
        data=data, benchmark=benchmark, push_to_hub=push_to_hub, private=private,
        note=output_.note,
    )  # fmt: skip
    output_.report(*export_report(report), data=report.to_json())
