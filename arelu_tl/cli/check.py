"""arelu-tl check DATA: look at a folder of pictures as finetune does; trains nothing, imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from arelu_tl.cli.options import Debug, Json, Quiet, Wide, merge_config, require_folder, with_config_options
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.records.config import FinetuneConfig

_SHOWN = (
    "train_split", "val_split", "layout", "val_fraction", "split_seed", "on_bad_image", "allow_duplicates", "follow_links",
    "cache", "cache_limit",
)  # fmt: skip


@with_config_options(leave_out=set(FinetuneConfig.model_fields) - set(_SHOWN))
def check(
    settings: dict[str, Any],
    data: Annotated[Path | None, typer.Argument(help="Folder of pictures: ROOT/{train,val}/CLASS/* or ROOT/CLASS/*.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of options; the command line wins.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for check.json, rejected.csv and duplicates.csv.", show_default="nothing is written",
            rich_help_panel="Output",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Check a folder of pictures as finetune does, and say all that it would refuse or warn of.

    The exit code is 2 where finetune would refuse the folder.
    """
    if data is not None:
        settings["data"] = data
    merged = merge_config(config, settings)
    if merged.data is None:
        raise ConfigError("no folder of pictures: arelu-tl check DATA")
    require_folder(merged.data)

    from arelu_tl.records.storage import require_room
    from arelu_tl.render.bar import PictureBar
    from arelu_tl.render.check import check_report
    from arelu_tl.render.console import Output
    from arelu_tl.study.check import REPORT, check_folder, write_check

    if output is not None:
        require_room(output, REPORT)
    sink = Output(as_json=json, quiet=quiet, wide=wide)
    with PictureBar(sink, "checking pictures") as bar:
        found = check_folder(merged, report=output, progress=bar)
    written = write_check(found, output) if output is not None else []
    files = [f"wrote {', '.join(map(str, written))}"] if written else []
    sink.report(*check_report(found), *files, data=found.to_json())
    if found.problems:
        number = len(found.problems)
        raise DataError(f"{merged.data}: finetune would refuse it for {number} reason{'s' * (number != 1)}, told above")
