"""arelu-tl predict MODEL IMAGE...: labels and probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, require_folder


def predict(
    model: Annotated[Path, typer.Argument(help="A run folder or an exported folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    top: Annotated[int, typer.Option(min=1, help="Labels for each picture.")] = 3,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is when not given.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Label pictures with a trained model."""
    require_folder(model)

    from arelu_tl.render.console import Output
    from arelu_tl.render.tables import predictions_json, predictions_table
    from arelu_tl.study.use import predict as predict_pictures

    predictions = predict_pictures(model, images, top=top, device=device)
    Output(as_json=json, quiet=quiet).report(predictions_table(predictions), data=predictions_json(predictions))
