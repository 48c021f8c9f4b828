"""Whether ``train`` is a split or a class is decided in one place, and never by leaving classes out."""

from pathlib import Path
from typing import Any

import pytest
from picture_files import FLAT, SPLIT, TEXT, every_path, pictures, write

from arelu_tl.data.folder import list_evaluation, scan_folder
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.records.config import check_config
from arelu_tl.records.settings import ScanSettings

VEHICLES = pictures("bus", "car", "train", each=4)
TRAINS = pictures("bus", "car", "train/steam", "train/diesel", each=4)


@pytest.mark.parametrize(
    ("files", "split", "flat"),
    [
        (VEHICLES, "no class in 'train'", "bus, car, train"),
        (TRAINS, "classes diesel, steam of 'train', without bus, car", "bus, car, train"),
        (
            SPLIT | pictures("extra", first=90),
            "classes cat, dog of 'train', without extra",
            "extra, train, val",
        ),
        (
            SPLIT | pictures("extra/a", first=90),
            "classes cat, dog of 'train', without extra",
            "extra, train, val",
        ),
        (
            SPLIT | pictures("validation/cat", first=90),
            "without validation",
            "train, val, validation",
        ),
        (pictures("Train", "bus"), "no class in 'Train'", "Train, bus"),
    ],
    ids=[
        "a class train",
        "with folders in it",
        "a folder beside the splits",
        "with classes in it",
        "two val",
        "in capitals",
    ],
)
def test_folders_of_pictures_beside_train_are_refused_with_both_readings(
    files: dict[str, bytes], split: str, flat: str, tmp_path: Path
) -> None:
    root = write(tmp_path, files)
    with pytest.raises(DataError) as refused:
        scan_folder(root)
    told = str(refused.value)
    assert "`layout='split'` takes " in told
    assert split in told
    assert f"`layout='flat'` takes the classes {flat}" in told
    problems: list[str] = []
    with pytest.raises(DataError) as checked:
        scan_folder(root, problems=problems)
    assert str(checked.value) == told


def test_flat_takes_every_folder_for_a_class(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, TRAINS), ScanSettings(layout="flat"))
    assert (folder.layout, folder.classes) == ("flat", ["bus", "car", "train"])
    assert every_path(folder) == sorted(TRAINS)
    assert scan_folder(
        write(tmp_path / "vehicles", VEHICLES), ScanSettings(layout="flat")
    ).counts()["val"] == {
        "bus": 1,
        "car": 1,
        "train": 1,
    }
    assert scan_folder(write(tmp_path / "split", SPLIT), ScanSettings(layout="flat")).classes == [
        "train",
        "val",
    ]


def test_split_takes_what_is_in_train_alone(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, TRAINS), ScanSettings(layout="split"))
    assert folder.classes == ["diesel", "steam"]
    assert len(every_path(folder)) == 8
    with pytest.raises(DataError, match="no pictures in class folders"):
        scan_folder(write(tmp_path / "vehicles", VEHICLES), ScanSettings(layout="split"))
    with pytest.raises(DataError, match="no folder 'train'"):
        scan_folder(write(tmp_path / "flat", FLAT), ScanSettings(layout="split"))


@pytest.mark.parametrize(
    "beside",
    [
        {},
        pictures("test/cat", "test/dog", first=90),
        {"notes.txt": TEXT, "1.png": TEXT},
        {"annotations/1.xml": TEXT, "empty/.keep": TEXT},
        pictures("__MACOSX/cat", "@eaDir", ".cache", first=90),
        {**pictures("runs/study-1/maps", first=90), "runs/study-1/study.yaml": TEXT},
        {**pictures("plots", first=90), "plots/evaluation.json": TEXT, "plots/confusion.png": TEXT},
    ],
    ids=["nothing", "a test split", "files", "no pictures", "litter", "a study", "an evaluation"],
)
def test_what_is_no_class_beside_train_leaves_no_doubt(
    beside: dict[str, bytes], tmp_path: Path
) -> None:
    root = write(tmp_path, SPLIT | beside)
    assert scan_folder(root).classes == ["cat", "dog"]
    assert len(list_evaluation(root, ["cat", "dog"])) == 6


