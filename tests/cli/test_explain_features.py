"""explain features as a user meets it: real processes, a page, a table or JSON, and one line for all that is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from commands import run_command
from PIL import Image
from trained_runs import write_trained_run

Done = subprocess.CompletedProcess[str]
RUN = "study/arelu-lr0.0001-s0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("explain")
    for arm in ("relu", "arelu"):
        write_trained_run(here / "study", "test_resnet", arm=arm, size=64)
    (here / "study" / "study.yaml").write_text("{}")
    Image.linear_gradient("L").resize((90, 70)).save(here / "grey.png")
    (here / "torn.png").write_bytes((here / "grey.png").read_bytes()[:60])
    (here / "file").write_text("")
    return here


def command(*arguments: str | Path, cwd: Path) -> Done:
    return run_command("explain", "features", *arguments, cwd=cwd, COLUMNS="160")


def test_a_page_and_a_table(place: Path) -> None:
    done = command(
        "study", "grey.png", "--site", "conv1.*", "--channels", "2", "--class", "class 1", cwd=place
    )
    assert done.returncode == 0, done.stderr
    for told in (
        "relu, step 10: class",
        "arelu, step 10: class",
        "conv1.2",
        "zero after",
        "figure: study/features-grey-",
    ):
        assert told in done.stdout
    (written,) = (place / "study").glob("features-grey-*.png")
    with Image.open(written) as page:
        assert page.width > 1500


def test_json_tells_every_site_and_both_arms(place: Path) -> None:
    done = command(RUN, "grey.png", "--json", "--output", "new/page.png", cwd=place)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [arm["arm"] for arm in told["arms"]] == ["relu", "arelu"]
    assert told["arms"][0]["predictions"][0]["probability"] > 0.14
    assert len(told["sites"]) > sum(site["shown"] for site in told["sites"]) == 3
    assert all(site["arms"]["relu"]["attention_positive"] == 1 for site in told["sites"])
    assert told["figure"] == "new/page.png"
    assert (place / told["figure"]).is_file()
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([RUN, "nowhere.png"], 2, "nowhere.png: no such picture"),
        ([RUN, "study"], 2, "study: a folder: name one picture"),
        ([RUN, "torn.png"], 2, "torn.png: "),
        (["nowhere", "grey.png"], 2, "nowhere: no such folder"),
        (["file", "grey.png"], 2, "file: not a folder"),
        ([RUN, "grey.png", "--site", "conv7"], 2, "--site 'conv7' matches no site"),
        ([RUN, "grey.png", "--class", "cat"], 2, "class 'cat': no class of this run"),
        ([RUN, "grey.png", "--output", "page.svg"], 2, "ends in .png"),
        ([RUN, "grey.png", "--output", "file/page.png"], 5, "file"),
        ([RUN, "grey.png", "--channels", "9"], 2, "equal to 8"),
        ([RUN, "grey.png", "--at", "start"], 2, "which are gone"),
        ([RUN, "grey.png", "--at", "end"], 2, "end"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_code(
    place: Path, arguments: list[str], code: int, words: str
) -> None:
    done = command(*arguments, cwd=place)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("arelu-tl: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(place.glob("page.*"))
