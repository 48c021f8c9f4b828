"""arelu-tl demo: fine-tune the embedded backbone on real digits, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide


def demo(
    output: Annotated[Path, typer.Option(help="Folder that the study folder is made in.")] = Path(
        "runs"
    ),
    data: Annotated[Path, typer.Option(help="Folder that the digits are written to.")] = Path(
        "demo-data"
    ),
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = 6,
    seed: Annotated[
        int, typer.Option(help="Seed of head initialisation, order and augmentation.")
    ] = 0,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Fine-tune the embedded backbone on real MNIST digits, AReLU beside ReLU: no network, minutes
    on two cores."""
    from arelu_tl.records.config import check_config

    given = {"lr": lr, "epochs": epochs, "seed": seed, "output": output, "name": "demo"}
    check_config(given)  # before digits are written

    from arelu_tl.cli.study import run_study
    from arelu_tl.data.digits import DEMO_SETTINGS, write_digits
    from arelu_tl.render.console import Output
    from arelu_tl.training.distributed import leads_here

    if leads_here():
        write_digits(data)
    run_study(
        check_config({**DEMO_SETTINGS, **given, "data": data}),
        None,
        Output(as_json=json, quiet=quiet, wide=wide),
    )
