"""arelu-tl inspect MODEL: what surgery would do; trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from arelu_tl.cli.options import Debug, Json, Quiet


def inspect(
    model: Annotated[str, typer.Argument(help="timm backbone: arch, arch.tag, hf-hub:USER/NAME or local-dir:PATH.")],
    pretrained: Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="Load the pretrained weights.")] = True,
    pretrained_path: Annotated[Path | None, typer.Option(help="Weights from a file instead.")] = None,
    img_size: Annotated[int | None, typer.Option(help="Side of the input in pixels.")] = None,
    init: Annotated[Literal["calibrated", "paper", "near-relu"], typer.Option(help="How AReLU starts.")] = "calibrated",
    alpha: Annotated[float | None, typer.Option(help="Initial alpha.")] = None,
    beta: Annotated[float | None, typer.Option(help="Initial beta.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Replace only sites that match these globs.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave sites that match these globs.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures to calibrate with and measure drift on.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List every ReLU site of a backbone, what surgery would do to it, and the drift it would cause."""
    from arelu_tl.records.config import FinetuneConfig, check_config

    given = {
        "model": model, "pretrained": pretrained, "pretrained_path": pretrained_path, "img_size": img_size,
        "init": init, "alpha": alpha, "beta": beta, "include": include or [], "exclude": exclude or [],
    }  # fmt: skip
    config: FinetuneConfig = check_config(given)

    from arelu_tl.render.console import Output, plain
    from arelu_tl.render.progress import describe_drift
    from arelu_tl.render.tables import sites_table
    from arelu_tl.study.inspection import inspect_backbone

    report, weights = inspect_backbone(config, images)
    total = (
        f"{plain(model)} (weights: {plain(weights)}): {report.replaced} of {len(report.sites)} sites would be replaced, "
        f"{report.parameters_added} parameters added"
    )
    drift = f"init {report.init}: {describe_drift(report)}" + ("" if images else "; give --images FOLDER to measure it")
    Output(as_json=json, quiet=quiet).report(sites_table(report), total, drift, data={"model": model, **report.to_json()})
