"""arelu-tl explain features RUN IMAGE: how both arms process one picture, as one figure."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.records.storage import refuse_executable, require_folder


def features(
    run: Annotated[
        Path,
        typer.Argument(help="A study, or a run folder; its relu partner is looked for beside it."),
    ],
    image: Annotated[Path, typer.Argument(help="A picture.")],
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Site to show, by name or glob, as --include takes them; may be repeated.",
            show_default="three, spread over the depth",
        ),
    ] = None,
    channels: Annotated[
        int,
        typer.Option(
            min=1,
            max=8,
            help="Channels of each site: those whose output varies most, in both arms.",
        ),
    ] = 4,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="Class to find evidence for.",
            show_default="what each arm predicts",
        ),
    ] = None,
    at: Annotated[
        Literal["start", "best"],
        typer.Option(
            help="Weights: the best checkpoints, or both arms as they were before training, built "
            "again from the run's pictures, which takes as long as the start of a training."
        ),
    ] = "best",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Picture to write.",
            show_default="features-IMAGE-HASH.png in the study",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Show one picture's maps before and after the activation in both arms, what attention does to
    them, and where each arm finds its answer."""
    refuse_executable(run)
    require_folder(run)
    if not image.is_file():
        raise DataError(
            f"{image}: {'a folder: name one picture' if image.is_dir() else 'no such picture'}"
        )
    if output is not None and (output.suffix.lower() != ".png" or output.is_dir()):
        raise ConfigError(f"--output {output}: name a file that ends in .png")

    from arelu_tl.explain.features.show import features_figure, features_report
    from arelu_tl.explain.features.study import explain_features
    from arelu_tl.records.storage import make_folder, write_bytes
    from arelu_tl.render.bar import PictureBar
    from arelu_tl.render.console import Output
    from arelu_tl.render.figures.canvas import png

    sink = Output(as_json=json, quiet=quiet, wide=wide)
    with PictureBar(sink, "checking pictures", hidden=at == "best") as bar:
        report = explain_features(
            run, image, site=site or (), channels=channels, label=class_, at=at, progress=bar
        )
    target = output or report.answers[0].run.parent / _page_name(image)
    make_folder(target.parent)
    write_bytes(target, png(features_figure(report)))
    sink.report(*features_report(report, target), data={**report.to_json(), "figure": str(target)})


def _page_name(image: Path) -> str:
    """A file name from the picture's name and path: pictures of several classes share names."""
    place = hashlib.sha256(os.fsencode(image.resolve())).hexdigest()[:6]
    return f"features-{image.stem[:40]}-{place}.png"
