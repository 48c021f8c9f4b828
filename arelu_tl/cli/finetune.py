"""arelu-tl finetune DATA: train the arm beside its baseline and show which converged faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from arelu_tl.cli.options import (
    Debug,
    Json,
    Moved,
    Quiet,
    Wide,
    merge_config,
    one_folder,
    with_config_options,
)
from arelu_tl.errors import ConfigError
from arelu_tl.records.storage import require_folder


@with_config_options(leave_out=["data"])
def finetune(
    settings: dict[str, Any],
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of pictures: ROOT/{train,val}/CLASS/* or ROOT/CLASS/*."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of these options; the command line wins."),
    ] = None,
    moved: Moved = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with an interrupted study folder.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a backbone with AReLU in place of every ReLU, beside the unmodified one, on a
    folder of pictures."""
    data = one_folder(data, moved)
    if resume is not None and (settings or config):
        given = ", ".join(["config"] * bool(config) + list(settings))
        raise ConfigError(
            f"--resume goes on with the study's own configuration; leave out: {given}"
        )
    if data is not None:
        require_folder(data)
        settings["data"] = data
    merged = merge_config(config, settings) if resume is None else None
    if merged is not None:
        if merged.data is None:
            raise ConfigError("no folder of pictures: arelu-tl finetune DATA")
        require_folder(merged.data)

    from arelu_tl.cli.study import run_study
    from arelu_tl.render.console import Output

    run_study(merged, resume, Output(as_json=json, quiet=quiet, wide=wide), moved=data)
