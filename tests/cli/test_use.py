"""evaluate and predict as a user meets them: real processes, mostly with an ONNX file."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import GIVEN, run_command
from PIL import Image
from tiny_onnx import write_tiny_onnx

import arelu_tl
from arelu_tl.errors import StorageError
from arelu_tl.records.csv_table import read_table

Done = subprocess.CompletedProcess[str]


def command(*arguments: str | Path, cwd: Path) -> Done:
    return run_command(*arguments, cwd=cwd, COLUMNS="160")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pictures of what it knows, and all that can be wrong with either."""
    here = tmp_path_factory.mktemp("use")
    write_tiny_onnx(here / "m.onnx")
    write_tiny_onnx(here / "theirs.onnx", metadata={})
    (here / "m.pt2").write_bytes(b"PK\x03\x04")
    (here / "letter.txt").write_text("hello")
    for number, (label, colour) in enumerate(
        {"red": (250, 9, 9), "green": (9, 250, 9), "blue": (9, 9, 250)}.items()
    ):
        for root in ("data", "dirty"):
            (here / root / label).mkdir(parents=True)
            for n in range(3):
                Image.new("RGB", (20 + n, 20), colour).save(here / root / label / f"{n}.png")
        Image.new("RGB", (9, 9), colour).save(here / "dirty" / "red" / f"more{number}.png")
    (here / "dirty" / "green" / "torn.png").write_bytes(
        (here / "data" / "green" / "0.png").read_bytes()[:50]
    )
    (here / "full").mkdir()
    (here / "full" / "letter.txt").write_text("hello")
    return here


def test_a_quoted_tilde_is_the_home_folder(place: Path, tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    shutil.copytree(place / "data", home / "data")
    here.mkdir()
    done = run_command(
        "evaluate", place / "m.onnx", "~/data", "--output=~/told", cwd=here, HOME=str(home)
    )
    assert done.returncode == 0, done.stderr
    assert (home / "told" / "evaluation.json").is_file()
    assert list(here.iterdir()) == []


GOOD, DIRTY = ["evaluate", "m.onnx", "data"], ["evaluate", "m.onnx", "dirty"]
CALLS: dict[str, list[str]] = {
    "evaluate": [*GOOD],
    "evaluate, files": [*GOOD, "--output", "out"],
    "evaluate, full": [*GOOD, "--output", "full"],
    "evaluate, dirty": [*DIRTY, "--json", "--quiet"],
    "evaluate, skip": [*DIRTY, "--json", "--on-bad-image", "skip"],
    "predict": ["predict", "m.onnx", "data/red", "data/green/0.png"],
    "predict, json": ["predict", "m.onnx", "data/*/1.png", "--json", "--top", "2", "-b", "2"],
    "predict, csv": ["predict", "m.onnx", "nowhere.png", "dirty/green", "--csv", "--quiet"],
    "predict, nothing": ["predict", "m.onnx", "nowhere.png"],
    "both": ["predict", "m.onnx", "data", "--csv", "--json"],
    "pt2": ["predict", "m.pt2", "data"],
    "theirs": ["evaluate", "theirs.onnx", "data"],
    "letter": ["evaluate", "letter.txt", "data"],
    "missing": ["evaluate", "nowhere.onnx", "data"],
    "no folder": ["evaluate", "m.onnx", "nowhere"],
}


@pytest.fixture(scope="module")
def results(place: Path) -> dict[str, Done]:
    return {name: command(*CALLS[name], cwd=place) for name in CALLS}


def test_an_evaluation_is_printed_and_says_how_to_get_the_pictures(
    results: dict[str, Done],
) -> None:
    done = results["evaluate"]
    assert done.returncode == 0, done.stderr
    for words in (
        "9 pictures: accuracy 1.0000, loss",
        "macro-F1 1.0000",
        "expected calibration error",
        "confusion",
    ):
        assert words in done.stdout, words
    assert "--output" in done.stderr.splitlines()[-1]


def test_an_evaluation_with_a_folder_writes_it_and_nothing_elsewhere(
    results: dict[str, Done], place: Path
) -> None:
    done = results["evaluate, files"]
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (place / "out").iterdir()} == {
        "evaluation.json",
        "predictions.csv",
        "confusion.png",
    }
    assert "out/confusion.png" in done.stdout
    known = {"m.onnx", "theirs.onnx", "m.pt2", "letter.txt", "data", "dirty", "full", "out"}
    assert {p.name for p in place.iterdir()} == known
    full = results["evaluate, full"]
    assert (full.returncode, full.stdout) == (5, "")
    assert [p.name for p in (place / "full").iterdir()] == ["letter.txt"]


