"""What lies among pictures and is none of them (our own results, systems' litter) is no class, no picture, and said."""

from pathlib import Path

import pytest
from picture_files import FLAT, SPLIT, TEXT, every_path, pictures, png, write

from arelu_tl.data.folder import list_evaluation, scan_folder
from arelu_tl.data.listing import list_all
from arelu_tl.data.passed_over import PassedOver, is_litter
from arelu_tl.errors import DataError
from arelu_tl.experiment import check
from arelu_tl.explain.activations import show as curves
from arelu_tl.explain.gradients import show as gradients
from arelu_tl.models import files as evaluation_files
from arelu_tl.models.predict import find_pictures
from arelu_tl.paper import config as reproduction
from arelu_tl.records import runs
from arelu_tl.records.runs import holds_results

STUDY = {
    "study.yaml": TEXT,
    "convergence.png": png(801),
    "arelu-lr0.1-s0/run.yaml": TEXT,
    "arelu-lr0.1-s0/maps.png": png(802),
}


def study(place: str) -> dict[str, bytes]:
    return {f"{place}/{name}": content for name, content in STUDY.items()}


PLACES = ["runs/study-1", "study-1", "cat/study-1", "dog/deep/er/runs/study-1"]


@pytest.mark.parametrize("place", PLACES)
def test_a_study_is_no_class_and_its_plots_no_pictures_wherever_it_lies(
    place: str, tmp_path: Path
) -> None:
    root = write(tmp_path, FLAT | study(place))
    folder = scan_folder(root)
    assert folder.classes == ["cat", "dog"]
    assert every_path(folder) == sorted(FLAT)
    assert folder.passed.results == [place]
    assert f"1 folder of arelu-tl's own results ({place})" in folder.passed.line()
    assert folder.to_json()["passed_over"]["results"] == [place]
    assert [path for path, _ in list_evaluation(root, ["cat", "dog"])] == list(FLAT)
    found = find_pictures([str(root)])
    assert sorted(str(path.relative_to(root)) for path in found.paths) == sorted(FLAT)
    assert found.passed.results == [str(root / place)]


@pytest.mark.parametrize(
    "place", ["train/study-1", "train/cat/study-1", "study-1", "runs/study-1", "val/dog/study-1"]
)
def test_so_it_is_beside_and_in_the_folders_own_splits(place: str, tmp_path: Path) -> None:
    root = write(tmp_path, SPLIT | study(place))
    folder = scan_folder(root)
    assert folder.layout == "split"
    assert every_path(folder) == sorted(SPLIT)
    assert len(list_evaluation(root, ["cat", "dog"])) == 6


def test_a_study_called_train_is_no_split(tmp_path: Path) -> None:
    folder = scan_folder(write(tmp_path, FLAT | study("train")))
    assert folder.classes == ["cat", "dog"]


def test_a_folder_of_studies_with_pictures_of_its_own_is_a_class(tmp_path: Path) -> None:
    folder = scan_folder(
        write(tmp_path, FLAT | study("runs/study-1") | pictures("runs", first=700))
    )
    assert folder.classes == ["cat", "dog", "runs"]


def test_a_folder_is_searched_that_is_named_itself(tmp_path: Path) -> None:
    """A configuration may well be called study.yaml, and somebody may want a study's own plots labelled."""
    root = write(tmp_path, FLAT | {"study.yaml": TEXT, "plot.png": png(1)})
    assert scan_folder(root).classes == ["cat", "dog"]
    assert len(find_pictures([str(root)]).paths) == len(FLAT) + 1


@pytest.mark.parametrize("pattern", ["**/*", "*", "*/*", "*/*/*"])
def test_patterns_pass_over_studies_and_litter_too(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        FLAT
        | study("runs/study-1")
        | study("study-2")
        | {"@eaDir/1.png": png(3), "cat/._0.png": TEXT},
    )
    monkeypatch.chdir(tmp_path)
    found = find_pictures([pattern])
    assert {str(path) for path in found.paths} <= set(FLAT)
    assert found.paths or pattern == "*/*/*"
    assert len(find_pictures(["runs/study-1/*"]).paths) == 1  # named itself


