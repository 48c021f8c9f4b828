"""arelu-tl reproduce: the paper's activations on MNIST-Conv, or its transfer between digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from arelu_tl.cli.options import (
    Debug,
    Json,
    Quiet,
    Wide,
    merge_config,
    with_config_options,
)
from arelu_tl.errors import ConfigError
from arelu_tl.paper.config import GRID_KEYS, QUICK, TRANSFER, ReproduceConfig
from arelu_tl.records.config import check_config
from arelu_tl.records.storage import require_folder

_PANEL = "Grid"


@with_config_options(leave_out=GRID_KEYS, model=ReproduceConfig)
def reproduce(
    settings: dict[str, Any],
    activations: Annotated[
        str | None,
        typer.Option(
            help="Activations, separated by commas; silu is the paper's Swish.",
            show_default="all 19",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    opts: Annotated[
        str | None,
        typer.Option(
            help="Optimisers.", show_default="sgd,adam; with --transfer sgd", rich_help_panel=_PANEL
        ),
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option(
            help="Learning rates.",
            show_default="1e-2,1e-3,1e-4,1e-5; with --transfer 1e-5",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds, a training each.",
            show_default="0,1,2,3,4; with --transfer 0,1,2",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Fewer rates and one seed where none are given: minutes.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of these options; the command line wins."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", help="Go on with the reproduction in this study folder."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """The paper's MNIST-Conv comparison over all its activations: accuracy after the first epoch,
    table and curves."""
    grid = {"activations": activations, "opts": opts, "lrs": lrs, "seeds": seeds}
    settings |= {key: value for key, value in grid.items() if value is not None}
    if resume is not None and (config or quick or settings.keys() - {"jobs"}):
        given = ", ".join(
            [
                *["config"] * bool(config),
                *["quick"] * quick,
                *(key for key in settings if key != "jobs"),
            ]
        )
        raise ConfigError(
            f"--resume goes on with the reproduction's own configuration; leave out: {given}"
        )
    if resume is None:
        merged = merge_config(
            config, {**_defaults(config, settings, quick=quick), **settings}, ReproduceConfig
        )
        if merged.data is not None and not merged.download:
            require_folder(merged.data)

    from arelu_tl.paper.files import show_reproduction
    from arelu_tl.paper.reproduce import reproduce as run
    from arelu_tl.paper.reproduce import resumed
    from arelu_tl.paper.view import ReproductionView
    from arelu_tl.render.console import Output

    if resume is not None:
        begun = resumed(resume)
        place = {"output": begun.output, "name": begun.name}
        merged = check_config(
            {**begun.model_dump(exclude={"output", "name"}), **settings}, ReproduceConfig
        ).model_copy(update=place)
    output = Output(as_json=json, quiet=quiet, wide=wide)
    with ReproductionView(output) as view:
        path, merged, tasks = run(merged, watcher=view)
    show_reproduction(path, merged, tasks, output)


def _defaults(config: Path | None, settings: dict[str, Any], *, quick: bool) -> dict[str, Any]:
    """What --transfer and --quick set; with a configuration file, nothing."""
    if config is not None:
        if quick:
            raise ConfigError(
                "--quick chooses rates and seeds, and so does --config: leave out one of them"
            )
        return {}
    chosen = dict(TRANSFER) if settings.get("transfer") else {}
    # A transfer already has a single rate.
    return {**QUICK, **chosen, "seeds": QUICK["seeds"]} if quick else chosen