def test_a_bad_picture_is_named_and_left_out_of_an_evaluation(results: dict[str, Done]) -> None:
    strict, lenient = results["evaluate, dirty"], results["evaluate, skip"]
    assert (strict.returncode, lenient.returncode) == (2, 0)
    for done in (strict, lenient):
        assert "left out green/torn.png" in done.stderr
    assert strict.stderr.splitlines()[-1].startswith("arelu-tl: left out: 1 of 13 pictures")
    reports = [json.loads(done.stdout) for done in (strict, lenient)]
    assert reports[0] == reports[1]
    assert reports[0]["images"] == 12
    assert reports[0]["top1"] == pytest.approx(10 / 12)
    assert [each["path"] for each in reports[0]["rejected"]] == ["green/torn.png"]


def test_predictions_are_a_table_json_or_csv(results: dict[str, Done]) -> None:
    table = results["predict"]
    assert table.returncode == 0, table.stderr
    rows = [line for line in table.stdout.splitlines() if ".png" in line]
    assert [row.split()[1] for row in rows] == ["red"] * 3 + ["green"]
    told = json.loads(results["predict, json"].stdout)
    assert [(each["path"], each["predictions"][0]["label"]) for each in told] == [
        ("data/blue/1.png", "blue"), ("data/green/1.png", "green"), ("data/red/1.png", "red"),
    ]  # fmt: skip
    assert all(len(each["predictions"]) == 2 for each in told)
    assert told[0]["predictions"][0]["probability"] > 0.9


def test_pictures_that_are_missing_or_torn_are_named_and_the_others_labelled(
    results: dict[str, Done],
) -> None:
    done = results["predict, csv"]
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "left out nowhere.png: no such file or folder"
    assert lines[1].startswith("left out dirty/green/torn.png: ")
    assert (
        lines[2]
        == "arelu-tl: left out: 2 of 5 (nowhere.png (no such file or folder); dirty/green/torn.png ("
        + lines[1].partition("torn.png: ")[2]
        + "))"
    )
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0]) == [
        "path",
        "label",
        "probability",
        "label_2",
        "probability_2",
        "label_3",
        "probability_3",
    ]
    assert [(row["path"], row["label"]) for row in rows] == [
        (f"dirty/green/{n}.png", "green") for n in range(3)
    ]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("predict, nothing", 2, "no picture to label"),
        ("both", 2, "not both"),
        ("pt2", 3, "execute code"),
        ("theirs", 3, "not written by arelu-tl"),
        ("letter", 2, "no model"),
        ("missing", 2, "no such folder or file"),
        ("no folder", 2, "no such folder"),
        ("evaluate, full", 5, "holds no evaluation"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    name: str, code: int, words: str, results: dict[str, Done]
) -> None:
    done = results[name]
    assert (done.returncode, done.stdout) == (code, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("arelu-tl: ")
    assert words in last
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (2 if name == "predict, nothing" else 1)


def test_an_onnx_file_needs_no_torch(place: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom arelu_tl.cli.app import main\n"
        "for arguments in (['predict', 'm.onnx', 'data', '--json'], ['evaluate', 'm.onnx', 'data', '--output', sys.argv[1]]):\n"
        "    try:\n        main(arguments)\n    except SystemExit as end:\n        assert not end.code, end.code\n"
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "evaluation.json").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_bar_of_a_terminal_takes_no_row_from_the_file(place: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "arelu_tl", "predict", "m.onnx", "data", "--csv"]
    done = subprocess.run(
        arguments,
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    assert "labelling" in os.read(ours, 65536).decode()
    os.close(ours)
    assert len(done.stdout.splitlines()) == 1 + 9


def test_class_names_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    names = ["[red]a[b]", "b\x1b[31m", "=1+1"]
    write_tiny_onnx(tmp_path / "m.onnx", classes=names)
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), (0, 0, 250)).save(tmp_path / "data" / name / "[bold]\x1b.png")
    calls = [["evaluate", "m.onnx", "data", "--output", "out"], ["predict", "m.onnx", "data"]]
    for each in [command(*call, cwd=tmp_path) for call in calls]:
        assert each.returncode == 0, each.stderr
        assert "[red]a[b]" in each.stdout
        assert "\x1b" not in each.stdout + each.stderr
    assert [row["predicted"] for row in read_table(tmp_path / "out" / "predictions.csv")] == [
        "=1+1"
    ] * 3
    assert "\x1b" not in (tmp_path / "out" / "predictions.csv").read_text()


