"""arelu-tl export RUN: a trained model as a folder that outlives the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arelu_tl.cli.options import Debug, Json, Quiet


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format: Annotated[Literal["safetensors"], typer.Option(help="Kind of artefact.")] = "safetensors",  # noqa: A002
    output: Annotated[Path | None, typer.Option(help="Folder to write.", show_default="exports/RUN in the study")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a run's best checkpoint with class names and preprocessing inside."""
    from arelu_tl.render.console import Output, plain
    from arelu_tl.study.use import export as export_run

    report = export_run(run, format, output)
    told = f"wrote {plain(report.path)}: " + ", ".join(f"{name} ({size:,} bytes)" for name, size in report.files.items())
    data = {"path": str(report.path), "files": report.files, "sha256": report.sha256}
    Output(as_json=json, quiet=quiet).report(told, data=data)
