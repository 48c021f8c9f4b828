"""Run and study folders read back, finished or not; what is no run is a DataError, what is damaged an ArtefactError."""

import json
from pathlib import Path
from typing import Any

import pytest

from arelu_tl.errors import ArtefactError, DataError
from arelu_tl.records.config import check_config, dump_yaml
from arelu_tl.records.runs import find_runs, is_run, is_study, load_run, load_study
from arelu_tl.records.storage import read_json

RATE = {"lr": 1e-4, "seconds": 1.0}
ROWS = [
    {"step": 0, "epoch": 0, "split": "val", "loss": 2.0, "top1": 0.1, **RATE},
    {"step": 5, "epoch": 1, "split": "train", "loss": 1.5, "top1": 0.3, **RATE},
    {"step": 5, "epoch": 1, "split": "val", "loss": 1.0, "top1": 0.5, **RATE},
]
SURGERY = {"sites": [{"name": "act1", "status": "replaced"}], "drift": {"relative": 0.2}}


def write_run(
    path: Path, *, summary: Any = None, rows: Any = ROWS, surgery: Any = None, **settings: Any
) -> Path:
    path.mkdir(parents=True)
    (path / "run.yaml").write_text(dump_yaml(check_config(settings)), encoding="utf-8")
    for name, value in (("summary.json", summary), ("surgery.json", surgery)):
        if value is not None:
            (path / name).write_text(json.dumps(value), encoding="utf-8")
    if rows is not None:
        (path / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return path


def write_study(path: Path, *names: str, **settings: Any) -> Path:
    path.mkdir(parents=True)
    (path / "study.yaml").write_text(dump_yaml(check_config(settings)), encoding="utf-8")
    for name in names:
        write_run(path / name, **settings)
    return path


def names(path: Path) -> list[str]:
    return [run.path.relative_to(path).as_posix() for run in find_runs(path)]


# One run


def test_a_finished_run_tells_all_that_was_recorded(tmp_path: Path) -> None:
    path = write_run(
        tmp_path / "run",
        summary={"status": "finished", "best_top1": 0.5},
        surgery=SURGERY,
        lr=0.01,
        seed=4,
    )
    run = load_run(path)
    assert (run.path, run.config.lr, run.config.seed, run.config.arm) == (path, 0.01, 4, "arelu")
    assert run.status == "finished"
    assert run.summary["best_top1"] == 0.5
    assert run.surgery == SURGERY
    assert run.metrics == ROWS
    assert run.curve() == [ROWS[0], ROWS[2]]
    assert run.curve("train") == [ROWS[1]]


def test_a_path_may_be_given_as_text(tmp_path: Path) -> None:
    assert load_run(str(write_run(tmp_path / "run"))) == load_run(tmp_path / "run")


def test_a_run_that_has_only_begun_is_running_and_has_no_curve(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", rows=None))
    assert run.status == "running"
    assert (run.summary, run.metrics, run.curve(), run.surgery) == ({}, [], [], None)


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_ended_early_says_so(status: str, tmp_path: Path) -> None:
    assert load_run(write_run(tmp_path / "run", summary={"status": status})).status == status


def test_a_row_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 10, "spl')
    assert load_run(path).metrics == ROWS


@pytest.mark.parametrize("path", ["nowhere", ".", "file"])
def test_what_is_no_run_is_a_data_error(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"not a run folder.*run\.yaml"):
        load_run(tmp_path / path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.yaml", "lr: [1"),
        ("run.yaml", "lr: -1\n"),
        ("run.yaml", "learning_rate: 0.1\n"),
        ("run.yaml", "- 1\n"),
        ("summary.json", '{"status": "fin'),
        ("summary.json", ""),
        ("metrics.jsonl", '{"step": 0}\n{"st\n{"step": 2}\n'),
        ("metrics.jsonl", "[0]\n"),
        ("surgery.json", "{"),
    ],
)
def test_a_damaged_file_is_an_artefact_error_that_names_it(
    name: str, content: str, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "run", summary={"status": "finished"}, surgery=SURGERY)
    (path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        load_run(path)


@pytest.mark.parametrize("name", ["summary.json", "surgery.json"])
def test_json_of_another_shape_than_ours_is_an_artefact_error(name: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", summary={"status": "finished"}, surgery=SURGERY)
    (path / name).write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        load_run(path)


# Many runs


def test_a_run_is_found_at_its_own_path(tmp_path: Path) -> None:
    assert names(write_run(tmp_path / "run")) == ["."]


def test_runs_are_found_in_a_study_by_name(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", "relu-lr0.1-s0", "arelu-lr0.1-s0")
    (study / "report.html").touch()
    (study / "notes").mkdir()
    assert names(study) == ["arelu-lr0.1-s0", "relu-lr0.1-s0"]


def test_runs_are_found_in_a_folder_of_studies_and_no_deeper(tmp_path: Path) -> None:
    write_study(tmp_path / "a", "relu")
    write_study(tmp_path / "b", "relu", "arelu")
    write_run(tmp_path / "alone")
    write_study(tmp_path / "deep" / "er", "relu")
    assert names(tmp_path) == ["a/relu", "alone", "b/arelu", "b/relu"]


def test_what_runs_share_is_read_once_a_study_and_what_is_their_own_once_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_study(tmp_path / name, "one", "two", "three") for name in ("a", "b")]
    for path in paths:
        (path / "dataset.json").write_text(json.dumps({"fingerprint": path.name}))
        (path / "one" / "environment.json").write_text(json.dumps({"threads": 2}))
    read: list[Path] = []
    monkeypatch.setattr(
        "arelu_tl.records.runs.read_json", lambda path: (read.append(path), read_json(path))[1]
    )
    runs = find_runs(*paths, paths[0] / "two")
    assert [run.dataset for run in runs] == ["a", "a", "a", "b", "b", "b"]
    assert [path for path in read if path.name == "dataset.json"] == [
        path / "dataset.json" for path in paths
    ]
    assert [run.environment for run in runs[:3] * 3] == [{"threads": 2}, {}, {}] * 3
    assert [path for path in read if path.name == "environment.json"] == [
        path / "one" / "environment.json" for path in paths
    ]


def test_a_run_does_not_count_what_lies_inside_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_run(run / "copy")
    assert names(run) == ["."]


@pytest.mark.parametrize("path", ["nowhere", "file"])
def test_no_folder_is_a_data_error(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="no such folder"):
        find_runs(tmp_path / path)


def test_a_folder_without_runs_is_a_data_error_that_says_what_was_looked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"run\.yaml"):
        find_runs(tmp_path)


def test_one_damaged_run_among_many_is_an_artefact_error_that_names_it(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", "arelu", "relu")
    (study / "relu" / "run.yaml").write_text("lr: ?", encoding="utf-8")
    with pytest.raises(ArtefactError, match="relu"):
        find_runs(study)


# Studies


def test_a_study_has_its_settings_and_all_its_runs(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "study", "relu", "arelu", lr=0.02))
    assert study.config.lr == 0.02
    assert [run.path.name for run in study.runs] == ["arelu", "relu"]


def test_a_study_that_was_stopped_before_its_first_run_has_none(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    assert load_study(study).runs == []
    with pytest.raises(DataError, match="no runs"):
        find_runs(study)


def test_a_run_is_no_study_nor_a_study_a_run(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", "arelu")
    assert (is_study(study), is_run(study)) == (True, False)
    assert (is_study(study / "arelu"), is_run(study / "arelu")) == (False, True)
    with pytest.raises(DataError, match=r"not a study folder.*study\.yaml"):
        load_study(study / "arelu")


def test_a_damaged_study_is_an_artefact_error(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", "arelu")
    (study / "study.yaml").write_text("epochs: none\n", encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"study\.yaml"):
        load_study(study)
