"""Detect the layout of a folder of pictures: class folders, or split folders with class folders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from arelu_tl.data.formats import is_picture
from arelu_tl.data.listing import entries_of, holds_pictures, is_folder
from arelu_tl.data.passed_over import PassedOver, is_litter, some
from arelu_tl.errors import DataError
from arelu_tl.records.runs import holds_results
from arelu_tl.records.settings import Layout

_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation")
_TEST_NAMES = ("test", "testing")


@dataclass(frozen=True)
class Splits:
    """The splits of a folder of pictures.

    Attributes:
        layout: "split" if the folder separates training and validation pictures, "flat" if they
            still have to be split.
        folders: {"train", "val", "test": the split's folder}; "val" only if the layout is "split".
        passed: what else is beside those folders.
    """

    layout: Literal["flat", "split"]
    folders: dict[str, Path]
    passed: PassedOver


def find_splits(
    root: Path, train_split: str = "train", val_split: str | None = None, layout: Layout = "auto"
) -> Splits:
    """Find the folders of the pictures for training.

    A folder ``train`` is the training split, unless folders beside it that are not splits contain
    pictures: then it may also be a class, and only ``layout`` or a split name resolves that.

    Raises:
        DataError: a folder that was named, or that the layout needs, is missing; or the layout is
            ambiguous.
    """
    if layout == "flat":
        return Splits("flat", {"train": root}, PassedOver())
    here = _Root(root)
    named = layout == "split" or val_split is not None or train_split != "train"
    train = here.folder(_TRAIN_NAMES if train_split == "train" else (train_split,))
    if train is None:
        if named:
            raise DataError(f"{root}: no folder {train_split!r} in it")
        other = here.folder(_VAL_NAMES + _TEST_NAMES)
        if other is not None and any(map(is_folder, entries_of(other))):
            raise DataError(
                f"{root}: has {other.name!r} but no 'train': name the training folder with "
                f"`train_split`, or, where {other.name!r} is a class, pass `layout='flat'`"
            )
        return Splits("flat", {"train": root}, PassedOver())
    val = here.folder((val_split,) if val_split is not None else _VAL_NAMES)
    if val_split is not None and val is None:
        raise DataError(f"{root}: no folder {val_split!r} in it")
    if val == train:
        if val_split is not None:
            raise DataError(f"{root}: {train_split!r} cannot be training and validation at once")
        val = None
    test = here.folder(_TEST_NAMES)
    folders = {
        "train": train,
        **({"val": val} if val else {}),
        **({"test": test} if test and test not in (train, val) else {}),
    }
    if not named and (classes := here.classes(folders.values())):
        raise DataError(_both_readings(root, train, folders.values(), classes))
    return Splits("split" if val is not None else "flat", folders, here.passed)


def find_evaluated(
    root: Path, classes: Collection[str], split: str | None = None, layout: Layout = "auto"
) -> Path:
    """Find the folder of class folders for evaluation: the validation split if there is one.

    Args:
        classes: the model's class names; they decide whether ``train`` and ``val`` are classes if
            ``layout`` is "auto".
        split: folder to use instead.

    Raises:
        DataError: there is no such folder.
    """
    if split is not None:
        if not (root / split).is_dir():
            raise DataError(f"{root}: no folder {split!r} in it")
        return root / split
    here = _Root(root)
    found = here.folder(_VAL_NAMES) or here.folder(_TRAIN_NAMES)
    if layout == "split" and found is None:
        raise DataError(f"{root}: no folder 'val' or 'train' in it")
    if (
        layout == "flat"
        or found is None
        or (layout == "auto" and set(here.classes()) <= set(classes))
    ):
        return root
    return found


class _Root:
    """The folders directly below the root that may be splits or classes.

    Attributes:
        passed: what else is there.
    """

    def __init__(self, root: Path) -> None:
        self.passed = PassedOver()
        self._folders: dict[str, Path] = {}
        for entry in entries_of(root):
            if is_litter(entry.name):
                self.passed.litter.append(entry.name)
            elif not is_folder(entry):
                if is_picture(entry):
                    self.passed.loose.append(entry.name)
                else:
                    self.passed.others += 1
            elif holds_results([inside.name for inside in entries_of(Path(entry.path))]):
                self.passed.results.append(entry.name)
            else:
                self._folders[entry.name] = Path(entry.path)

    def folder(self, names: Sequence[str]) -> Path | None:
        """Return the folder with one of the names; exact matches first, then ignoring case."""
        for name in names:
            if name in self._folders:
                return self._folders[name]
        folded = {name.casefold() for name in names}
        return next(
            (path for name, path in self._folders.items() if name.casefold() in folded), None
        )

    def classes(self, splits: Collection[Path] = ()) -> list[str]:
        """Return the names of the folders with pictures, except ``splits``."""
        return [
            name
            for name, path in self._folders.items()
            if path not in splits and holds_pictures(path)
        ]


def _both_readings(root: Path, train: Path, splits: Collection[Path], beside: Sequence[str]) -> str:
    inside = _Root(train).classes()
    split = (
        f"classes {some(inside)} of {train.name!r}, without {some(beside)}"
        if inside
        else f"no class in {train.name!r}"
    )
    flat = sorted([*(path.name for path in splits), *beside])
    return (
        f"{root}: {train.name!r} may be the training pictures or a class, for {some(beside)} "
        f"{'has' if len(beside) == 1 else 'have'} pictures too: `layout='split'` takes {split}; "
        f"`layout='flat'` takes the classes {some(flat)}"
    )
