"""arelu-tl inspect MODEL: what surgery would do; trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide, with_config_options
from arelu_tl.errors import ConfigError
from arelu_tl.records.config import FinetuneConfig, check_config
from arelu_tl.records.storage import require_folder

_SHOWN = (
    "pretrained", "pretrained_path", "img_size", "arm", "init", "alpha", "beta", "include",
    "exclude", "granularity", "share_sites", "batchnorm", "drift_budget", "calibration_images",
)  # fmt: skip


@with_config_options(leave_out=set(FinetuneConfig.model_fields) - set(_SHOWN))
def inspect(
    settings: dict[str, Any],
    model: Annotated[
        str | None,
        typer.Argument(help="timm backbone: arch, arch.tag, hf-hub:USER/NAME or local-dir:PATH."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures to calibrate with and measure drift on.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw alpha0 by depth into this PNG file.")
    ] = None,
    list_supported: Annotated[
        bool, typer.Option(help="List timm's architectures that run a ReLU, and stop.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """List every ReLU site of a backbone, what surgery would do to it, and the drift it would
    cause."""
    if list_supported:
        _list_supported(model, as_json=json, wide=wide)
        return
    if model is None:
        raise ConfigError("name a MODEL, or ask for --list-supported")
    config = check_config({**settings, "model": model})
    if config.net == "relu":
        raise ConfigError(
            f"arm {config.arm} is the unmodified backbone: surgery has nothing to do to it"
        )
    if images is not None:
        require_folder(images)
    if plot is not None and not plot.absolute().parent.is_dir():
        raise ConfigError(f"--plot {plot}: there is no folder {plot.parent}")

    from arelu_tl.explain.sites.inspection import inspect_backbone
    from arelu_tl.explain.sites.show import inspection_report
    from arelu_tl.render.console import Output

    sink = Output(as_json=json, quiet=quiet, wide=wide)
    inspection = inspect_backbone(config, images, notify=sink.note)
    if plot is not None:
        from arelu_tl.explain.sites.plan_figure import draw_sites

        draw_sites(inspection.report, plot, title=model)
    parts = inspection_report(inspection, model, plot)
    sink.report(*parts, data={"model": model, **inspection.to_json()}, paged=True)


def _list_supported(pattern: str | None, *, as_json: bool, wide: bool) -> None:
    """Print all rows, or those whose name matches ``pattern``; imports neither torch nor timm."""
    from dataclasses import asdict
    from fnmatch import fnmatchcase

    from arelu_tl.explain.sites.survey_table import read_survey, survey_table
    from arelu_tl.render.console import Output, line

    release, rows = read_survey()
    wanted = "*" if pattern is None else pattern.partition(".")[0]  # without the weights' tag
    chosen = [row for row in rows if fnmatchcase(row.name, wanted)]
    if not chosen:
        raise ConfigError(f"no architecture of timm {release} that runs a ReLU matches {pattern!r}")
    total = (
        f"timm {release}, architectures that run a ReLU: {len(chosen)}; "
        f"refused: {sum(bool(r.refusal) for r in chosen)}"
    )
    Output(as_json=as_json, wide=wide).report(
        survey_table(chosen),
        line(total),
        data={"timm": release, "architectures": [asdict(row) for row in chosen]},
        paged=True,
    )
