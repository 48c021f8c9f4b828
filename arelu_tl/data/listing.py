"""Which files of a folder are pictures of which class, in either layout; no file is opened."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from arelu_tl.data.decode import PICTURE_ENDINGS
from arelu_tl.errors import DataError

VAL_NAMES = ("val", "valid", "validation")
OTHER_SPLITS = ("test", "testing")


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link on the way to pictures.

    Attributes:
        path: relative to the folder of pictures.
        leads: where to: "inside" the folder of pictures, "outside" it, back to a folder that it lies in ("loop"), or to one that
            has been listed already ("again").
        followed: whether what it leads to is listed.
    """

    path: str
    leads: Literal["inside", "outside", "loop", "again"]
    followed: bool


@dataclass
class Listing:
    """One split.

    Attributes:
        pictures: {class: paths relative to the folder of pictures, in natural order}.
        ignored: how many files were no pictures by name.
        links: every link that was met.
    """

    pictures: dict[str, list[str]] = field(default_factory=dict)
    ignored: int = 0
    links: list[Link] = field(default_factory=list)


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which "img2" comes before "img10"; the text itself breaks ties, so that the order is total."""
    parts = re.split(r"(\d+)", text.casefold())
    # int() takes any Unicode decimal that \d matches.
    return [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts)], text


def require_folder(root: Path) -> None:
    """
    Raises:
        DataError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")


def find_splits(root: Path, train_split: str, val_split: str | None) -> tuple[Literal["split", "flat"], dict[str, Path]]:
    """The layout of ``root``, and {"train", "val" and "test": the split's folder}, the latter two where there are any.

    Raises:
        DataError: a folder that was named, or that the layout needs, is not there.
    """
    train = child(root, (train_split,)) or (child(root, ("training",)) if train_split == "train" else None)
    if train is None:
        if val_split is not None or train_split != "train":
            raise DataError(f"{root}: no folder {train_split!r} in it")
        split_like = child(root, VAL_NAMES + OTHER_SPLITS)
        if split_like is not None and any(p.is_dir() for p in split_like.iterdir()):
            raise DataError(f"{root}: has {split_like.name!r} but no 'train': name the training folder with --train-split")
        return "flat", {"train": root}
    folders = {"train": train}
    candidates = (val_split,) if val_split is not None else VAL_NAMES
    if val_split is not None and child(root, (val_split,)) == train:
        raise DataError(f"{root}: {train_split!r} cannot be training and validation at once")
    val = next((found for name in candidates if (found := child(root, (name,))) is not None and found != train), None)
    if val is not None:
        folders["val"] = val
    elif val_split is not None:
        raise DataError(f"{root}: no folder {val_split!r} in it")
    test = child(root, OTHER_SPLITS)
    if test is not None and test not in folders.values():
        folders["test"] = test
    return "split" if val is not None else "flat", folders


def child(root: Path, names: Sequence[str]) -> Path | None:
    """The folder in ``root`` that has one of the names, exactly or but for upper and lower case."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    folded = {name.casefold() for name in names}
    return next((p for p in sorted(root.iterdir()) if p.name.casefold() in folded and p.is_dir()), None)


def list_split(root: Path, folder: Path, *, leave_out: Collection[Path] = (), follow_links: bool = False) -> Listing:
    """List a split's folder, each class to any depth.

    No folder is listed twice, so that the listing ends whatever links there are: where a link leads to one that has been, or
    back to one that it lies in, it is passed over.

    Args:
        root: the folder of pictures.
        folder: in it, or it itself.
        leave_out: folders that are no class wherever they lie.
        follow_links: whether to follow those that lead out of ``root``.

    Raises:
        DataError: a folder cannot be read.
    """
    listing = Listing()
    walk = _Walk(root, listing, follow_links)
    passed_over = {os.path.realpath(path) for path in leave_out}
    if folder != root and folder.is_symlink() and not walk.may_follow(str(folder)):
        return listing
    for entry in _entries(folder):
        if os.path.realpath(entry.path) in passed_over:
            continue
        if entry.name.startswith(".") or not _is_folder(entry):
            listing.ignored += 1
        else:
            listing.pictures[entry.name] = []
            walk.enter(entry.name, entry)
    walk.follow()
    for paths in listing.pictures.values():
        paths.sort(key=natural_key)
    return listing


class _Walk:
    """Lists folders, none of them twice; what is a folder of its own before links to it are."""

    def __init__(self, root: Path, listing: Listing, follow_links: bool) -> None:
        self._root, self._listing, self._follow = root, listing, follow_links
        self._real = Path(os.path.realpath(root))
        self._entered: set[tuple[int, int]] = set()
        self._links: deque[tuple[str, str]] = deque()

    def enter(self, name: str, top: os.DirEntry[str]) -> None:
        """List a folder for the class ``name``, or keep it for later where it is a link."""
        if top.is_symlink():
            self._links.append((name, top.path))
        else:
            self._walk(name, top.path)

    def follow(self) -> None:
        """List what the links lead to."""
        while self._links:
            name, path = self._links.popleft()
            if self.may_follow(path):
                self._walk(name, path)

    def _walk(self, name: str, top: str) -> None:
        places = [top]
        while places:
            place = places.pop()
            if (folder := _identity(place)) in self._entered:
                self._listing.links.append(Link(self._relative(place), "again", False))
                continue
            self._entered.add(folder)
            for entry in _entries(Path(place)):
                is_folder = _is_folder(entry)
                if entry.name.startswith("."):
                    # What is in a hidden folder is nobody's business; the folder itself is no file.
                    self._listing.ignored += not is_folder
                elif is_folder and entry.is_symlink():
                    self._links.append((name, entry.path))
                elif is_folder:
                    places.append(entry.path)
                elif Path(entry.name).suffix.lower() not in PICTURE_ENDINGS:
                    self._listing.ignored += 1
                elif not entry.is_symlink() or self.may_follow(entry.path):
                    self._listing.pictures[name].append(self._relative(entry.path))

    def may_follow(self, path: str) -> bool:
        """Note where a link leads, and whether it is followed."""
        target = Path(os.path.realpath(path))
        leads: Literal["inside", "outside", "loop", "again"] = "inside"
        if _leads_back(path, target):
            leads = "loop"
        elif target.is_dir() and _identity(target) in self._entered:
            leads = "again"
        elif not target.is_relative_to(self._real):
            leads = "outside"
        followed = leads == "inside" or (leads == "outside" and self._follow)
        self._listing.links.append(Link(self._relative(path), leads, followed))
        return followed

    def _relative(self, path: str) -> str:
        return Path(path).relative_to(self._root).as_posix()


def _leads_back(path: str, target: Path) -> bool:
    """Whether a link leads to a folder that it lies in, by whatever way, or in a circle of links."""
    # A circle is resolved as far as it can be.
    return target.is_symlink() or Path(os.path.realpath(Path(path).parent)).is_relative_to(target)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: natural_key(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {os.strerror(error.errno or 0)}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino
