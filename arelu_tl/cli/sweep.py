"""arelu-tl sweep DATA: arms x learning rates x seeds, each trained once, then compared."""

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
from arelu_tl.records.config import GRID_KEYS, WHERE_KEYS, SweepConfig
from arelu_tl.records.storage import require_folder

_GRID_PANEL = "Grid"


@with_config_options(
    leave_out=["data", "arm", "lr", "seed", "baseline", *GRID_KEYS], model=SweepConfig
)
def sweep(
    settings: dict[str, Any],
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of pictures: ROOT/{train,val}/CLASS/* or ROOT/CLASS/*."),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Arms, separated by commas.",
            show_default="relu,arelu",
            rich_help_panel=_GRID_PANEL,
        ),
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option(help="Learning rates.", show_default="1e-4", rich_help_panel=_GRID_PANEL),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds.", show_default="0", rich_help_panel=_GRID_PANEL)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of these options; the command line wins."),
    ] = None,
    moved: Moved = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with the sweep in this study folder.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option(help="Train the runs that failed before once more.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Train a grid of arms, learning rates and seeds on one folder of pictures; go on where it was
    left, and compare."""
    data = one_folder(data, moved)
    if data is not None:
        require_folder(data)
    grid = {"data": data, "arms": arms, "lrs": lrs, "seeds": seeds}
    settings |= {key: value for key, value in grid.items() if value is not None}
    elsewhere = {*WHERE_KEYS, "data"}
    if resume is not None and (config or settings.keys() - elsewhere):
        given = ", ".join(
            ["config"] * bool(config) + [key for key in settings if key not in elsewhere]
        )
        raise ConfigError(
            f"--resume goes on with the sweep's own configuration; leave out: {given}"
        )
    if resume is None:
        merged = merge_config(config, settings, SweepConfig)
        if merged.data is None:
            raise ConfigError("no folder of pictures: arelu-tl sweep DATA")
        require_folder(merged.data)

    from arelu_tl.cli.study import run_sweep
    from arelu_tl.experiment.sweep import resumed_config
    from arelu_tl.render.console import Output

    if resume is not None:
        merged = resumed_config(resume, settings)
    run_sweep(merged, Output(as_json=json, quiet=quiet, wide=wide), retry_failed=retry_failed)
