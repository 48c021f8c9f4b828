"""arelu-tl check DATA: check a folder of pictures as finetune does.

Trains nothing and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arelu_tl.cli.options import (
    Debug,
    Json,
    Quiet,
    Wide,
    merge_config,
    with_config_options,
)
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.records.storage import require_folder
from arelu_tl.render.console import Shown, line, message
from arelu_tl.render.grid import Column, Grid

if TYPE_CHECKING:  # the command's help must not import them
    from arelu_tl.data.folder import PictureFolder
    from arelu_tl.data.similar import Copies
    from arelu_tl.experiment.check import Check

_SHOWN = (
    "train_split", "val_split", "layout", "val_fraction", "split_seed", "on_bad_image",
    "allow_duplicates", "follow_links", "cache", "cache_limit",
)  # fmt: skip


@with_config_options(leave_out=set(FinetuneConfig.model_fields) - set(_SHOWN))
def check(
    settings: dict[str, Any],
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of pictures: ROOT/{train,val}/CLASS/* or ROOT/CLASS/*."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of options; the command line wins."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for check.json, rejected.csv and duplicates.csv.",
            show_default="nothing is written",
            rich_help_panel="Output",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    wide: Wide = False,
    debug: Debug = False,
) -> None:
    """Check a folder of pictures as finetune does, and say all that it would refuse or warn of.

    The exit code is 2 if finetune would refuse the folder.
    """
    if data is not None:
        settings["data"] = data
    merged = merge_config(config, settings)
    if merged.data is None:
        raise ConfigError("no folder of pictures: arelu-tl check DATA")
    require_folder(merged.data)

    from arelu_tl.experiment.check import REPORT, check_folder, write_check
    from arelu_tl.records.storage import require_room
    from arelu_tl.render.bar import PictureBar
    from arelu_tl.render.console import Output

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
        raise DataError(
            f"{merged.data}: finetune would refuse it for {number} reason{'s' * (number != 1)}, "
            "told above"
        )


# Rows shown of classes, and of files and groups; the report's files list all of them.
_MOST = 40
_FEW = 10


def check_report(check: Check) -> list[Shown]:
    """Tables of the findings, then warnings, then finetune's reasons to refuse, if any."""
    parts: list[Shown] = []
    folder = check.folder
    if folder is not None:
        parts += [_classes_table(folder), ""]
        if folder.rejected:
            parts += [_rejected_table(folder), ""]
        if folder.copies:
            parts += [_copies_table(folder.copies), ""]
        if endings := folder.endings():
            parts.append(line(f"files: {endings}"))
        if passed := folder.passed.line():
            parts.append(line(passed))
        # The refusal below says it already.
        refused = any("`allow_duplicates`" in problem for problem in check.problems)
        warnings = [
            text for text in folder.warnings() if not (refused and "more than one split" in text)
        ]
        parts += [message(text, style="yellow") for text in warnings]
    parts += [message(("refused:", "red"), f" {problem}") for problem in check.problems]
    if not check.problems:
        parts.append(line(f"{check.root} can be trained on", style="green"))
    return parts


def _classes_table(folder: PictureFolder) -> Grid:
    counts = folder.counts()
    ours = ", split by us" if folder.layout == "flat" else ""
    table = Grid(
        [Column("class", "name"), *map(Column, counts)],
        title=f"{len(folder.classes)} classes{ours}",
    )
    # Of many classes, show the largest and the smallest.
    train = counts["train"]
    names = sorted(folder.classes, key=lambda name: -train.get(name, 0))
    shown = names if len(names) <= _MOST else [*names[: _MOST // 2], *names[-_MOST // 2 :]]
    order = {name: place for place, name in enumerate(folder.classes)}
    for name in sorted(shown, key=order.__getitem__) if len(shown) == len(names) else shown:
        table.add(name, *(str(counts[split].get(name, "·")) for split in counts))
    table.section()
    table.add("all", *(str(sum(counts[split].values())) for split in counts), style="bold")
    if len(shown) < len(names):
        table.caption = f"the largest and the smallest {_MOST // 2} classes"
    return table


def _rejected_table(folder: PictureFolder) -> Grid:
    title = f"{len(folder.rejected)} files that are no pictures{_first_few(folder.rejected)}"
    table = Grid([Column("file", "name"), Column("reason", "text")], title=title)
    for each in folder.rejected[:_FEW]:
        table.add(each.path, each.reason)
    return table


def _copies_table(copies: Sequence[Copies]) -> Grid:
    columns = [
        Column("files", "text"),
        Column("same", "text", gives_way=1),
        Column("where", "text"),
    ]
    table = Grid(
        columns, title=f"{len(copies)} pictures that stand more than once{_first_few(copies)}"
    )
    for group in copies[:_FEW]:
        files = " = ".join(group.paths[:4])
        more = f" and {len(group.paths) - 4} more" if len(group.paths) > 4 else ""
        where = (
            "several splits"
            if group.across_splits
            else "several classes"
            if group.across_classes
            else "one class"
        )
        table.add(files + more, "bytes" if group.exact else "looks", where)
    return table


def _first_few(rows: Sequence[object]) -> str:
    return f", the first {_FEW}" if len(rows) > _FEW else ""
