"""arelu-tl explain gradients RUN|MODEL [DATA]: whether gradients vanish, in both arms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide, with_config_options
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.explain.gradients.report import THRESHOLD
from arelu_tl.records import runs
from arelu_tl.records.config import check_config
from arelu_tl.records.storage import require_folder

_NOT_ASKED = (
    "data", "model", "baseline", "model_ema", "model_ema_decay", "patience", "eval_every",
    "compile", "grad_checkpointing", "sync_bn", "output", "name", "save_every", "save_epochs",
    "tensorboard",
)  # fmt: skip


@with_config_options(leave_out=_NOT_ASKED)
def gradients(
    settings: dict[str, Any],
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run, whose partner is looked for beside it, a study of one pair, or a timm "
            "backbone to train a little.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of pictures: ROOT/{train,val}/CLASS/* or ROOT/CLASS/*; a run knows its "
            "own."
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            min=1, help="Optimiser steps that MODEL is trained for, measured at four points."
        ),
    ] = 24,
    batches: Annotated[
        int, typer.Option(min=1, help="Training batches that each point is measured on.")
    ] = 4,
    threshold: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of a site's rms gradient, up to which an element counts as vanished.",
        ),
    ] = THRESHOLD,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for gradients.png and gradients.json.",
            show_default="RUN/explain; for a MODEL: explain",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Measure norm and vanishing share of the gradients by depth, at the start and along training,
    in both arms.

    An element of a gradient counts as vanished where it is at most --threshold of its own site's
    root mean square. Both arms see the same batches, in training mode; neither their weights nor
    their statistics are changed by measuring.
    """
    path = Path(run)
    trained = runs.is_run(path) or runs.is_study(path)
    if trained and (foreign := sorted(set(settings) - {"device"})):
        raise ConfigError(f"{run} has its own configuration; leave out: {', '.join(foreign)}")
    if not trained and data is None:
        if path.exists() or ("/" in run and ":" not in run):
            raise DataError(
                f"{run} is neither a run nor a study (for a backbone: arelu-tl explain gradients "
                "MODEL DATA)"
            )
        raise DataError(f"no folder of pictures: arelu-tl explain gradients {run} DATA")
    if data is not None:
        require_folder(data)
    config = None if trained else check_config({**settings, "model": run, "data": data})

    from arelu_tl.cli.progress import StudyView
    from arelu_tl.explain.gradients.report import found_in_gradients
    from arelu_tl.explain.gradients.show import gradients_report, write_gradients
    from arelu_tl.explain.gradients.study import gradients_of_run, gradients_of_training
    from arelu_tl.render.console import Output

    sink = Output(as_json=json, quiet=quiet, wide=wide)
    with StudyView(sink) as view:
        measured: dict[str, Any] = {"batches": batches, "threshold": threshold, "observer": view}
        if config is not None:
            report = gradients_of_training(config, steps=steps, **measured)
        else:
            report = gradients_of_run(path, data, device=settings.get("device"), **measured)
    written = write_gradients(report, output or (path / "explain" if trained else Path("explain")))
    sink.report(*gradients_report(report, written), data=report.to_json(found_in_gradients(report)))
