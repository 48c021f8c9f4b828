"""What lies in a folder of pictures and is none of them: our own results, what systems leave there, and other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Of systems, their networks' disks and their programs; in lower case. Hidden ones need no name here.
_LITTER = frozenset({
    "__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler", "system volume information",
    "lost+found", "found.000", "__pycache__", "icon\r", "thumbs.db", "thumbs.db:encryptable", "ehthumbs.db",
    "ehthumbs_vista.db", "desktop.ini", "picasa.ini",
})  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or one that a system makes for itself."""
    return name.startswith(".") or name.lower() in _LITTER


@dataclass
class PassedOver:
    """Attributes:
    results: folders of our own results.
    litter: hidden files and folders, and those that systems make for themselves.
    loose: pictures that lie beside the folders of classes.
    others: how many other files are no pictures.
    """

    results: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    others: int = 0

    def add(self, more: PassedOver) -> None:
        self.results += more.results
        self.litter += more.litter
        self.loose += more.loose
        self.others += more.others

    def below(self, folder: Path) -> PassedOver:
        """The same with paths that begin with ``folder``."""
        results, litter, loose = ([str(folder / path) for path in paths] for paths in (self.results, self.litter, self.loose))
        return PassedOver(results, litter, loose, self.others)

    def line(self) -> str:
        """All of it in one line; "" where there is nothing."""
        parts = [
            f"{counted(len(paths), one, many)} ({some(paths)})"
            for paths, one, many in (
                (self.results, "folder of arelu-tl's own results", "folders of arelu-tl's own results"),
                (self.loose, "picture in no class folder", "pictures in no class folder"),
                (self.litter, "hidden or system file or folder", "hidden or system files and folders"),
            )
            if paths
        ]
        if self.others:
            parts.append(counted(self.others, "other file, no picture", "other files, no pictures"))
        return f"passed over: {'; '.join(parts)}" if parts else ""

    def to_json(self) -> dict[str, Any]:
        """All but ``others``; of the litter only how much."""
        return {"results": self.results, "loose": self.loose, "litter": len(self.litter)}


def counted(number: int, one: str, many: str = "") -> str:
    """``number`` and what it is a number of; ``many`` where an s at the end does not do."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def some(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
