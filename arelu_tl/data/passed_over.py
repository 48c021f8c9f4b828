"""Files in a folder of pictures that are not used: our own results, system files, other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Made by systems, network disks and programs; in lower case. Hidden files need no entry here.
_LITTER = frozenset({
    "__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "found.000", "__pycache__", "icon\r", "thumbs.db",
    "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini",
})  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden or made by a system."""
    return name.startswith(".") or name.lower() in _LITTER


@dataclass
class PassedOver:
    """What a listing has passed over.

    Attributes:
        results: folders of our own results.
        litter: hidden files and folders, and those made by systems.
        loose: pictures beside the class folders.
        others: number of other files, which are no pictures.
    """

    results: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    others: int = 0

    def add(self, more: PassedOver) -> None:
        """Add everything in ``more``."""
        self.results += more.results
        self.litter += more.litter
        self.loose += more.loose
        self.others += more.others

    def below(self, folder: Path) -> PassedOver:
        """A copy whose paths begin with ``folder``."""
        results, litter, loose = (
            [str(folder / path) for path in paths]
            for paths in (self.results, self.litter, self.loose)
        )
        return PassedOver(results, litter, loose, self.others)

    def line(self) -> str:
        """A summary in one line; "" if nothing was passed over."""
        parts = [
            f"{counted(len(paths), one, many)} ({some(paths)})"
            for paths, one, many in (
                (
                    self.results,
                    "folder of arelu-tl's own results",
                    "folders of arelu-tl's own results",
                ),
                (self.loose, "picture in no class folder", "pictures in no class folder"),
                (
                    self.litter,
                    "hidden or system file or folder",
                    "hidden or system files and folders",
                ),
            )
            if paths
        ]
        if self.others:
            parts.append(counted(self.others, "other file, no picture", "other files, no pictures"))
        return f"passed over: {'; '.join(parts)}" if parts else ""

    def to_json(self) -> dict[str, Any]:
        """All but ``others`` as JSON data; of ``litter`` only the number."""
        return {"results": self.results, "loose": self.loose, "litter": len(self.litter)}


def counted(number: int, one: str, many: str = "") -> str:
    """``number`` with its noun; ``many`` is a plural that is not formed with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
