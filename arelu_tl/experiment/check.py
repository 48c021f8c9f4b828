"""The data gate by itself: all that finetune would say about a folder of pictures. Imports no torch."""

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
from arelu_tl.records.config import FinetuneConfig, scan_settings
from arelu_tl.records.csv_table import csv_text
from arelu_tl.records.storage import make_folder, require_room, write_json, write_text

REPORT, REJECTED, DUPLICATES = "check.json", "rejected.csv", "duplicates.csv"


@dataclass(frozen=True)
class Check:
    """Attributes:
    root: the folder.
    folder: what was found; None where there is nothing that could be looked at.
    problems: why finetune refuses the folder, one line each; none where it does not.
    """

    root: Path
    folder: PictureFolder | None
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Content of check.json: what dataset.json would say, and the verdict."""
        found = {} if self.folder is None else self.folder.to_json()
        return {"data": str(self.root), "accepted": not self.problems, "problems": self.problems, **found}


def check_folder(
    config: FinetuneConfig, *, report: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Check:
    """Look at the pictures of ``config`` as ``finetune`` does, and gather all that stands against them.

    Args:
        config: its data settings are used.
        report: a folder that is no class where it lies among the pictures.
        progress: called with (pictures decoded, pictures in all).

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
                **scan_settings(config),
                leave_out=[config.output, *([report] if report is not None else [])],
                cache=cache,
                progress=progress,
                problems=problems,
            )
        except DataError as error:
            return Check(config.data, None, [*problems, str(error)])
    return Check(config.data, folder, problems)


def write_check(check: Check, folder: Path) -> list[Path]:
    """Write check.json, and a table each of the files that cannot be decoded and of those that show one picture.

    Raises:
        StorageError: see ``require_room``, or the disk refuses.
    """
    require_room(folder, REPORT)
    make_folder(folder)
    rejected = [] if check.folder is None else check.folder.rejected
    copies = [] if check.folder is None else check.folder.copies
    write_text(folder / REJECTED, csv_text(["path", "reason"], ([each.path, each.reason] for each in rejected)))
    write_text(folder / DUPLICATES, csv_text(["group", "path", "split", "label", "same"], _rows(copies)))
    write_json(folder / REPORT, check.to_json())
    return [folder / name for name in (REPORT, REJECTED, DUPLICATES)]


def _rows(copies: list[Copies]) -> list[list[str]]:
    return [
        [str(number), path, split, label, "bytes" if group.exact else "looks"]
        for number, group in enumerate(copies, start=1)
        for path, split, label in zip(group.paths, group.splits, group.classes, strict=True)
    ]
