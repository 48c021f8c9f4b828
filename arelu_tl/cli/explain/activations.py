"""arelu-tl explain activations [RUN]: what every site learnt, or the catalogue's activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide
from arelu_tl.errors import ConfigError
from arelu_tl.records.storage import require_folder


def activations(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run folder (its best weights) or one of its checkpoints; without it the "
            "catalogue."
        ),
    ] = None,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="The catalogue's shapes and derivatives.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for activations.png and activations.json, or gallery.png.",
            show_default="RUN/explain; for the catalogue: explain",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Draw every site's learnt activation beside its initial one; without a RUN, all activations of
    the catalogue."""
    if gallery and run is not None:
        raise ConfigError("--gallery shows the catalogue and takes no RUN: leave out one of them")
    if run is not None:
        require_folder(run)

    from arelu_tl.explain.activations.show import (
        curves_report,
        gallery_report,
        write_curves,
        write_gallery,
    )
    from arelu_tl.explain.activations.study import catalogue_shapes, run_curves
    from arelu_tl.render.console import Output

    sink = Output(as_json=json, quiet=quiet, wide=wide)
    if run is None:
        shapes = catalogue_shapes()
        written = write_gallery(shapes, output or Path("explain"))
        sink.report(
            *gallery_report(shapes, written), data={"shapes": [shape.to_json() for shape in shapes]}
        )
        return

    from arelu_tl.models.run_pictures import run_of
    from arelu_tl.records.runs import is_run, load_run
    from arelu_tl.render.figures.sites import read_site_values

    curves = run_curves(run)
    record = load_run(run if is_run(run) else run_of(run))
    title = (
        f"{curves.model}, {record.path.name}: the activation at each of {len(curves.sites)} sites"
    )
    written = write_curves(
        curves, read_site_values(record), output or record.path / "explain", title
    )
    sink.report(*curves_report(curves, written), data=curves.to_json(), paged=True)
