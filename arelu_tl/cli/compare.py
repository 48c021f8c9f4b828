"""arelu-tl compare RUN...: arms side by side from their folders; trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arelu_tl.cli.options import Debug, Json, Quiet


def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, studies, or folders of studies.")],
    target: Annotated[
        float | None, typer.Option(help="Validation accuracy for steps-to-target.", show_default="95% of the baseline's best")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare runs that differ in nothing but the arm."""
    from arelu_tl.analysis import compare as compare_paths
    from arelu_tl.errors import ConfigError

    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target {target:g}: an accuracy lies between 0 and 1")
    comparison = compare_paths(paths, target=target)

    from arelu_tl.render.console import Output
    from arelu_tl.render.tables import comparison_report

    Output(as_json=json, quiet=quiet).report(comparison_report(comparison), data=comparison.to_json())
