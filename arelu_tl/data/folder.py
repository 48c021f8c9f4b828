"""Scan a folder of pictures: layout, class map, decoding check, split, copies, fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from arelu_tl.data.gate import Rejected, by_reason, check_pictures, hash_pictures
from arelu_tl.data.layout import find_evaluated, find_splits
from arelu_tl.data.listing import (
    Link,
    Listing,
    list_split,
    natural_key,
    same_but_for_case,
    same_letters,
)
from arelu_tl.data.passed_over import PassedOver, counted, some
from arelu_tl.data.recipe import Recipe
from arelu_tl.data.similar import Copies, find_copies, join_looks
from arelu_tl.data.split import Sample, hold_out
from arelu_tl.data.store import PictureStore
from arelu_tl.errors import DataError
from arelu_tl.records.csv_table import csv_text
from arelu_tl.records.settings import Layout, ScanSettings
from arelu_tl.records.storage import require_folder

# Warn if a class has this many times the pictures of another.
_IMBALANCE = 10


@dataclass(frozen=True)
class PictureFolder:
    """The result of a scan. ``splits`` has "train" and "val", and "test" if the folder has one.

    Attributes:
        root: the folder.
        classes: class names in natural order; a sample's label is an index into it.
        splits: samples of each split, in natural order of their paths.
        layout: "split" if the folder itself has train and val, "flat" if we split it.
        rejected: pictures that could not be decoded and are left out.
        passed: files and folders that were skipped because they are not pictures of a class.
        copies: groups of files that show the same picture.
        links: symbolic links on the way to pictures.
        cache: the open cache of reduced pictures; None without one.
    """

    root: Path
    classes: list[str]
    splits: dict[str, list[Sample]]
    layout: Literal["split", "flat"]
    rejected: list[Rejected] = field(default_factory=list)
    passed: PassedOver = field(default_factory=PassedOver)
    copies: list[Copies] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    cache: PictureStore | None = field(default=None, compare=False, repr=False)

    def fingerprint(self) -> str:
        """Return the SHA-256 digest over every sample's split, path, class and bytes."""
        digest = hashlib.sha256()
        for split in sorted(self.splits):
            for s in self.splits[split]:
                digest.update(
                    f"{split}\0{s.path}\0{self.classes[s.label]}\0{s.digest}\n".encode(
                        errors="surrogateescape"
                    )
                )
        return digest.hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return {split: {class: number of pictures}}."""
        return {
            split: {
                self.classes[label]: n
                for label, n in sorted(Counter(s.label for s in samples).items())
            }
            for split, samples in self.splits.items()
        }

    def endings(self) -> str:
        """Describe how many pictures have which file ending, the most common first.

        Returns:
            The description; "" if all have the same ending.
        """
        found = Counter(
            Path(s.path).suffix.lower() or "no ending"
            for samples in self.splits.values()
            for s in samples
        )
        return (
            ", ".join(f"{number} {ending}" for ending, number in found.most_common())
            if len(found) > 1
            else ""
        )

    def class_weights(self) -> tuple[float, ...]:
        """Return loss weights that make all classes count the same, with mean 1 over pictures."""
        counts = Counter(sample.label for sample in self.splits["train"])
        return tuple(
            counts.total() / (len(self.classes) * counts[label])
            for label in range(len(self.classes))
        )

    def warnings(self) -> list[str]:
        """Return messages that the user should know but need not act on, one line each."""
        return [*self._about_copies(), *self._about_classes(), *self._about_links()]

    def _about_copies(self) -> list[str]:
        messages = []
        across = [each for each in self.copies if each.across_splits]
        if across:
            messages.append(
                f"{_describe_copies(across)} in more than one split: validation accuracy will "
                "flatter every arm"
            )
        inside = [
            each for each in self.copies if not each.across_splits and not each.across_classes
        ]
        if inside:
            messages.append(f"{_describe_copies(inside)} in one split and class")
        labelled = [each for each in self.copies if each.across_classes]
        if labelled:
            messages.append(
                f"{_describe_copies(labelled)} in more than one class: at most one of them is right"
            )
        return messages

    def _about_classes(self) -> list[str]:
        counts = self.counts()
        train = counts["train"]
        messages = []
        for split, names in counts.items():
            missing = [name for name in self.classes if name not in names]
            if missing and split != "train":
                messages.append(f"no {_KINDS[split]} picture of {some(missing)}")
        single = [name for name, number in train.items() if number == 1]
        if single:
            messages.append(f"one training picture only of {some(single)}")
        most, least = (choose(train, key=train.__getitem__, default="") for choose in (max, min))
        if train and train[most] > _IMBALANCE * train[least]:
            messages.append(
                f"classes of {train[least]} ({least}) to {train[most]} training pictures ({most}): "
                "accuracy speaks for the large ones; `balance` makes every class weigh the same"
            )
        twins = [" and ".join(names) for names in same_but_for_case(self.classes)]
        if twins:
            messages.append(
                "classes that differ only in upper and lower case, one folder on some disks: "
                f"{some(twins)}"
            )
        return messages

    def _about_links(self) -> list[str]:
        messages = []
        for kind, followed, noun, words in _LINKS:
            links = [
                link.path for link in self.links if (link.leads, link.followed) == (kind, followed)
            ]
            if links:
                messages.append(f"{counted(len(links), noun)} {words}: {some(links)}")
        return messages

    def to_json(self) -> dict[str, Any]:
        """Return the content of dataset.json."""
        return {
            "classes": self.classes,
            "layout": self.layout,
            "counts": self.counts(),
            "fingerprint": self.fingerprint(),
            "rejected": [{"path": r.path, "reason": r.reason} for r in self.rejected],
            "ignored_files": self.passed.others,
            "passed_over": self.passed.to_json(),
            "duplicates_across_splits": [each.paths for each in self.copies if each.across_splits],
            "duplicates": [each.to_json() for each in self.copies],
            "links": [
                {"path": link.path, "leads": link.leads, "followed": link.followed}
                for link in self.links
            ],
            "warnings": self.warnings(),
        }

    def to_csv(self) -> str:
        """Return the content of split.csv: path, label, split."""
        rows = (
            [s.path, self.classes[s.label], split]
            for split, samples in self.splits.items()
            for s in samples
        )
        return csv_text(["path", "label", "split"], rows)


_KINDS = {"val": "validation", "test": "test"}
_LINKS = (
    ("inside", True, "link", "within the folder, taken for what it leads to"),
    ("outside", True, "link", "out of the folder, followed"),
    ("again", False, "folder", "to which links lead once more, counted once"),
    ("loop", False, "link", "in a circle, passed over"),
)


def _describe_copies(copies: Sequence[Copies]) -> str:
    one, other = copies[0].pair()
    near = sum(not each.exact for each in copies)
    how = f" ({near} by their looks only)" if near else ""
    return f"{counted(len(copies), 'picture')} more than once{how}, as {one} = {other},"


class _Problems:
    """Problems that prevent training; the first is raised, or all are collected."""

    def __init__(self, root: Path, gathered: list[str] | None) -> None:
        self._root, self._gathered = root, gathered

    def add(self, message: str) -> None:
        line = f"{self._root}: {message}"
        if self._gathered is None:
            raise DataError(line)
        self._gathered.append(line)


def scan_folder(
    root: Path,
    settings: ScanSettings = ScanSettings(),
    *,
    threads: int | None = None,
    leave_out: Collection[Path] = (),
    cache: PictureStore | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    progress: Callable[[int, int], None] | None = None,
    problems: list[str] | None = None,
) -> PictureFolder:
    """Scan a folder of pictures in either layout, and decode every picture completely.

    With a cache each picture is decoded only once in the cache's lifetime.

    Args:
        root: ``ROOT/{train,val}/CLASS/*`` or ``ROOT/CLASS/*``; class folders are searched to any
            depth.
        settings: how the folder is read.
        threads: decoding threads; None for as many as there are CPUs.
        leave_out: folders for results, which are not classes unless they hold pictures.
        cache: cache of reduced pictures; it also records which files are known to be decodable.
        recipes: {"train" or "val": how the split's pictures are reduced for the cache}.
        progress: called with (pictures decoded, pictures in total).
        problems: collects problems that prevent training, one line each, instead of raising an
            error for the first; then an error means that nothing can be scanned.

    Raises:
        DataError: no folder, no pictures, fewer than two classes or two with the same name, a class
            that cannot be on both sides of a split, validation classes unknown to training, an
            undecodable picture, one picture in several splits, a link out of the folder.
    """
    require_folder(root)
    found = _Problems(root, problems)
    found_splits = find_splits(root, settings.train_split, settings.val_split, settings.layout)
    passed = found_splits.passed
    listed = {
        split: list_split(root, folder, leave_out=leave_out, follow_links=settings.follow_links)
        for split, folder in found_splits.folders.items()
    }
    for listing in listed.values():
        passed.add(listing.passed)
    links = [link for listing in listed.values() for link in listing.links]
    if not settings.follow_links:
        _refuse_links(links, found)
    _check_classes(root, listed, passed, found)
    classes = sorted(listed["train"].pictures, key=natural_key)
    sides: dict[str, str] = {}
    if cache is not None and recipes:
        sides = _expected_sides(
            root, listed, classes, settings.val_fraction, settings.split_seed, threads
        )
    kept = (
        {path: recipes[side] for path, side in sides.items() if side in recipes} if recipes else {}
    )
    paths = [
        path for listing in listed.values() for paths in listing.pictures.values() for path in paths
    ]
    checked = check_pictures(
        root, paths, threads=threads, progress=progress, cache=cache, recipes=kept
    )
    if settings.on_bad_image == "error":
        _refuse_bad(checked.rejected, len(checked.digests), found)
    splits = _samples(listed, classes, checked.digests)
    filled = {sample.label for sample in splits["train"]}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        found.add(
            f"no readable training picture in class {some(empty)}: remove the folder or fill it"
        )
    same = join_looks(checked.looks)
    if "val" not in splits:
        held = hold_out(
            splits.pop("train"),
            classes,
            settings.val_fraction,
            settings.split_seed,
            None if settings.allow_duplicates else same,
        )
        for problem in held.problems:
            found.add(problem)
        splits = {"train": held.train, "val": held.val, **splits}
    elif not splits["val"]:
        found.add("no readable validation picture")
    copies = find_copies(splits, classes, same)
    if not settings.allow_duplicates:
        _refuse_copies(copies, found)
    return PictureFolder(
        root, classes, splits, found_splits.layout, checked.rejected, passed, copies, links, cache
    )


def list_evaluation(
    root: Path,
    classes: Sequence[str],
    *,
    split: str | None = None,
    layout: Layout = "auto",
    passed: PassedOver | None = None,
) -> list[tuple[str, int]]:
    """List the pictures on which to evaluate a trained model, without decoding them.

    Args:
        root: folder in either layout; with train and val folders the validation pictures are used,
            otherwise all.
        classes: the model's class names; a label is an index into them, even if the folder lacks
            some classes.
        split: name of the folder to use instead ("test").
        layout: see ``find_evaluated``.
        passed: collects what was skipped because it is not a picture of a class.

    Returns:
        (path relative to ``root``, label) of each picture.

    Raises:
        DataError: no folder, no pictures, or a class that the model does not know.
    """
    require_folder(root)
    folder = find_evaluated(root, classes, split, layout)
    # Links are always followed: evaluation does not train on their targets, and must include them
    # if training followed them.
    listing = list_split(root, folder, follow_links=True)
    by_class = listing.pictures
    if passed is not None:
        passed.add(listing.passed)
    if not any(by_class.values()):
        raise DataError(
            f"{folder}: no pictures in class folders "
            f"({listing.passed.line() or 'expected CLASS/*.jpg'})"
        )
    labels = {name: label for label, name in enumerate(classes)}
    unknown = [name for name, paths in by_class.items() if paths and name not in labels]
    if unknown:
        raise DataError(
            f"{folder}: the model knows no class {', '.join(unknown[:3])}; it knows "
            f"{', '.join(classes[:5])}"
        )
    # The lists are in natural order already.
    return sorted(
        ((path, labels[name]) for name, paths in by_class.items() for path in paths),
        key=lambda each: each[1],
    )


def _refuse_links(links: Sequence[Link], found: _Problems) -> None:
    for leads, words in (("outside", "out of the folder"), ("loop", "in a circle")):
        paths = [link.path for link in links if link.leads == leads]
        if paths:
            way = "follow them" if leads == "outside" else "pass them over"
            found.add(
                f"{counted(len(paths), 'link')} {words} ({some(paths)}): remove, or pass "
                f"`follow_links` to {way}"
            )


def _refuse_bad(rejected: Sequence[Rejected], good: int, found: _Problems) -> None:
    if rejected:
        found.add(
            f"{len(rejected)} of {good + len(rejected)} pictures cannot be decoded: "
            f"{by_reason(rejected)}: mend or remove them, or pass `on_bad_image='skip'`"
        )


def _refuse_copies(copies: Sequence[Copies], found: _Problems) -> None:
    across = [each for each in copies if each.across_splits]
    if across:
        found.add(
            f"{_describe_copies(across)} in more than one split, which makes validation accuracy "
            "too good: remove one of each, or pass `allow_duplicates`"
        )


def _check_classes(
    root: Path, listed: Mapping[str, Listing], passed: PassedOver, found: _Problems
) -> None:
    train = listed["train"].pictures
    if not any(train.values()):
        skipped = f"; {passed.line()}" if passed.line() else ""
        hint = "sort them into one folder a class" if passed.loose else "expected ROOT/CLASS/*.jpg"
        raise DataError(f"{root}: no pictures in class folders ({hint}{skipped})")
    if len(train) < 2:
        found.add(
            f"only one class ({next(iter(train))}); a classifier needs at least two class folders"
        )
    twins = [" and ".join(map(ascii, names)) for names in same_letters(train)]
    if twins:
        found.add(
            f"class names that look the same, written in different characters: {some(twins)}: "
            "rename one of each"
        )
    for split, listing in listed.items():
        unknown = [name for name, paths in listing.pictures.items() if paths and name not in train]
        if unknown:
            spelt = [name for name in unknown if same_letters([name, *train])]
            hint = (
                f" ({some([*map(ascii, spelt)])}: training has it in other characters)"
                if spelt
                else ""
            )
            found.add(f"{split} has classes that training lacks: {some(unknown)}{hint}")


def _samples(
    listed: Mapping[str, Listing], classes: Sequence[str], digests: Mapping[str, str]
) -> dict[str, list[Sample]]:
    return {
        split: [
            Sample(path, label, digests[path])
            for label, name in enumerate(classes)
            for path in listing.pictures.get(name, [])
            if path in digests
        ]
        for split, listing in listed.items()
    }


def _expected_sides(
    root: Path,
    listed: Mapping[str, Listing],
    classes: list[str],
    val_fraction: float,
    split_seed: int,
    threads: int | None,
) -> dict[str, str]:
    """Predict {path: split}, assuming that no picture is rejected or a copy.

    A wrong prediction costs a second decoding. Our own split depends on the files' content, so the
    files are read once more than decoding needs.
    """
    sides = {
        path: split
        for split, listing in listed.items()
        for paths in listing.pictures.values()
        for path in paths
    }
    if "val" in listed:
        return sides
    digests = hash_pictures(
        root, [path for path, split in sides.items() if split == "train"], threads
    )
    held = hold_out(
        _samples({"train": listed["train"]}, classes, digests)["train"],
        classes,
        val_fraction,
        split_seed,
    )
    return sides | {sample.path: "val" for sample in held.val}
