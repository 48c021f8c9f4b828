"""Check a folder of pictures as finetune would, without training. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arelu_tl.data.cache import open_cache
from arelu_tl.data.folder import PictureFolder, scan_folder
from arelu_tl.data.similar import Copies
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.records.amounts import parse_size
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.records.csv_table import csv_text
from arelu_tl.records.storage import make_folder, require_room, write_json, write_text

REPORT, REJECTED, DUPLICATES = "check.json", "rejected.csv", "duplicates.csv"


@dataclass(frozen=True)
class Check:
    """The result of checking a folder.

    Attributes:
        root: the folder.
        folder: what was found; None if nothing could be scanned.
        problems: why finetune refuses the folder, one line each; empty if it accepts it.
    """

    root: Path
    folder: PictureFolder | None
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the content of check.json: that of dataset.json, and the verdict."""
        found = {} if self.folder is None else self.folder.to_json()
        return {
            "data": str(self.root),
            "accepted": not self.problems,
            "problems": self.problems,
            **found,
        }


def check_folder(
    config: FinetuneConfig,
    *,
    report: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Check:
    """Scan the pictures of ``config`` as ``finetune`` does, and collect all problems.

    Args:
        config: only its data settings are used.
        report: a folder to ignore if it lies inside the folder of pictures.
        progress: called with (pictures decoded, pictures in total).

    Raises:
        ConfigError: ``config`` names no folder.
        StorageError: the cache's folder cannot be made.
    """
    if config.data is None:
        raise ConfigError("no folder of pictures: arelu-tl check DATA")
    problems: list[str] = []
    with open_cache(config.cache, parse_size(config.cache_limit)) as cache:
        try:
            folder = scan_folder(
                config.data,
                config.scan(),
                leave_out=[config.output, *([report] if report is not None else [])],
                cache=cache,
                progress=progress,
                problems=problems,
            )
        except DataError as error:
            return Check(config.data, None, [*problems, str(error)])
    return Check(config.data, folder, problems)


def write_check(check: Check, folder: Path) -> list[Path]:
    """Write check.json, a table of undecodable files and a table of duplicates.

    Raises:
        StorageError: see ``require_room``, or a file cannot be written.
    """
    require_room(folder, REPORT)
    make_folder(folder)
    rejected = [] if check.folder is None else check.folder.rejected
    copies = [] if check.folder is None else check.folder.copies
    write_text(
        folder / REJECTED,
        csv_text(["path", "reason"], ([each.path, each.reason] for each in rejected)),
    )
    write_text(
        folder / DUPLICATES, csv_text(["group", "path", "split", "label", "same"], _rows(copies))
    )
    write_json(folder / REPORT, check.to_json())
    return [folder / name for name in (REPORT, REJECTED, DUPLICATES)]


def _rows(copies: list[Copies]) -> list[list[str]]:
    return [
        [str(number), path, split, label, "bytes" if group.exact else "looks"]
        for number, group in enumerate(copies, start=1)
        for path, split, label in zip(group.paths, group.splits, group.classes, strict=True)
    ]
