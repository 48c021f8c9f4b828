"""explain gradients and explain activations as a user meets them: real processes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import GIVEN_WORDS, run_command
from PIL import Image

Done = subprocess.CompletedProcess[str]
TINY = [
    *GIVEN_WORDS,
    "--no-pretrained",
    "--img-size",
    "32",
    "-b",
    "8",
    "-j",
    "0",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def place(make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("explain")
    (here / "data").symlink_to(make_folder(train=6, val=2))
    (here / "empty").mkdir()
    done = run_command(
        "finetune",
        "data",
        "--model",
        "test_resnet",
        "--epochs",
        "1",
        "--name",
        "study",
        *TINY,
        "-q",
        cwd=here,
    )
    assert done.returncode == 0, done.stderr
    return here


RUN = "runs/study/arelu-lr0.0001-s0"
CALLS: dict[str, list[str]] = {
    "run": ["gradients", RUN, "--batches", "1"],
    "model": [
        "gradients",
        "test_resnet",
        "data",
        *TINY,
        "--steps",
        "2",
        "--batches",
        "1",
        "--json",
        "-q",
        "--output",
        "new/place",
    ],
    "activations": ["activations", RUN],
    "activations, json": ["activations", RUN, "--json", "--output", "elsewhere"],
    "gallery": ["activations", "--gallery"],
    "catalogue": ["activations", "--json", "--output", "shapes"],
    "no data": ["gradients", "test_resnet"],
    "no run": ["gradients", "runs/nothing"],
    "no study": ["gradients", "empty"],
    "no model": ["gradients", "no_such_net", "data"],
    "no folder": ["gradients", "test_resnet", "nowhere"],
    "own settings": ["gradients", RUN, "--lr", "1", "--arm", "prelu"],
    "relu": ["gradients", "test_resnet", "data", "--arm", "relu", *TINY],
    "relu's activations": ["activations", "runs/study/relu-lr0.0001-s0"],
    "a study": ["activations", "runs/study"],
    "nothing": ["activations", "nowhere"],
    "both": ["activations", RUN, "--gallery"],
    "a file": ["activations", "--output", "runs/study/study.yaml"],
}


@pytest.fixture(scope="module")
def results(place: Path) -> dict[str, Done]:
    return {
        name: run_command("explain", *words, cwd=place, COLUMNS="160")
        for name, words in CALLS.items()
    }


def test_a_runs_gradients_are_a_table_a_figure_and_sentences(
    results: dict[str, Done], place: Path
) -> None:
    done = results["run"]
    assert done.returncode == 0, done.stderr
    folder = place / RUN / "explain"
    assert {"gradients.png", "gradients.json"} <= {path.name for path in folder.iterdir()}
    assert done.stdout.rstrip().endswith(
        f"wrote {RUN}/explain/gradients.png, {RUN}/explain/gradients.json"
    )
    told = json.loads((folder / "gradients.json").read_text())
    for sentence in told["found"]:
        assert " ".join(sentence.split()) in " ".join(done.stdout.split())
    assert {point["arm"] for point in told["points"]} == {"relu", "arelu"}
    with Image.open(folder / "gradients.png") as picture:
        assert picture.size[0] == 1716


def test_a_models_gradients_as_json_are_the_file(results: dict[str, Done], place: Path) -> None:
    done = results["model"]
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told == json.loads((place / "new" / "place" / "gradients.json").read_text())
    assert [(p["arm"], p["step"]) for p in told["points"]] == [
        (arm, n) for arm in ("relu", "arelu") for n in (0, 1, 2)
    ]


def test_a_runs_activations_are_drawn_and_told(results: dict[str, Done], place: Path) -> None:
    done = results["activations"]
    assert done.returncode == 0, done.stderr
    assert "conv1.2" in done.stdout
    assert "the 12 activations of arelu" in done.stdout
    assert f"wrote {RUN}/explain/activations.png, {RUN}/explain/activations.json" in done.stdout
    told = json.loads(results["activations, json"].stdout)
    written = json.loads((place / "elsewhere" / "activations.json").read_text())
    assert told == {key: value for key, value in written.items() if key != "found"}
    assert [len(site["final"]) for site in told["sites"]] == [len(told["x"])] * 12


def test_the_gallery_is_what_there_is_without_a_run(results: dict[str, Done], place: Path) -> None:
    assert results["gallery"].returncode == 0, results["gallery"].stderr
    assert (place / "explain" / "gallery.png").is_file()
    assert "AReLU" in results["gallery"].stdout
    shapes = json.loads(results["catalogue"].stdout)["shapes"]
    assert len(shapes) == 21
    assert (place / "shapes" / "gallery.png").read_bytes() == (
        place / "explain" / "gallery.png"
    ).read_bytes()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("no data", 2, "no folder of pictures: arelu-tl explain gradients test_resnet DATA"),
        ("no run", 2, "runs/nothing is neither a run nor a study"),
        ("no study", 2, "empty is neither a run nor a study"),
        ("no model", 2, "no_such_net"),
        ("no folder", 2, "nowhere: no such folder"),
        ("own settings", 2, "has its own configuration; leave out: arm, lr"),
        ("relu", 2, "choose another --arm"),
        ("relu's activations", 2, "keeps every ReLU"),
        ("a study", 2, "is a study: name one of its runs"),
        ("nothing", 2, "nowhere: no such folder"),
        ("both", 2, "leave out one of them"),
        ("a file", 5, "cannot write runs/study/study.yaml"),
    ],
)
def test_what_cannot_be_is_one_line_and_the_exit_code(
    results: dict[str, Done], name: str, code: int, words: str
) -> None:
    done = results[name]
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.splitlines()[-1].startswith("arelu-tl: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
