"""A folder of pictures becomes classes, splits and a fingerprint, or a DataError that says what to mend."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from picture_files import FLAT, SPLIT, TEXT, every_path, paths, pictures, png, write
from PIL import Image

from arelu_tl.data.cache import open_cache
from arelu_tl.data.folder import PictureFolder, list_evaluation, scan_folder
from arelu_tl.data.listing import natural_key
from arelu_tl.data.passed_over import PassedOver
from arelu_tl.data.recipe import Reduced, Whole
from arelu_tl.errors import DataError
from arelu_tl.records.csv_table import read_table
from arelu_tl.records.settings import ScanSettings
from arelu_tl.records.storage import write_text

# Layouts


def test_the_folders_own_split_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, SPLIT))
    assert folder.layout == "split"
    assert folder.classes == ["cat", "dog"]
    assert paths(folder, "val") == ["val/cat/0.png", "val/cat/1.png", "val/cat/2.png"] + [
        f"val/dog/{n}.png" for n in range(3)
    ]
    assert [sample.label for sample in folder.splits["train"]] == [0, 0, 0, 1, 1, 1]
    assert folder.counts() == {split: {"cat": 3, "dog": 3} for split in ("train", "val")}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_folder_is_found_under_its_usual_names(name: str, tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, pictures("train/a", "train/b", f"{name}/a", f"{name}/b")))
    assert {path.split("/")[0] for path in paths(folder, "val")} == {name}


def test_split_folders_can_be_named(tmp_path: Path) -> None:
    root = write(tmp_path, pictures("learn/a", "learn/b", "check/a", "check/b", "train/x", "val/x"))
    folder = scan_folder(root, ScanSettings(train_split="learn", val_split="check"))
    assert folder.classes == ["a", "b"]
    assert {path.split("/")[0] for path in every_path(folder)} == {"learn", "check"}


def test_a_named_training_folder_without_validation_is_split(tmp_path: Path) -> None:
    folder = scan_folder(
        write(tmp_path, pictures("learn/a", "learn/b")), ScanSettings(train_split="learn")
    )
    assert folder.layout == "flat"
    assert sorted(map(len, folder.splits.values())) == [2, 4]


@pytest.mark.parametrize("options", [{"train_split": "learn"}, {"val_split": "check"}])
def test_a_split_folder_that_is_not_there_is_named(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=next(iter(options.values()))):
        scan_folder(write(tmp_path, SPLIT), ScanSettings(**options))


def test_training_and_validation_are_never_the_same_folder(tmp_path: Path) -> None:
    root = write(tmp_path, pictures("val/a", "val/b", each=6))
    try:
        folder = scan_folder(root, ScanSettings(train_split="val"))
    except DataError:
        return
    assert not set(paths(folder, "train")) & set(paths(folder, "val"))


def test_a_test_split_is_kept_apart(tmp_path: Path) -> None:
    folder = scan_folder(
        write(tmp_path, SPLIT | pictures("test/cat", "test/dog", each=1, first=90))
    )
    assert paths(folder, "test") == ["test/cat/0.png", "test/dog/0.png"]
    assert not any(
        path.startswith("test") for path in paths(folder, "train") + paths(folder, "val")
    )


def test_a_test_split_survives_splitting_the_rest(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, pictures("train/a", "train/b", "test/a", "test/b")))
    assert len(folder.splits["test"]) == 6
    assert {path.split("/")[0] for path in paths(folder, "val")} == {"train"}


def test_in_a_flat_folder_test_is_a_class_like_any_other(tmp_path: Path) -> None:
    assert scan_folder(write(tmp_path, pictures("rest", "test"))).classes == ["rest", "test"]


def test_a_class_folder_is_searched_to_any_depth(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, pictures("a", "a/2024/may", "b")))
    assert "a/2024/may/1.png" in every_path(folder)
    assert folder.classes == ["a", "b"]


def test_validation_may_lack_a_class(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, pictures("train/a", "train/b", "val/b")))
    assert {sample.label for sample in folder.splits["val"]} == {1}


# Names and order


def test_classes_and_pictures_come_in_natural_order(tmp_path: Path) -> None:
    names = [f"class {c}/{p}.png" for c in (10, 9, 1) for p in (10, 2, 1)]
    root = write(
        tmp_path,
        {
            f"{split}/{name}": png(100 * s + i)
            for s, split in enumerate(("train", "val"))
            for i, name in enumerate(names)
        },
    )
    folder = scan_folder(root)
    assert folder.classes == ["class 1", "class 9", "class 10"]
    assert paths(folder, "train")[:3] == [
        "train/class 1/1.png",
        "train/class 1/2.png",
        "train/class 1/10.png",
    ]


@given(st.lists(st.text(st.sampled_from("aAbBßİ0129٣²-._ /"), max_size=8), min_size=3, max_size=3))
@example(["straße", "STRASSE", "Strasse"])
@example(["img1", "img01", "IMG1"])
@settings(deadline=None, max_examples=200)
def test_natural_order_is_total(texts: list[str]) -> None:
    a, b, c = texts
    assert (natural_key(a) == natural_key(b)) == (a == b)
    assert (natural_key(a) < natural_key(b)) + (natural_key(b) < natural_key(a)) == (a != b)
    if natural_key(a) <= natural_key(b) <= natural_key(c):
        assert natural_key(a) <= natural_key(c)


@given(st.text("aZß -.", max_size=3), st.integers(0, 10**12), st.integers(0, 10**12))
@settings(deadline=None)
def test_natural_order_counts_as_people_do(stem: str, a: int, b: int) -> None:
    assert (natural_key(f"{stem}{a}.png") < natural_key(f"{stem}{b}.png")) == (a < b)


def test_endings_are_read_in_any_case(tmp_path: Path) -> None:
    files = {
        f"{c}/{n}": png(i)
        for i, (c, n) in enumerate((c, n) for c in "ab" for n in ("1.PNG", "2.Jpg", "3.jpeg"))
    }
    folder = scan_folder(write(tmp_path, files))
    assert every_path(folder) == sorted(files)
    assert folder.passed == PassedOver()


def test_what_is_no_picture_is_counted_and_left_out(tmp_path: Path) -> None:
    others = [
        "cat/notes.txt",
        "cat/.DS_Store",
        "dog/._1.png",
        "README.md",
        "loose.png",
        ".git/x.png",
    ]
    folder = scan_folder(write(tmp_path, FLAT | dict.fromkeys(others, TEXT)))
    assert every_path(folder) == sorted(FLAT)
    assert folder.classes == ["cat", "dog"]
    assert folder.passed.others == 2
    assert sorted(folder.passed.litter) == [".git", "cat/.DS_Store", "dog/._1.png"]
    assert folder.passed.loose == ["loose.png"]


# The stratified split

ClassContents = list[list[int]]
some_classes: st.SearchStrategy[ClassContents] = st.lists(
    st.lists(st.integers(0, 8), min_size=2, max_size=12).filter(
        lambda numbers: len(set(numbers)) > 1
    ),
    min_size=2,
    max_size=4,
)


def write_classes(root: Path, contents: ClassContents) -> Path:
    """contents[class][picture] says which bytes; equal numbers are copies, within a class only."""
    return write(
        root,
        {
            f"c{c}/{p}.png": png(1000 * c + n)
            for c, numbers in enumerate(contents)
            for p, n in enumerate(numbers)
        },
    )


def held_out(folder: PictureFolder, label: int) -> set[str]:
    return {sample.path for sample in folder.splits["val"] if sample.label == label}


@given(contents=some_classes, fraction=st.floats(0.001, 0.999), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_the_split_has_every_class_on_both_sides_and_no_picture_on_two(
    contents: ClassContents, fraction: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = write_classes(tmp_path_factory.mktemp("flat"), contents)
    folder = scan_folder(root, ScanSettings(val_fraction=fraction, split_seed=seed))
    train, val = folder.splits["train"], folder.splits["val"]
    every_label = set(range(len(contents)))
    assert {sample.label for sample in train} == {sample.label for sample in val} == every_label
    assert len(train) + len(val) == sum(map(len, contents)) == len(set(every_path(folder)))
    assert not {sample.digest for sample in train} & {sample.digest for sample in val}
    assert not any(group.across_splits for group in folder.copies)
    for label, numbers in enumerate(contents):
        different = len(set(numbers))
        held = len({sample.digest for sample in val if sample.label == label})
        assert abs(held - min(max(different * fraction, 1), different - 1)) <= 0.5
    assert (
        folder.fingerprint()
        == scan_folder(root, ScanSettings(val_fraction=fraction, split_seed=seed)).fingerprint()
    )


def test_another_split_seed_holds_out_other_pictures(tmp_path: Path) -> None:
    root = write(tmp_path, pictures("a", "b", each=12))
    splits = {
        tuple(paths(scan_folder(root, ScanSettings(split_seed=seed)), "val")) for seed in range(4)
    }
    assert len(splits) > 1


def test_pictures_added_to_one_class_leave_the_split_of_the_others(tmp_path: Path) -> None:
    root = write(tmp_path, pictures("a", "b", each=10))
    before = held_out(scan_folder(root), 0)
    after = scan_folder(write(root, {f"b/more {n}.png": png(9000 + n) for n in range(7)}))
    assert held_out(after, 0) == before
    assert len(held_out(after, 1)) > len(before)


def test_the_split_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    files = pictures("a", "b", each=8)
    forwards = scan_folder(write(tmp_path / "1", files))
    backwards = scan_folder(write(tmp_path / "2", dict(reversed(files.items()))), threads=1)
    assert forwards.splits == backwards.splits


# Copies


def test_copies_stay_on_one_side_of_our_split(tmp_path: Path) -> None:
    files = {f"{c}/{n}.png": png(100 * i + n // 3) for i, c in enumerate("ab") for n in range(12)}
    folder = scan_folder(write(tmp_path, files), ScanSettings(val_fraction=0.5))
    sides = [{sample.digest for sample in samples} for samples in folder.splits.values()]
    assert not sides[0] & sides[1]
    assert len(folder.splits["val"]) == 12


def test_copies_across_given_splits_are_refused_unless_allowed(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        SPLIT
        | {
            "val/dog/leak.png": SPLIT["train/dog/1.png"],
            "train/cat/copy.png": SPLIT["train/cat/0.png"],
        },
    )
    with pytest.raises(
        DataError, match=r"train/dog/1\.png = val/dog/leak\.png.*`allow_duplicates`"
    ):
        scan_folder(root)
    folder = scan_folder(root, ScanSettings(allow_duplicates=True))
    assert [group.paths for group in folder.copies] == [
        ["train/dog/1.png", "val/dog/leak.png"],
        ["train/cat/0.png", "train/cat/copy.png"],
    ]
    assert [(group.across_splits, group.exact) for group in folder.copies] == [
        (True, True),
        (False, True),
    ]
    across, inside = folder.warnings()[:2]
    assert "flatter every arm" in across
    assert "train/cat/0.png = train/cat/copy.png, in one split and class" in inside


def test_copies_inside_a_split_are_told_only(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, SPLIT | {"train/cat/copy.png": SPLIT["train/cat/0.png"]}))
    assert [group.paths for group in folder.copies] == [["train/cat/0.png", "train/cat/copy.png"]]


@cache
def view(number: int, copy: bool = False) -> bytes:
    """A picture full of contrast as a PNG; its ``copy`` is a smaller JPEG of it."""
    squares = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture, out = Image.fromarray(squares).resize((60, 60), Image.Resampling.BICUBIC), io.BytesIO()
    if copy:
        picture.resize((50, 50)).save(out, "JPEG", quality=90)
    else:
        picture.save(out, "PNG")
    return out.getvalue()


def test_another_encoding_in_another_split_is_a_copy_too(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        SPLIT
        | {
            "train/cat/a.png": view(1),
            "val/cat/b.jpg": view(1, copy=True),
            "val/cat/c.png": view(2),
        },
    )
    with pytest.raises(
        DataError, match=r"1 by their looks only\), as train/cat/a\.png = val/cat/b\.jpg"
    ):
        scan_folder(root)
    (group,) = scan_folder(root, ScanSettings(allow_duplicates=True)).copies
    assert (group.paths, group.exact) == (["train/cat/a.png", "val/cat/b.jpg"], False)


def test_our_own_split_keeps_all_encodings_of_a_picture_on_one_side(tmp_path: Path) -> None:
    files = {
        f"{c}/{n}{e}": view(100 * i + n, e == ".jpg")
        for i, c in enumerate("ab")
        for n in range(6)
        for e in (".png", ".jpg")
    }
    files |= {"b/of a.jpg": view(2, copy=True), "b/plain.png": view(900)}
    root = write(tmp_path, files)
    for seed in range(4):
        folder = scan_folder(root, ScanSettings(split_seed=seed))
        assert not any(group.across_splits for group in folder.copies)
        assert {len(group.paths) for group in folder.copies} == {2, 3}
        assert any("in more than one class" in told for told in folder.warnings())
        assert folder.splits == scan_folder(root, ScanSettings(split_seed=seed), threads=1).splits
    apart = [
        scan_folder(root, ScanSettings(split_seed=seed, allow_duplicates=True)) for seed in range(4)
    ]
    assert any(group.across_splits for folder in apart for group in folder.copies)


def test_copies_are_the_same_without_a_cache_in_a_cold_and_in_a_warm_one_and_for_any_model(
    tmp_path: Path,
) -> None:
    """What is decoded for a model may be a fraction of a JPEG; the split must not depend on it."""
    out = io.BytesIO()
    Image.open(io.BytesIO(view(3))).resize((900, 900)).save(out, "JPEG")
    files = {f"{c}/{n}.png": view(100 * i + n) for i, c in enumerate("ab") for n in range(8)} | {
        "a/large.jpg": out.getvalue()
    }
    root = write(tmp_path / "data", files)
    plain = scan_folder(root)
    assert [group.paths for group in plain.copies] == [["a/3.png", "a/large.jpg"]]
    assert plain == scan_folder(root, threads=1)
    with open_cache("disk", 10**9) as cache:
        for recipe in (Reduced(16), Reduced(100), Whole()):
            for _ in range(2):
                assert (
                    scan_folder(root, cache=cache, recipes={"train": recipe, "val": recipe})
                    == plain
                )
    with open_cache("disk", 10**9) as cache:
        assert cache is not None
        cache.full = True
        assert scan_folder(root, cache=cache) == plain


def test_a_class_of_one_film_cannot_be_split_unless_allowed(tmp_path: Path) -> None:
    root = write(tmp_path, pictures("a") | {"b/1.png": view(5), "b/2.jpg": view(5, copy=True)})
    with pytest.raises(
        DataError, match=r"class b has 2 copies of one picture; .*`allow_duplicates`"
    ):
        scan_folder(root)
    assert len(scan_folder(root, ScanSettings(allow_duplicates=True)).splits["val"]) == 2


def test_a_picture_in_two_classes_stays_on_one_side_and_is_told(tmp_path: Path) -> None:
    files = {
        "a/0.png": png(0),
        "a/1.png": png(1),
        "a/2.png": png(3),
        "b/0.png": png(0),
        "b/1.png": png(2),
    }
    root = write(tmp_path, files)
    for seed in range(10):
        folder = scan_folder(root, ScanSettings(split_seed=seed))
        assert ("a/0.png" in paths(folder, "val")) == ("b/0.png" in paths(folder, "val"))
        assert [group.paths for group in folder.copies] == [["a/0.png", "b/0.png"]]


def test_a_class_all_of_whose_pictures_stand_on_one_side_is_refused(tmp_path: Path) -> None:
    shared = {
        "a/x.png": png(0),
        "a/p.png": png(10),
        "b/y.png": png(1),
        "b/q.png": png(11),
        "c/x.png": png(0),
        "c/y.png": png(1),
    }
    root = write(tmp_path, shared)
    outcomes = set()
    for seed in range(8):
        problems: list[str] = []
        sides = scan_folder(root, ScanSettings(split_seed=seed), problems=problems).splits
        on_both = all({s.label for s in samples} == {0, 1, 2} for samples in sides.values())
        assert on_both == (not problems)
        assert all("stand in other classes too" in problem for problem in problems)
        outcomes.add(on_both)
    assert outcomes == {True, False}


def test_all_that_stands_against_training_is_gathered(tmp_path: Path) -> None:
    bad = {
        "val/dog/leak.png": SPLIT["train/dog/1.png"],
        "train/cat/bad.png": TEXT,
        "train/void/x.txt": TEXT,
    }
    problems: list[str] = []
    folder = scan_folder(
        write(tmp_path, SPLIT | bad | pictures("val/wolf", first=50)), problems=problems
    )
    words = [
        "val has classes that training lacks: wolf",
        "cannot be decoded",
        "in class void",
        "more than one split",
    ]
    assert len(problems) == len(words)
    assert all(word in told for word, told in zip(words, problems, strict=True))
    assert folder.counts()["train"] == {"cat": 3, "dog": 3}


# Links


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return write(tmp_path / "outside", pictures("more", first=200))


@pytest.mark.parametrize("place", ["train/cat/more", "train/wolf", "val"])
def test_a_link_out_of_the_folder_is_refused_unless_followed(
    place: str, outside: Path, tmp_path: Path
) -> None:
    kept = {
        name: content
        for name, content in SPLIT.items()
        if place != "val" or not name.startswith("val")
    }
    root = write(tmp_path / "root", kept)
    if place == "val":
        write(outside, pictures("cat", "dog", first=300))
        shutil.rmtree(outside / "more")
        link(root / place, outside)
    else:
        link(root / place, outside / "more")
    with pytest.raises(DataError, match=rf"1 link out of the folder \({place}\): .*`follow_links`"):
        scan_folder(root)
    folder = scan_folder(root, ScanSettings(follow_links=True))
    assert f"{place}/cat/1.png" if place == "val" else f"{place}/1.png" in every_path(folder)
    assert len(every_path(folder)) == len(kept) + (6 if place == "val" else 3)
    assert [entry.leads for entry in folder.links] == ["outside"]


def test_a_linked_file_outside_is_refused_and_one_inside_is_not(
    outside: Path, tmp_path: Path
) -> None:
    root = write(tmp_path / "root", SPLIT | {"originals/9.png": png(77)})
    link(root / "train/cat/9.png", "../../originals/9.png")
    folder = scan_folder(root, ScanSettings(layout="split"))
    assert "train/cat/9.png" in every_path(folder)
    assert any("1 link within the folder" in told for told in folder.warnings())
    link(root / "train/cat/8.png", outside / "more/0.png")
    with pytest.raises(DataError, match=r"train/cat/8\.png"):
        scan_folder(root, ScanSettings(layout="split"))


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "again"])
def test_links_in_a_circle_end(target: str, tmp_path: Path) -> None:
    root = write(tmp_path / "root", SPLIT)
    link(root / "train/cat/again", target)
    if target == "again":  # leads nowhere at all, and is no folder
        assert len(every_path(scan_folder(root))) == len(SPLIT)
        return
    with pytest.raises(
        DataError, match=r"1 link in a circle \(train/cat/again\): .*`follow_links`"
    ):
        scan_folder(root)
    assert every_path(scan_folder(root, ScanSettings(follow_links=True))) == sorted(SPLIT)


def test_no_folder_counts_twice_however_many_links_lead_to_it(tmp_path: Path) -> None:
    root = write(tmp_path / "root", SPLIT | pictures("store/0", first=70))
    for level in range(1, 30):  # two ways to each next folder: 2**30 paths
        for way in "xy":
            link(root / f"store/{level}/{way}", f"../{level - 1}")
    link(root / "train/cat/store", "../../store/29")
    folder = scan_folder(root, ScanSettings(layout="split"))
    assert len(every_path(folder)) == len(SPLIT) + 3
    assert any("counted once" in told for told in folder.warnings())


def test_a_class_keeps_its_own_folder_when_another_one_links_to_it(tmp_path: Path) -> None:
    root = write(tmp_path / "root", SPLIT)
    link(root / "train/cat/dogs", "../dog")
    assert scan_folder(root).counts()["train"] == {"cat": 3, "dog": 3}


def test_a_link_from_training_into_validation_is_a_copy_across_splits(tmp_path: Path) -> None:
    root = write(tmp_path / "root", SPLIT)
    link(root / "train/cat/more", "../../val/cat")
    with pytest.raises(DataError, match="more than one split"):
        scan_folder(root)


# Names


def test_names_that_look_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'caf\\xe9' and 'cafe\\u0301'|'cafe\\u0301' and 'caf\\xe9'"
    ):
        scan_folder(write(tmp_path, pictures("caf\u00e9", "cafe\u0301", "dog")))


def test_a_name_that_validation_spells_in_other_characters_is_pointed_out(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"val has classes that training lacks.*'cafe\\u0301'.*other characters"
    ):
        scan_folder(write(tmp_path, pictures("train/caf\u00e9", "train/dog", "val/cafe\u0301")))


def test_names_that_differ_in_case_only_are_told(tmp_path: Path) -> None:
    try:
        root = write(tmp_path, pictures("Cat", "cat", "dog"))
    except FileExistsError:
        pytest.skip("this file system does not tell them apart")
    assert any("Cat and cat" in told for told in scan_folder(root).warnings())


# Classes of different sizes


def test_classes_of_very_different_sizes_and_of_one_picture_are_told(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        pictures("train/a", each=11)
        | pictures("train/b", each=1, first=50)
        | pictures("val/a", first=60),
    )
    told = scan_folder(root).warnings()
    assert told == [
        "no validation picture of b",
        "one training picture only of b",
        "classes of 1 (b) to 11 training pictures (a): accuracy speaks for the large ones; "
        "`balance` makes every class weigh the same",
    ]
    (root / "train/a/10.png").unlink()
    assert len(scan_folder(root).warnings()) == 2


def test_weights_make_every_class_count_the_same_and_the_mean_picture_one(tmp_path: Path) -> None:
    sizes = {"a": 10, "b": 4, "c": 1}
    files = {
        f"train/{c}/{n}.png": png(100 * i + n)
        for i, (c, size) in enumerate(sizes.items())
        for n in range(size)
    }
    folder = scan_folder(write(tmp_path, files | pictures("val/a", first=900)))
    weights = folder.class_weights()
    assert np.allclose([w * size for w, size in zip(weights, sizes.values(), strict=True)], 15 / 3)


# Fingerprint and files


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    here = scan_folder(write(tmp_path / "here", SPLIT))
    there = scan_folder(
        write(tmp_path / "there", dict(reversed(SPLIT.items())) | {"train/cat/notes.txt": TEXT})
    )
    assert here.fingerprint() == there.fingerprint()


def renamed(old: str, new: str) -> dict[str, bytes]:
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: content
        for name, content in SPLIT.items()
    }


@pytest.mark.parametrize(
    "changed",
    [
        SPLIT | {"train/dog/1.png": png(999)},
        SPLIT | {"train/dog/9.png": png(999)},
        {name: content for name, content in SPLIT.items() if name != "val/dog/1.png"},
        renamed("train/dog/1.png", "val/dog/7.png"),
        renamed("train/dog/1.png", "train/cat/7.png"),
        {name.replace("dog", "wolf"): content for name, content in SPLIT.items()},
        SPLIT
        | {
            "train/dog/1.png": SPLIT["train/dog/2.png"],
            "train/dog/2.png": SPLIT["train/dog/1.png"],
        },
    ],
    ids=[
        "other bytes",
        "one more",
        "one less",
        "moved across",
        "relabelled",
        "class renamed",
        "two swapped",
    ],
)
def test_the_fingerprint_changes_with_a_picture_a_class_or_the_split(
    changed: dict[str, bytes], tmp_path: Path
) -> None:
    before = scan_folder(write(tmp_path / "before", SPLIT)).fingerprint()
    assert scan_folder(write(tmp_path / "after", changed)).fingerprint() != before


def test_the_fingerprint_tells_splits_of_one_folder_apart(tmp_path: Path) -> None:
    root = write(tmp_path, pictures("a", "b", each=10))
    assert (
        scan_folder(root).fingerprint()
        != scan_folder(root, ScanSettings(val_fraction=0.5)).fingerprint()
    )


def test_the_fingerprint_tells_the_same_pictures_under_other_splits_and_classes_apart(
    tmp_path: Path,
) -> None:
    folder = scan_folder(write(tmp_path, FLAT))
    samples = folder.splits["train"]
    divided = [
        replace(folder, splits={"train": samples[:at], "val": samples[at:]}) for at in (3, 4)
    ]
    others = [*divided, replace(divided[0], classes=["cat", "wolf"])]
    assert len({other.fingerprint() for other in others}) == 3


def test_dataset_json_tells_what_was_found_and_left_out(tmp_path: Path) -> None:
    bad = {
        "train/cat/bad.png": TEXT,
        "train/cat/x.txt": TEXT,
        "val/cat/leak.png": SPLIT["train/cat/0.png"],
    }
    folder = scan_folder(
        write(tmp_path, SPLIT | bad), ScanSettings(on_bad_image="skip", allow_duplicates=True)
    )
    told = json.loads(json.dumps(folder.to_json()))
    assert told["classes"] == ["cat", "dog"]
    assert told["counts"] == {"train": {"cat": 3, "dog": 3}, "val": {"cat": 4, "dog": 3}}
    assert told["fingerprint"] == folder.fingerprint()
    assert [entry["path"] for entry in told["rejected"]] == ["train/cat/bad.png"]
    assert told["ignored_files"] == 1
    copies = ["train/cat/0.png", "val/cat/leak.png"]
    assert told["duplicates_across_splits"] == [copies]
    assert told["duplicates"] == [
        {"paths": copies, "splits": ["train", "val"], "classes": ["cat", "cat"], "exact": True}
    ]
    assert told["warnings"] == folder.warnings()


def test_split_csv_has_a_row_for_each_picture(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, FLAT))
    header, *rows = csv.reader(io.StringIO(folder.to_csv()))
    assert header == ["path", "label", "split"]
    assert sorted(map(tuple, rows)) == sorted(
        (sample.path, folder.classes[sample.label], split)
        for split, samples in folder.splits.items()
        for sample in samples
    )


@pytest.mark.parametrize(
    "name",
    [
        'comma, and "quotes"',
        "line\nbreak",
        "carriage\rreturn",
        "snow ☃",
        "=1+1",
        os.fsdecode(b"caf\xe9"),
        "\x1b[31mred",
    ],
)
def test_split_csv_reads_back_awkward_names(name: str, tmp_path: Path) -> None:
    try:
        root = write(tmp_path, FLAT | {f"{name}/{name} {n}.png": png(900 + n) for n in range(2)})
    except OSError:
        pytest.skip("this file system does not take the name")
    write_text(tmp_path / "split.csv", scan_folder(root).to_csv())
    rows = read_table(tmp_path / "split.csv")
    assert {f"{name}/{name} 0.png", f"{name}/{name} 1.png"} <= {row["path"] for row in rows}
    assert name in {row["label"] for row in rows}


def test_progress_counts_up_to_all_pictures(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    scan_folder(write(tmp_path, FLAT), progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 10) for n in range(1, 11)]


@pytest.mark.parametrize(
    "names", [("Train", "Val"), ("training", "Validation"), ("TRAIN", "VALID")]
)
def test_split_folders_are_known_in_any_case(names: tuple[str, str], tmp_path: Path) -> None:
    train, val = names
    folder = scan_folder(
        write(tmp_path, pictures(f"{train}/a", f"{train}/b", f"{val}/a", f"{val}/b"))
    )
    assert folder.classes == ["a", "b"]
    assert folder.layout == "split"
    assert {path.split("/")[0] for path in paths(folder, "val")} == {val}


def test_training_and_testing_folders_are_no_classes(tmp_path: Path) -> None:
    folder = scan_folder(
        write(tmp_path, pictures("Training/a", "Training/b", "Testing/a", "Testing/b"))
    )
    assert folder.classes == ["a", "b"]
    assert {path.split("/")[0] for path in paths(folder, "train") + paths(folder, "val")} == {
        "Training"
    }
    assert {path.split("/")[0] for path in paths(folder, "test")} == {"Testing"}


def test_where_results_will_go_is_a_class_only_where_pictures_are(tmp_path: Path) -> None:
    root = write(tmp_path, FLAT | {"runs/notes.txt": TEXT})
    assert scan_folder(root, leave_out=[root / "runs"]).classes == ["cat", "dog"]
    write(root, pictures("runs", first=70))  # people who run, say
    assert scan_folder(root, leave_out=[root / "runs"]).classes == ["cat", "dog", "runs"]


# What is refused


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ({}, "ROOT/CLASS"),
        ({"readme.txt": TEXT, "a/notes.txt": TEXT}, "ROOT/CLASS"),
        (
            {f"{n}.jpg": png(n) for n in range(3)},
            r"one folder a class; .*3 pictures in no class folder \(0\.jpg, 1",
        ),
        (pictures("cat"), r"only one class \(cat\)"),
        (pictures("train/cat", "val/cat"), r"only one class \(cat\)"),
        ({**pictures("cat"), "dog/1.png": png(99)}, "class dog has one picture"),
        (
            {**pictures("cat"), "dog/1.png": png(99), "dog/copy.png": png(99)},
            "class dog .*two different",
        ),
        ({**pictures("cat", "dog"), "empty/notes.txt": TEXT}, "empty"),
        ({**SPLIT, **pictures("val/horse")}, "val has classes that training lacks: horse"),
        ({**SPLIT, **pictures("test/horse")}, "test has classes that training lacks: horse"),
        (
            {**pictures("train/cat", "train/dog"), "val/cat/notes.txt": TEXT},
            "no readable validation picture",
        ),
        (pictures("learn/a", "learn/b", "val/a", "val/b"), "`train_split`"),
    ],
    ids=[
        "empty folder",
        "no pictures",
        "loose pictures",
        "one class",
        "one class, split",
        "one picture",
        "two copies of one picture",
        "empty class",
        "unknown validation class",
        "unknown test class",
        "empty validation",
        "training folder under another name",
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_refused_with_a_hint(
    files: dict[str, bytes], hint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=hint):
        scan_folder(write(tmp_path, files))


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a folder"):
        scan_folder(write(tmp_path, {"file": TEXT}) / "file")


def test_a_corrupt_picture_is_an_error_that_names_it_and_the_way_out(tmp_path: Path) -> None:
    root = write(tmp_path, FLAT | {"dog/broken.jpg": TEXT})
    with pytest.raises(DataError, match=r"1 of 11 .*dog/broken\.jpg .*`on_bad_image='skip'`"):
        scan_folder(root)


def test_of_many_corrupt_pictures_the_first_few_are_named_in_one_line(tmp_path: Path) -> None:
    root = write(tmp_path, FLAT | {f"dog/bad{n}.jpg": TEXT for n in range(30)})
    with pytest.raises(DataError, match=r"30 of 40 .*bad0\.jpg.*bad1\.jpg.* and 27 more") as caught:
        scan_folder(root)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_skip_leaves_the_corrupt_picture_out_and_records_it(tmp_path: Path) -> None:
    root = write(tmp_path, FLAT | {"dog/broken.jpg": TEXT, "cat/cut.png": png(5)[:40]})
    folder = scan_folder(root, ScanSettings(on_bad_image="skip"))
    assert every_path(folder) == sorted(FLAT)
    assert sorted(entry.path for entry in folder.rejected) == ["cat/cut.png", "dog/broken.jpg"]
    assert all(entry.reason for entry in folder.rejected)


def test_skipping_a_picture_gives_the_folder_without_it(tmp_path: Path) -> None:
    clean = scan_folder(write(tmp_path / "clean", FLAT))
    skipped = scan_folder(
        write(tmp_path / "dirty", FLAT | {"dog/broken.jpg": TEXT}),
        ScanSettings(on_bad_image="skip"),
    )
    assert skipped.fingerprint() == clean.fingerprint()


def test_a_class_left_without_a_readable_picture_is_refused_even_with_skip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class bad"):
        scan_folder(
            write(tmp_path, FLAT | {"bad/1.png": TEXT, "bad/2.png": TEXT}),
            ScanSettings(on_bad_image="skip"),
        )


# Evaluation


def test_evaluation_takes_the_validation_pictures(tmp_path: Path) -> None:
    listed = list_evaluation(write(tmp_path, SPLIT), ["cat", "dog"])
    assert sorted(path for path, _ in listed) == sorted(
        name for name in SPLIT if name.startswith("val")
    )


def test_evaluation_takes_all_of_a_flat_folder_in_natural_order(tmp_path: Path) -> None:
    listed = list_evaluation(write(tmp_path, FLAT), ["dog", "cat"])
    assert listed == [
        (name, label)
        for label, kind in enumerate(("dog", "cat"))
        for name in FLAT
        if name.startswith(kind)
    ]


def test_evaluation_takes_the_split_that_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, SPLIT | pictures("test/cat", each=2))
    assert list_evaluation(root, ["cat", "dog"], split="test") == [
        ("test/cat/0.png", 0),
        ("test/cat/1.png", 0),
    ]


def test_labels_of_an_evaluation_are_the_models_not_the_folders(tmp_path: Path) -> None:
    assert list_evaluation(write(tmp_path, pictures("cat", each=1)), ["dog", "horse", "cat"]) == [
        ("cat/0.png", 2)
    ]


def test_a_list_for_an_evaluation_opens_no_picture(tmp_path: Path) -> None:
    assert list_evaluation(write(tmp_path, {"dog/broken.jpg": TEXT}), ["cat", "dog"]) == [
        ("dog/broken.jpg", 1)
    ]


@pytest.mark.parametrize(
    ("files", "split", "hint"),
    [
        ({}, None, "no pictures"),
        (FLAT | pictures("wolf"), None, "knows no class wolf; it knows cat, dog"),
        (FLAT, "test", "no folder 'test'"),
    ],
    ids=["empty", "unknown class", "no such split"],
)
def test_a_folder_that_cannot_be_evaluated_is_refused(
    files: dict[str, bytes], split: str | None, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=hint):
        list_evaluation(write(tmp_path, files), ["cat", "dog"], split=split)


def test_a_missing_folder_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        list_evaluation(tmp_path / "nowhere", ["cat"])