def test_train_alone_is_a_split(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, pictures("train/cat", "train/dog")))
    assert (folder.classes, folder.layout) == (["cat", "dog"], "flat")
    assert set(folder.splits) == {"train", "val"}


def test_pictures_right_in_train_and_val_are_no_two_classes(tmp_path: Path) -> None:
    """The folders of the classes were forgotten."""
    with pytest.raises(DataError, match="no pictures in class folders"):
        scan_folder(write(tmp_path, pictures("train", "val", each=4)))


def test_a_class_called_val_or_test_is_one_where_there_is_no_train(tmp_path: Path) -> None:
    root = write(tmp_path, pictures("bus", "val", "test", each=4))
    assert scan_folder(root).classes == ["bus", "test", "val"]
    assert len(list_evaluation(root, ["bus", "test", "val"])) == 12
    deep = write(tmp_path / "deep", pictures("bus", "val/a", "val/b", each=4))
    with pytest.raises(DataError, match="where 'val' is a class, pass `layout='flat'`"):
        scan_folder(deep)
    assert scan_folder(deep, ScanSettings(layout="flat")).classes == ["bus", "val"]


def test_a_split_that_is_named_leaves_no_doubt(tmp_path: Path) -> None:
    root = write(tmp_path, SPLIT | pictures("more/cat", "more/dog", first=90))
    assert every_path(scan_folder(root, ScanSettings(val_split="val"))) == sorted(SPLIT)
    folder = scan_folder(root, ScanSettings(train_split="more", val_split="val"))
    assert {path.split("/")[0] for path in every_path(folder)} == {"more", "val"}


# Evaluation


@pytest.mark.parametrize(
    ("files", "classes", "options", "found"),
    [
        (VEHICLES, ["bus", "car", "train"], {}, set(VEHICLES)),
        (TRAINS, ["bus", "car", "train"], {}, set(TRAINS)),
        (TRAINS, ["diesel", "steam"], {}, {name for name in TRAINS if name.startswith("train")}),
        (TRAINS, ["diesel", "steam"], {"split": "train"}, {name for name in TRAINS if name.startswith("train")}),
        (TRAINS, ["bus", "car", "train"], {"layout": "flat"}, set(TRAINS)),
        (SPLIT | pictures("extra", first=90), ["cat", "dog"], {}, {name for name in SPLIT if name.startswith("val")}),
        (pictures("bus", "val"), ["bus", "val"], {}, set(pictures("bus", "val"))),
        (pictures("val/cat", "val/dog"), ["cat", "dog"], {}, set(pictures("val/cat", "val/dog"))),
        (pictures("val/cat", "bus"), ["cat"], {"layout": "split"}, set(pictures("val/cat"))),
    ],
)  # fmt: skip
def test_the_models_classes_say_what_an_evaluation_takes(
    files: dict[str, bytes],
    classes: list[str],
    options: dict[str, Any],
    found: set[str],
    tmp_path: Path,
) -> None:
    assert {
        path for path, _ in list_evaluation(write(tmp_path, files), classes, **options)
    } == found


def test_an_evaluation_of_splits_that_are_not_there_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, FLAT)
    with pytest.raises(DataError, match="no folder 'val' or 'train'"):
        list_evaluation(root, ["cat", "dog"], layout="split")
    with pytest.raises(DataError, match="knows no class"):
        list_evaluation(write(tmp_path / "split", SPLIT), ["cat", "dog"], layout="flat")


# The configuration


@pytest.mark.parametrize("named", [{"train_split": "learn"}, {"val_split": "val"}])
def test_a_flat_layout_has_no_named_splits(named: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="layout flat has no"):
        check_config({"layout": "flat", **named})
