"""arelu-tl compare PATH...: what the results of finished or running runs show; trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide
from arelu_tl.errors import ConfigError, GateError


def compare(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Runs, studies, or folders of studies.")
    ],
    target: Annotated[
        float | None,
        typer.Option(
            help="Validation accuracy for steps-to-target.",
            show_default="95% of the baseline's best",
        ),
    ] = None,
    allow_difference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Compare although this setting (or dataset, head_init, weights, order) differs.",
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="slower|worse",
            help="Exit with 1 if an arm is slower than relu at some rate, or worse at its best.",
        ),
    ] = None,
    one_seed: Annotated[
        bool,
        typer.Option(
            "--one-seed",
            help="Let --fail-if take one run's word, which another seed may not bear out.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report.", show_default="PATH, where there is one that is no run"
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option(help="Write comparison.json, the figures and report.html.")
    ] = True,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Compare runs that differ in nothing but the arm: statistics, verdicts, figures, and a page to
    hand on."""
    from arelu_tl.analysis.comparison import compare_runs
    from arelu_tl.records.runs import find_runs, is_run

    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target {target:g}: an accuracy lies between 0 and 1")
    if strange := set(fail_if or ()) - {"slower", "worse"}:
        raise ConfigError(f"--fail-if {', '.join(sorted(strange))}: slower or worse")
    if one_seed and not fail_if:
        raise ConfigError("--one-seed is for --fail-if; name it as well")
    if output is not None and not report:
        raise ConfigError("--output is where the report goes; leave out --no-report")
    for path in paths:
        _require_one_study(path)
    runs = find_runs(*paths)
    comparison = compare_runs(
        runs, target=target, allow_difference=frozenset(allow_difference or ())
    )

    from arelu_tl.cli.reporting import show_comparison
    from arelu_tl.render.console import Output

    # The report of a part of a study must not overwrite the report of the whole study.
    place = output or (paths[0] if len(paths) == 1 and not is_run(paths[0]) else None)
    sink = Output(as_json=json, quiet=quiet, wide=wide)
    show_comparison(comparison, runs, place if report else None, sink)
    if report and place is None:
        sink.note("for figures and report.html name a folder with --output")
    if failed := comparison.failing(fail_if or (), one_seed=one_seed):
        raise GateError(f"--fail-if: {'; '.join(failed)}")
    # To pass here would look like an answer.
    if not one_seed and (unknown := comparison.of_one_seed(fail_if or ())):
        asked = f"--fail-if {' --fail-if '.join(dict.fromkeys(fail_if or ()))}"
        raise ConfigError(
            f"{asked}: one seed cannot gate ({'; '.join(unknown)}); add seeds, or insist with "
            "--one-seed"
        )


def _require_one_study(path: Path) -> None:
    """Refuse a reproduction of several studies.

    Raises:
        ConfigError: ``path`` is a reproduction, whose studies differ in more than the arm.
    """
    from arelu_tl.paper import config as reproduction
    from arelu_tl.records.runs import is_study

    studies = (
        sorted(p for p in path.iterdir() if is_study(p))
        if (path / reproduction.CONFIG).is_file()
        else []
    )
    if len(studies) > 1:
        raise ConfigError(
            f"{path} holds a study for each optimiser or direction; compare "
            f"{' or '.join(map(str, studies))}"
        )
