"""List the pictures of each class in a folder; a file is opened only if its name does not tell."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from arelu_tl.data.formats import is_picture
from arelu_tl.data.passed_over import PassedOver, is_litter
from arelu_tl.errors import DataError
from arelu_tl.records.runs import holds_results


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link that was met while listing pictures.

    Attributes:
        path: relative to the folder of pictures.
        leads: its target: "inside" or "outside" the folder of pictures, a folder that contains the
            link ("loop"), or a folder that has already been listed ("again").
        followed: whether its target is listed.
    """

    path: str
    leads: Literal["inside", "outside", "loop", "again"]
    followed: bool


@dataclass
class Listing:
    """The pictures of one split.

    Attributes:
        pictures: {class: paths relative to the folder of pictures, in natural order}.
        passed: everything else in the folder.
        links: every link that was met.
    """

    pictures: dict[str, list[str]] = field(default_factory=dict)
    passed: PassedOver = field(default_factory=PassedOver)
    links: list[Link] = field(default_factory=list)


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that orders "img2" before "img10".

    The text itself breaks ties, so the order is total.
    """
    parts = re.split(r"(\d+)", text.casefold())
    # int() accepts every Unicode decimal that \d matches.
    return [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts)], text


def list_split(
    root: Path, folder: Path, *, leave_out: Collection[Path] = (), follow_links: bool = False
) -> Listing:
    """List a split's folder, each class to any depth.

    No folder is listed twice, so the listing ends whatever links there are: a link to a folder that
    has been listed, or that contains the link, is passed over. So are folders of our own results,
    and system files.

    Args:
        root: the folder of pictures.
        folder: the split's folder: a folder in ``root``, or ``root`` itself.
        leave_out: folders for results, which are no class unless they contain pictures.
        follow_links: whether to follow links that lead out of ``root``.

    Raises:
        DataError: a folder cannot be read.
    """
    listing = Listing()
    walk = _Walk(root, listing, follow_links)
    results_go = {os.path.realpath(path) for path in leave_out}
    if folder != root and folder.is_symlink() and not walk.may_follow(str(folder)):
        return listing
    for entry in entries_of(folder):
        if is_litter(entry.name):
            listing.passed.litter.append(walk.relative(entry.path))
        elif is_folder(entry):
            listing.pictures[entry.name] = []
            walk.enter(entry.name, entry)
        elif is_picture(entry):
            listing.passed.loose.append(walk.relative(entry.path))
        else:
            listing.passed.others += 1
    walk.follow()
    for name, paths in list(listing.pictures.items()):
        paths.sort(key=natural_key)
        if not paths and (
            name in walk.with_results or os.path.realpath(folder / name) in results_go
        ):
            del listing.pictures[name]
    return listing


def list_all(folder: Path) -> Listing:
    """List every picture in ``folder`` and below, as the single class "".

    Links are followed, but no folder is listed twice.

    Raises:
        DataError: a folder cannot be read.
    """
    listing = Listing({"": []})
    walk = _Walk(folder, listing, follow_links=True)
    walk.all_of("", folder)
    walk.follow()
    listing.pictures[""].sort(key=natural_key)
    return listing


def holds_pictures(folder: Path) -> bool:
    """Whether ``folder`` or a folder below it has a picture that a listing would find.

    Links to folders are not followed.

    Raises:
        DataError: a folder cannot be read.
    """
    places = [folder]
    while places:
        entries = entries_of(places.pop())
        if holds_results([entry.name for entry in entries]):
            continue
        for entry in entries:
            if is_litter(entry.name):
                continue
            if not is_folder(entry):
                if is_picture(entry):
                    return True
            elif not entry.is_symlink():
                places.append(Path(entry.path))
    return False


class _Walk:
    """A walk that lists no folder twice; real folders come before links to them.

    Attributes:
        with_results: classes that contain folders of our own results.
    """

    def __init__(self, root: Path, listing: Listing, follow_links: bool) -> None:
        self._root, self._listing, self._follow = root, listing, follow_links
        self._real = Path(os.path.realpath(root))
        self._entered: set[tuple[int, int]] = set()
        self._links: deque[tuple[str, str]] = deque()
        self.with_results: set[str] = set()

    def enter(self, name: str, top: os.DirEntry[str]) -> None:
        """List a folder for the class ``name``; postpone it if it is a link."""
        if top.is_symlink():
            self._links.append((name, top.path))
        else:
            self._walk(name, [top.path])

    def all_of(self, name: str, folder: Path) -> None:
        """List ``folder`` for the class ``name``, even if it holds our own results.

        The user named this folder explicitly.
        """
        self._entered.add(_identity(folder))
        self._walk(name, self._list(name, entries_of(folder)))

    def follow(self) -> None:
        """List the targets of the postponed links."""
        while self._links:
            name, path = self._links.popleft()
            if self.may_follow(path):
                self._walk(name, [path])

    def _walk(self, name: str, places: list[str]) -> None:
        while places:
            place = places.pop()
            if (folder := _identity(place)) in self._entered:
                self._listing.links.append(Link(self.relative(place), "again", False))
                continue
            self._entered.add(folder)
            entries = entries_of(Path(place))
            if holds_results([entry.name for entry in entries]):
                self.with_results.add(name)
                self._listing.passed.results.append(self.relative(place))
            else:
                places += self._list(name, entries)

    def _list(self, name: str, entries: list[os.DirEntry[str]]) -> list[str]:
        """Add a folder's pictures, and return the folders in it."""
        folders = []
        for entry in entries:
            if is_litter(entry.name):
                self._listing.passed.litter.append(self.relative(entry.path))
            elif is_folder(entry):
                if entry.is_symlink():
                    self._links.append((name, entry.path))
                else:
                    folders.append(entry.path)
            elif not is_picture(entry):
                self._listing.passed.others += 1
            elif not entry.is_symlink() or self.may_follow(entry.path):
                self._listing.pictures[name].append(self.relative(entry.path))
        return folders

    def may_follow(self, path: str) -> bool:
        """Record where a link leads, and return whether to follow it."""
        target = Path(os.path.realpath(path))
        leads: Literal["inside", "outside", "loop", "again"] = "inside"
        if _leads_back(path, target):
            leads = "loop"
        elif target.is_dir() and _identity(target) in self._entered:
            leads = "again"
        elif not target.is_relative_to(self._real):
            leads = "outside"
        followed = leads == "inside" or (leads == "outside" and self._follow)
        self._listing.links.append(Link(self.relative(path), leads, followed))
        return followed

    def relative(self, path: str) -> str:
        """``path`` relative to the folder of pictures, with forward slashes."""
        return Path(path).relative_to(self._root).as_posix()


def _leads_back(path: str, target: Path) -> bool:
    """Whether a link leads to a folder that contains it, by any path, or into a circle of links."""
    # realpath resolves a circle of links as far as it can, and returns a link.
    return target.is_symlink() or Path(os.path.realpath(Path(path).parent)).is_relative_to(target)


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder in natural order.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: natural_key(entry.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {os.strerror(error.errno or 0)}") from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def same_letters(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that look the same but encode their accents differently."""
    return _groups(names, lambda name: unicodedata.normalize("NFC", name))


def same_but_for_case(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ in case.

    Names that differ only in the encoding of their accents do not form a group.
    """
    groups = _groups(names, lambda name: unicodedata.normalize("NFC", name).casefold())
    return [
        group for group in groups if len({unicodedata.normalize("NFC", name) for name in group}) > 1
    ]


def _groups(names: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]
