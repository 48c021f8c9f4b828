"""arelu-tl evaluate MODEL DATA: accuracy of a trained model on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, require_folder


def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder or an exported folder.")],
    data: Annotated[Path, typer.Argument(help="Folder of pictures, one folder a class; its val folder if it has one.")],
    split: Annotated[str | None, typer.Option(help="Folder of DATA to evaluate instead, as test.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures at a time.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is when not given.")] = None,
    on_bad_image: Annotated[Literal["error", "skip"], typer.Option(help="What to do with an undecodable picture.")] = "error",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a trained model: accuracy, per-class precision and recall, confusion matrix."""
    require_folder(model)
    require_folder(data)

    from arelu_tl.render.console import Output
    from arelu_tl.render.progress import StudyView
    from arelu_tl.render.tables import evaluation_report
    from arelu_tl.study.use import evaluate_folder

    output = Output(as_json=json, quiet=quiet)
    with StudyView(output) as view:
        report = evaluate_folder(
            model, data, split=split, batch_size=batch_size, device=device, on_bad_image=on_bad_image,
            progress=view.checking_pictures,
        )  # fmt: skip
    output.report(evaluation_report(report), data=report.to_json())