# What torch runs


@pytest.fixture(scope="module")
def trained(make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, its export, and an export of which one byte was changed."""
    here = tmp_path_factory.mktemp("trained")
    config = arelu_tl.FinetuneConfig(
        data=make_folder(), output=here / "runs", model="test_resnet", pretrained=False, **GIVEN, img_size=32, epochs=2,
        batch_size=8, workers=0, baseline=False, lr=1e-3, device="cpu",
    )  # fmt: skip
    run = arelu_tl.finetune(config).runs[0].path
    for name in ("export", "tampered"):
        arelu_tl.export(run, "safetensors", here / name)
    weights = here / "tampered" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert config.data is not None
    return {
        "run": run,
        "export": here / "export",
        "tampered": here / "tampered",
        "data": config.data,
    }


def test_evaluate_and_predict_agree_with_the_run_and_notice_one_changed_byte(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    run, data = trained["run"], trained["data"]
    lines = (run / "predictions.csv").read_text().splitlines()[1:]
    path, _, predicted, probability = lines[0].split(",")
    calls: list[list[Any]] = [
        ["evaluate", run, data, "--json"],
        ["predict", trained["export"], data / path, "--json", "--device", "cpu"],
        ["evaluate", trained["tampered"], data],
    ]
    evaluated, labelled, refused = (command(*call, cwd=tmp_path) for call in calls)
    assert evaluated.returncode == labelled.returncode == 0, evaluated.stderr + labelled.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert json.loads(evaluated.stdout)["top1"] == pytest.approx(summary["best_top1"])
    assert json.loads(evaluated.stdout)["images"] == len(lines)
    first = json.loads(labelled.stdout)[0]["predictions"][0]
    assert first["label"] == predicted
    assert first["probability"] == pytest.approx(float(probability), abs=1e-4)
    assert (refused.returncode, "has changed since" in refused.stderr) == (3, True)


def test_what_was_trained_on_is_left_out_or_counted_on_demand_and_said(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    asked = [
        "evaluate",
        trained["export"],
        trained["data"],
        "--split",
        "train",
        "--json",
        "--quiet",
    ]
    refused, counted = (
        command(*asked, cwd=tmp_path),
        command(*asked, "--include-training", cwd=tmp_path),
    )
    assert refused.returncode == 2
    assert (
        "all 24 pictures were trained on: name others, or pass --include-training" in refused.stderr
    )
    assert counted.returncode == 0, counted.stderr
    assert json.loads(counted.stdout)["training_pictures"] == {"found": 24, "counted": True}
    (line,) = counted.stderr.splitlines()
    assert (
        line
        == "24 of 24 pictures were trained on and are counted: this is no accuracy on new pictures"
    )
    for split in ("train", "val"):
        shutil.copytree(
            trained["data"] / split, tmp_path / "data", dirs_exist_ok=True, copy_function=_beside
        )
    mixed = command("evaluate", trained["export"], "data", cwd=tmp_path)
    assert mixed.stdout.startswith("12 pictures: ")
    assert (
        "left out: 24 of 36 pictures, which the model was trained on (--include-training counts them)"
        in mixed.stderr
    )
    (tmp_path / "lone").mkdir()
    lone = shutil.copytree(trained["run"], tmp_path / "lone" / "run")
    unknown = command("evaluate", lone, "data", cwd=tmp_path)
    assert unknown.stdout.startswith("36 pictures: ")
    assert "nothing tells which pictures this model was trained on" in unknown.stderr


def _beside(source: str, target: str) -> str:
    """Copy a file under the name of its split, so that none takes another's place."""
    name = f"{Path(source).parents[1].name}-{Path(source).name}"
    return str(shutil.copy(source, Path(target).with_name(name)))


def test_an_export_is_not_written_over(trained: dict[str, Path]) -> None:
    assert {p.name for p in trained["export"].iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(StorageError, match="not empty"):
        arelu_tl.export(trained["run"], "safetensors", trained["export"])