def test_what_our_commands_write_is_known_by_the_names_that_they_write() -> None:
    for names in (
        {runs.STUDY_CONFIG},
        {runs.RUN_CONFIG},
        {reproduction.CONFIG},
        {runs.REPORT, runs.FIGURE},
        {check.REPORT, check.REJECTED, check.DUPLICATES},
        {evaluation_files.EVALUATION, evaluation_files.CONFUSION},
        {gradients.GRADIENTS, gradients.FIGURE},
        {f"{curves.ACTIVATIONS}.png", f"{curves.ACTIVATIONS}.json"},
    ):
        assert holds_results({*names, "more"}), names
        assert len(names) == 1 or not any(holds_results({name}) for name in names)
    assert not holds_results({"1.png", "config.json"})


# What systems leave

LITTER = {
    "__MACOSX/cat/._1.png": TEXT,
    "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.png": png(61),
    "cat/.thumbnails/1.png": png(62),
    "cat/Thumbs.db": TEXT,
    "dog/THUMBS.DB": TEXT,
    "dog/.DS_Store": TEXT,
    "dog/desktop.ini": TEXT,
    "dog/._0.png": TEXT,
    "$RECYCLE.BIN/1.png": png(63),
    "System Volume Information/1.png": png(64),
    "lost+found/1.png": png(65),
    ".ipynb_checkpoints/1-checkpoint.png": png(66),
    ".Trash-1000/files/1.png": png(67),
}


@pytest.mark.parametrize("layout", [FLAT, SPLIT], ids=["flat", "split"])
def test_what_systems_leave_is_passed_over_and_counted(
    layout: dict[str, bytes], tmp_path: Path
) -> None:
    within = (
        {f"train/{name}": content for name, content in LITTER.items()} if layout is SPLIT else {}
    )
    root = write(tmp_path, layout | LITTER | within)
    folder = scan_folder(root)
    assert folder.classes == ["cat", "dog"]
    assert every_path(folder) == sorted(layout)
    # In the split layout cat and dog in the root hold litter alone, and are beside the splits.
    assert len(folder.passed.litter) == (len(LITTER) if layout is FLAT else len(LITTER) + 6)
    assert "hidden or system files and folders (" in folder.passed.line()
    assert "\n" not in folder.passed.line()
    pictures_found = list_all(root).pictures[""]
    assert sorted(pictures_found) == sorted(layout)


def test_names_that_only_look_like_a_systems_are_classes(tmp_path: Path) -> None:
    names = ["eadir", "thumbs", "macosx", "desktop", "recycle bin"]
    assert not any(map(is_litter, names))
    assert scan_folder(write(tmp_path, pictures(*names))).classes == sorted(names)


def test_loose_pictures_and_other_files_are_counted(tmp_path: Path) -> None:
    folder = scan_folder(
        write(
            tmp_path,
            FLAT | {"1.png": png(70), "2": png(71), "notes.txt": TEXT, "cat/labels.csv": TEXT},
        )
    )
    assert (
        folder.passed.line()
        == "passed over: 2 pictures in no class folder (1.png, 2); 2 other files, no pictures"
    )
    inside = scan_folder(
        write(tmp_path / "split", SPLIT | {"1.png": png(70), "train/2.png": png(71)})
    )
    assert inside.passed.loose == ["1.png", "train/2.png"]
    assert PassedOver().line() == ""


def test_where_all_was_passed_over_the_refusal_says_so(tmp_path: Path) -> None:
    root = write(tmp_path, study("runs/study-1"))
    with pytest.raises(
        DataError, match=r"no pictures in class folders .*own results \(runs/study-1\)"
    ):
        scan_folder(root)
    with pytest.raises(
        DataError, match=r"no pictures in class folders .*own results \(runs/study-1\)"
    ):
        list_evaluation(root, ["cat"])


def test_a_class_that_holds_litter_alone_is_still_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable training picture in class wolf"):
        scan_folder(write(tmp_path, FLAT | {"wolf/@eaDir/1.png": png(60), "wolf/Thumbs.db": TEXT}))
