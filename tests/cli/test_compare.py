"""arelu-tl compare as a user meets it, on folders of runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run_alone, run_command
from run_folders import PAIRING, draw_correct, write_run

from arelu_tl.records.config import check_config, dump_yaml

SLOW, FAST = (0.1, 0.3, 0.5, 0.6), (0.1, 0.7, 0.9, 0.95)


def compare(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command("compare", *arguments, cwd=cwd, COLUMNS="200")


def write_study(
    place: Path, *, arm: tuple[float, ...] = FAST, relu: tuple[float, ...] = SLOW
) -> Path:
    stream = np.random.default_rng(0)
    for lr in (1e-4, 1e-3):
        for seed in range(3):
            for name, curve in (("arelu", arm), ("relu", relu)):
                write_run(place, name, correct=draw_correct(stream, curve, 200), lr=lr, seed=seed)
    (place / "study.yaml").write_text(dump_yaml(check_config({"name": place.name})))
    return place


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("compare") / "grid")


def test_a_study_gets_its_answer_its_figures_and_its_page(study: Path) -> None:
    told = run_alone("compare", study, cwd=study.parent, COLUMNS="200")
    assert told.returncode == 0, told.stderr
    for words in (
        "95% interval",
        "Each at its best learning rate",
        "3 seeds, 200 validation pictures",
        "arelu is better than relu",
    ):
        assert words in " ".join(told.stdout.split()), words
    for name in ("comparison.json", "convergence.png", "convergence.svg", "report.html"):
        assert (study / name).stat().st_size > 100
    found = json.loads((study / "comparison.json").read_text())
    assert [each["verdict"] for each in found["rates"]] == ["faster", "faster"]
    assert found["best"][0]["verdict"] == "better"


def test_of_single_pairs_what_all_share_is_said_once(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    for arm, curve in (("relu", SLOW), ("arelu", FAST), ("leaky", SLOW)):
        write_run(tmp_path, arm, correct=draw_correct(stream, curve, 200))
    told = compare(tmp_path, "--no-report", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    (line,) = [line for line in told.stdout.splitlines() if "same in" in line]
    assert line.startswith("same in all of them (seed 0): dataset dddddddddddd")


def test_it_imports_no_torch(study: Path) -> None:
    code = (
        "import sys\nfrom arelu_tl.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = {'torch', 'torchvision', 'timm'} & set(sys.modules)\nassert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", str(study)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_as_a_gate_it_fails_on_the_verdicts_asked_for(study: Path, tmp_path: Path) -> None:
    behind = write_study(tmp_path / "behind", arm=SLOW, relu=FAST)
    for asked, said in (
        ("slower", "arelu is slower than relu at learning rate 0.0001"),
        ("worse", "arelu is worse than relu"),
    ):
        told = compare(behind, "--fail-if", asked, "--no-report", cwd=tmp_path)
        assert told.returncode == 1
        assert said in told.stderr.splitlines()[-1]
        assert compare(study, "--fail-if", asked, "--no-report", cwd=tmp_path).returncode == 0
    assert compare(behind, "--no-report", cwd=tmp_path).returncode == 0
    assert not (behind / "report.html").exists()


def test_one_seed_is_shown_without_any_sign_of_significance(study: Path, tmp_path: Path) -> None:
    """Neither on a colour terminal nor in the page nor as data; of several seeds the same places have their signs."""
    pair = [study / "arelu-lr0.0001-s0", study / "relu-lr0.0001-s0"]

    def shown(*paths: Path) -> tuple[str, str]:
        told = run_command(
            "compare",
            *paths,
            "--output",
            "out",
            cwd=tmp_path,
            COLUMNS="200",
            FORCE_COLOR="1",
            TERM="xterm-256color",
        )
        assert told.returncode == 0, told.stderr
        page = (tmp_path / "out" / "report.html").read_text()
        return told.stdout, page[page.index("<main>") : page.index('<section id="reading">')]

    terminal, page = shown(*pair)
    assert "ahead of relu in this one run" in terminal
    heading = terminal.index("──")  # the heading itself is bold
    assert "95%" not in terminal
    for sign in (
        "\x1b[1m",
        "(+0.",
        "±",
        "McNemar",
        "p =",
        "95%",
        "detect",
        "faster",
        "better",
        "signific",
    ):
        assert sign not in terminal[heading:], sign
    for sign in (
        "faster",
        "better than",
        "McNemar",
        "signific",
        "▲",
        "▼",
        'class="tag more"',
        'class="headline more"',
        "detect",
    ):
        assert sign not in page, sign
    assert page.count('<span class="tag alone">ahead in this run</span>') == 2
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [
        (each["verdict"], each["one_seed"]) for key in ("rates", "best") for each in found[key]
    ] == [("ahead in this run", True)] * 2

    terminal, page = shown(study)
    assert "\x1b[1m" in terminal[terminal.index("──") :]
    assert 'class="tag more"' in page
    assert "McNemar" in page


def test_as_a_gate_it_refuses_one_seed_unless_told_to_take_it(tmp_path: Path) -> None:
    behind = write_study(tmp_path / "behind", arm=SLOW, relu=FAST)
    one = [behind / "arelu-lr0.0001-s0", behind / "relu-lr0.0001-s0"]
    for asked in ("slower", "worse"):
        refused = compare(*one, "--fail-if", asked, "--no-report", cwd=tmp_path)
        assert refused.returncode == 2
        assert f"--fail-if {asked}: one seed cannot gate (arelu at " in refused.stderr
        assert "add seeds, or insist with --one-seed" in refused.stderr
        insisted = compare(*one, "--fail-if", asked, "--one-seed", "--no-report", cwd=tmp_path)
        assert insisted.returncode == 1
        assert "arelu is behind relu in one run at " in insisted.stderr
    # What several seeds say stands, whatever one seed beside them might say.
    for seed in (1, 2):
        shutil.rmtree(behind / f"arelu-lr0.001-s{seed}")
    assert compare(behind, "--fail-if", "slower", "--no-report", cwd=tmp_path).returncode == 1
    ahead = [behind / "arelu-lr0.0001-s0", behind / "relu-lr0.0001-s0"]
    assert compare(*ahead, "--one-seed", "--no-report", cwd=tmp_path).returncode == 2
    assert compare(*ahead, "--no-report", cwd=tmp_path).returncode == 0


def test_a_part_of_a_study_does_not_take_the_place_of_its_report(
    study: Path, tmp_path: Path
) -> None:
    compare(study, cwd=tmp_path)
    before = (study / "comparison.json").read_bytes()
    parts = [study / "arelu-lr0.0001-s0", study / "relu-lr0.0001-s0"]
    told = compare(*parts, cwd=tmp_path)
    assert (told.returncode, "--output" in told.stderr) == (0, True)
    assert compare(*parts, "--output", "mine", cwd=tmp_path).returncode == 0
    assert (study / "comparison.json").read_bytes() == before
    assert len(json.loads((tmp_path / "mine" / "comparison.json").read_text())["rates"]) == 1


@pytest.mark.parametrize(
    ("pairing", "settings", "named", "key"),
    [
        ({"dataset": "x" * 64}, {}, "pictures or split (dddddddddddd and xxxxxxxxxxxx)", "dataset"),
        ({}, {"split_seed": 3}, "split_seed 0 and 3", "split_seed"),
        (
            {"head_init": "x" * 64},
            {},
            "head initialisation (hhhhhhhhhhhh and xxxxxxxxxxxx)",
            "head_init",
        ),
    ],
)
def test_what_is_not_the_same_experiment_is_refused_unless_insisted_on(
    pairing: dict[str, str], settings: dict[str, int], named: str, key: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", "arelu", FAST, right=100)
    write_run(tmp_path / "b", "relu", SLOW, right=100, pairing={**PAIRING, **pairing}, **settings)
    refused = compare("a", "b", cwd=tmp_path)
    assert refused.returncode == 2
    assert named in refused.stderr
    insisted = compare("a", "b", "--allow-difference", key, cwd=tmp_path)
    assert insisted.returncode == 0, insisted.stderr
    assert named in " ".join(insisted.stdout.split())


def test_an_unwritable_place_is_a_storage_error(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = compare(study, "--output", "file/x", cwd=tmp_path)
    assert (told.returncode, "cannot write" in told.stderr) == (5, True)
