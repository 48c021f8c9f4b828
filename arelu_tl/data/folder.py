"""A folder of pictures to lists of samples: layout, class map, decoding gate, stratified split, fingerprint."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from arelu_tl.data.decode import PICTURE_ENDINGS
from arelu_tl.data.gate import Rejected, check_pictures, hash_pictures
from arelu_tl.data.recipe import Recipe
from arelu_tl.data.store import PictureStore
from arelu_tl.errors import DataError
from arelu_tl.records.csv_table import csv_text

VAL_NAMES = ("val", "valid", "validation")
OTHER_SPLITS = ("test", "testing")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture: path relative to the folder (with forward slashes), class index, SHA-256 of its bytes."""

    path: str
    label: int
    digest: str


@dataclass(frozen=True)
class PictureFolder:
    """What a scan found. ``splits`` has "train" and "val", and "test" where the folder has one.

    Attributes:
        root: the folder.
        classes: class names in natural order; a sample's label is an index into it.
        splits: samples of each split, in natural order of their paths.
        layout: "split" where the folder itself has train and val, "flat" where we split it.
        rejected: pictures that could not be decoded, left out.
        ignored: how many files were no pictures by name.
        duplicates: groups of paths with identical bytes that stand in more than one split.
        cache: where pictures are kept, for as long as it lasts.
    """

    root: Path
    classes: list[str]
    splits: dict[str, list[Sample]]
    layout: Literal["split", "flat"]
    rejected: list[Rejected] = field(default_factory=list)
    ignored: int = 0
    duplicates: list[list[str]] = field(default_factory=list)
    cache: PictureStore | None = field(default=None, compare=False, repr=False)

    def fingerprint(self) -> str:
        """SHA-256 over every sample's split, path, class and bytes; equal where the pictures and the split are."""
        digest = hashlib.sha256()
        for split in sorted(self.splits):
            for s in self.splits[split]:
                digest.update(f"{split}\0{s.path}\0{self.classes[s.label]}\0{s.digest}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {class: pictures}}."""
        return {
            split: {self.classes[label]: n for label, n in sorted(Counter(s.label for s in samples).items())}
            for split, samples in self.splits.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Content of dataset.json."""
        return {
            "classes": self.classes,
            "layout": self.layout,
            "counts": self.counts(),
            "fingerprint": self.fingerprint(),
            "rejected": [{"path": r.path, "reason": r.reason} for r in self.rejected],
            "ignored_files": self.ignored,
            "duplicates_across_splits": self.duplicates,
        }

    def to_csv(self) -> str:
        """Content of split.csv: path,label,split."""
        rows = ([s.path, self.classes[s.label], split] for split, samples in self.splits.items() for s in samples)
        return csv_text(["path", "label", "split"], rows)


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which "img2" comes before "img10"; the text itself breaks ties, so that the order is total."""
    parts = re.split(r"(\d+)", text.casefold())
    # int() takes any Unicode decimal that \d matches.
    return [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts)], text


def scan_folder(
    root: Path,
    *,
    train_split: str = "train",
    val_split: str | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    threads: int | None = None,
    leave_out: Path | None = None,
    cache: PictureStore | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PictureFolder:
    """Read a folder of pictures in either layout; every picture is decoded to its end, once ever for a cache's lifetime.

    Args:
        root: ``ROOT/{train,val}/CLASS/*`` or ``ROOT/CLASS/*``; class folders are searched to any depth.
        train_split: name of the training folder; its presence decides the layout.
        val_split: name of the validation folder; val, valid or validation when None.
        val_fraction: share of each class held out where the folder has no validation pictures, 0..1.
        split_seed: seed of that split.
        on_bad_image: "error" refuses a folder with an undecodable picture, "skip" leaves it out and records it.
        threads: decoding threads; as many as there are processors when None.
        leave_out: a folder that is passed over wherever it lies.
        cache: where pictures are kept; it is asked which are known to be good, and told.
        recipes: {"train" or "val": what the cache is given of the split's pictures, which are decoded here anyway}.
        progress: called with (pictures decoded, pictures in all).

    Raises:
        DataError: no folder, no pictures, fewer than two classes, a class that cannot be on both sides of a split,
            validation classes unknown to training, an undecodable picture.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    layout, folders = _layout(root, train_split, val_split)
    found, ignored = {}, 0
    for split, folder in folders.items():
        found[split], skipped = _list_pictures(root, folder, leave_out)
        ignored += skipped
    _check_classes(root, found)
    classes = sorted(found["train"], key=natural_key)
    paths = [path for by_class in found.values() for paths in by_class.values() for path in paths]
    sides: dict[str, str] = {}
    if cache is not None and recipes:
        sides = _expected_sides(root, found, classes, val_fraction, split_seed, threads)
    kept = {path: recipes[side] for path, side in sides.items() if side in recipes} if recipes else {}
    digests, rejected = check_pictures(root, paths, threads=threads, progress=progress, cache=cache, recipes=kept)
    _refuse(rejected, len(digests), on_bad_image)
    splits = _samples(found, classes, digests)
    empty = [name for label, name in enumerate(classes) if all(s.label != label for s in splits["train"])]
    if empty:
        raise DataError(f"{root}: no readable training picture in class {', '.join(empty[:3])}: remove the folder or fill it")
    if "val" not in splits:
        splits = _stratify(splits, classes, val_fraction, split_seed)
    if not splits["val"]:
        raise DataError(f"{root}: no readable validation picture")
    return PictureFolder(
        root=root,
        classes=classes,
        splits=splits,
        layout=layout,
        rejected=rejected,
        ignored=ignored,
        duplicates=_duplicates(splits),
        cache=cache,
    )


def list_evaluation(
    root: Path, classes: Sequence[str], *, split: str | None = None, only: Collection[str] | None = None
) -> list[tuple[str, int]]:
    """(path relative to ``root``, label) of the pictures that a trained model shall be evaluated on; none is opened.

    Args:
        root: in either layout; with train and val folders the validation pictures are taken, else all.
        classes: the model's class names; a label is an index into them, whatever classes the folder lacks.
        split: name of the folder to take instead ("test").
        only: paths relative to ``root`` to which the pictures are limited, where any of them is there.

    Raises:
        DataError: no folder, no pictures, a class that the model does not know.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    folder = root
    if split is not None:
        folder = root / split
        if not folder.is_dir():
            raise DataError(f"{root}: no folder {split!r} in it")
    else:
        folder = _child(root, VAL_NAMES) or _child(root, ("train", "training")) or root
    by_class, _ = _list_pictures(root, folder)
    if not any(by_class.values()):
        raise DataError(f"{folder}: no pictures in class folders (expected CLASS/*.jpg)")
    if only and any(path in only for paths in by_class.values() for path in paths):
        by_class = {name: [path for path in paths if path in only] for name, paths in by_class.items()}
    labels = {name: label for label, name in enumerate(classes)}
    unknown = [name for name, paths in by_class.items() if paths and name not in labels]
    if unknown:
        raise DataError(f"{folder}: the model knows no class {', '.join(unknown[:3])}; it knows {', '.join(classes[:5])}")
    # The lists are in natural order already.
    return sorted(((path, labels[name]) for name, paths in by_class.items() for path in paths), key=lambda each: each[1])


def _refuse(rejected: list[Rejected], good: int, on_bad_image: Literal["error", "skip"]) -> None:
    if not rejected or on_bad_image == "skip":
        return
    names = "; ".join(f"{r.path} ({r.reason})" for r in rejected[:3])
    raise DataError(
        f"{len(rejected)} of {good + len(rejected)} pictures cannot be decoded: {names}"
        f"{'; ...' if len(rejected) > 3 else ''}: mend or remove them, or pass --on-bad-image skip"
    )


def _layout(root: Path, train_split: str, val_split: str | None) -> tuple[Literal["split", "flat"], dict[str, Path]]:
    train = _child(root, (train_split,)) or (_child(root, ("training",)) if train_split == "train" else None)
    if train is None:
        if val_split is not None or train_split != "train":
            raise DataError(f"{root}: no folder {train_split!r} in it")
        split_like = _child(root, VAL_NAMES + OTHER_SPLITS)
        if split_like is not None and any(p.is_dir() for p in split_like.iterdir()):
            raise DataError(f"{root}: has {split_like.name!r} but no 'train': name the training folder with --train-split")
        return "flat", {"train": root}
    folders = {"train": train}
    candidates = (val_split,) if val_split is not None else VAL_NAMES
    if val_split is not None and _child(root, (val_split,)) == train:
        raise DataError(f"{root}: {train_split!r} cannot be training and validation at once")
    val = next((found for name in candidates if (found := _child(root, (name,))) is not None and found != train), None)
    if val is not None:
        folders["val"] = val
    elif val_split is not None:
        raise DataError(f"{root}: no folder {val_split!r} in it")
    test = _child(root, OTHER_SPLITS)
    if test is not None and test not in folders.values():
        folders["test"] = test
    return "split" if val is not None else "flat", folders


def _child(root: Path, names: Sequence[str]) -> Path | None:
    """The folder in ``root`` that has one of the names, exactly or but for upper and lower case."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    folded = {name.casefold() for name in names}
    return next((p for p in sorted(root.iterdir()) if p.name.casefold() in folded and p.is_dir()), None)


def _list_pictures(root: Path, folder: Path, leave_out: Path | None = None) -> tuple[dict[str, list[str]], int]:
    """{class: relative paths in natural order} of one split, and how many other files there were."""
    by_class: dict[str, list[str]] = {}
    ignored = 0
    passed_over = leave_out.resolve() if leave_out is not None else None

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {os.strerror(error.errno or 0)}")

    try:
        entries = sorted(folder.iterdir(), key=lambda p: natural_key(p.name))
    except OSError as error:
        refuse(error)
    for entry in entries:
        if entry.resolve() == passed_over:
            continue
        if entry.name.startswith(".") or not entry.is_dir():
            ignored += 1
            continue
        pictures = []
        for place, subfolders, files in os.walk(entry, onerror=refuse):
            subfolders[:] = [s for s in subfolders if not s.startswith(".")]
            for name in files:
                path = Path(place, name)
                if name.startswith(".") or path.suffix.lower() not in PICTURE_ENDINGS:
                    ignored += 1
                else:
                    pictures.append(path.relative_to(root).as_posix())
        by_class[entry.name] = sorted(pictures, key=natural_key)
    return by_class, ignored


def _check_classes(root: Path, found: dict[str, dict[str, list[str]]]) -> None:
    train = found["train"]
    if not any(train.values()):
        loose = [p for p in root.iterdir() if p.suffix.lower() in PICTURE_ENDINGS]
        hint = (
            f"{len(loose)} pictures lie loose in it; sort them into one folder a class" if loose else "expected ROOT/CLASS/*.jpg"
        )
        raise DataError(f"{root}: no pictures in class folders ({hint})")
    if len(train) < 2:
        raise DataError(f"{root}: only one class ({next(iter(train))}); a classifier needs at least two class folders")
    for split, by_class in found.items():
        unknown = [name for name, paths in by_class.items() if paths and name not in train]
        if unknown:
            raise DataError(f"{root}: {split} has classes that training lacks: {', '.join(unknown[:3])}")


def _samples(
    found: Mapping[str, Mapping[str, Sequence[str]]], classes: Sequence[str], digests: Mapping[str, str]
) -> dict[str, list[Sample]]:
    return {
        split: [
            Sample(path, label, digests[path])
            for label, name in enumerate(classes)
            for path in by_class.get(name, [])
            if path in digests
        ]
        for split, by_class in found.items()
    }


def _expected_sides(
    root: Path,
    found: Mapping[str, dict[str, list[str]]],
    classes: list[str],
    val_fraction: float,
    split_seed: int,
    threads: int | None,
) -> dict[str, str]:
    """{path: split} as it will be if no picture is rejected; a wrong guess costs a second decoding.

    A split of our own goes by the files' content, so that they are read once more than their decoding needs.
    """
    sides = {path: split for split, by_class in found.items() for paths in by_class.values() for path in paths}
    if "val" in found:
        return sides
    digests = hash_pictures(root, [path for path, split in sides.items() if split == "train"], threads)
    try:
        splits = _stratify(_samples({"train": found["train"]}, classes, digests), classes, val_fraction, split_seed)
    except DataError:  # which the same split after the gate will say, unless that has something worse to tell
        return sides
    return sides | {sample.path: split for split, samples in splits.items() for sample in samples}


def _stratify(splits: dict[str, list[Sample]], classes: list[str], fraction: float, seed: int) -> dict[str, list[Sample]]:
    """Hold out a share of every class; copies of one picture stay on one side.

    Raises:
        DataError: a class has fewer than two different pictures.
    """
    train: list[Sample] = []
    val: list[Sample] = []
    for label, name in enumerate(classes):
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in splits["train"]:
            if sample.label == label:
                groups[sample.digest].append(sample)
        if len(groups) < 2:
            raise DataError(f"class {name} has one picture only; a split needs at least two different ones a class")
        held_out = min(max(round(len(groups) * fraction), 1), len(groups) - 1)
        # Each class draws from its own stream: pictures added to one class leave the others' split as it was.
        stream = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8])])
        order = stream.permutation(len(groups))
        chosen = {list(groups)[i] for i in order[:held_out]}
        for digest, members in groups.items():
            (val if digest in chosen else train).extend(members)
    ordered = {"train": train, "val": val, **{k: v for k, v in splits.items() if k != "train"}}
    return {name: _in_order(samples) for name, samples in ordered.items()}


def _in_order(samples: Iterable[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: (s.label, natural_key(s.path)))


def _duplicates(splits: dict[str, list[Sample]]) -> list[list[str]]:
    where: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, samples in splits.items():
        for sample in samples:
            where[sample.digest].append((split, sample.path))
    return [[path for _, path in places] for places in where.values() if len({split for split, _ in places}) > 1]
