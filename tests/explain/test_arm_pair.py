"""Which run a run is seen beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from arelu_tl.errors import DataError
from arelu_tl.explain.arm_pair import ArmPair, find_pair, find_partner
from arelu_tl.records.runs import load_run


def trained(study: Path, arm: str, best: float = 0.5, **settings: Any) -> Path:
    run = write_run(study, arm, [0.1, best], told={"best_top1": best, "best_step": 10}, **settings)
    (run / "best.safetensors").touch()
    return run


def names(pair: ArmPair) -> list[str]:
    return [run.path.name for run in pair.runs]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text("{}")
    return tmp_path


def test_either_arm_finds_the_other_with_its_rate_and_seed(study: Path) -> None:
    for lr in (1e-3, 1e-4):
        for seed in (0, 1):
            for arm in ("relu", "leaky", "arelu"):
                trained(study, arm, lr=lr, seed=seed)
    expected = ["relu-lr0.001-s1", "arelu-lr0.001-s1"]
    assert (
        names(find_pair(study / expected[0])) == names(find_pair(study / expected[1])) == expected
    )
    assert names(find_pair(study / "leaky-lr0.001-s1")) == ["relu-lr0.001-s1", "leaky-lr0.001-s1"]


def test_of_a_study_the_best_arelu_run_that_has_a_partner_is_taken(study: Path) -> None:
    trained(study, "relu", 0.9, lr=1e-3)
    trained(study, "relu", 0.4, lr=1e-4)
    trained(study, "arelu", 0.6, lr=1e-3)
    trained(study, "arelu", 0.7, lr=1e-4)
    trained(study, "arelu", 0.8, lr=1e-5)
    trained(study, "leaky", 0.9, lr=1e-4)
    pair = find_pair(study)
    assert names(pair) == ["relu-lr0.0001-s0", "arelu-lr0.0001-s0"]
    assert pair.chosen == "of 6 runs: relu-lr0.0001-s0 beside arelu-lr0.0001-s0"


def test_a_run_without_partner_is_alone_and_it_is_said(study: Path) -> None:
    run = trained(study, "arelu", lr=1e-3)
    trained(study, "relu", lr=1e-4)
    write_run(study, "relu", [0.1], lr=1e-3)  # has no weights yet
    pair = find_pair(run)
    assert names(pair) == ["arelu-lr0.001-s0"]
    assert "no relu run" in pair.chosen
    assert "no run of another arm" in find_pair(study / "relu-lr0.0001-s0").chosen


def test_a_partner_that_has_no_weights_yet_is_one_where_none_are_asked_for(study: Path) -> None:
    started = write_run(study, "arelu", [0.1])
    trained(study, "leaky")
    run = load_run(trained(study, "relu"))
    partner, other = find_partner(run), find_partner(run, with_weights=True)
    assert partner is not None
    assert partner.path == started
    assert other is not None
    assert other.config.arm == "leaky"


@pytest.mark.parametrize("place", [".", "link"])
def test_the_partner_is_found_from_within_the_run_and_through_a_link(
    study: Path,
    place: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained(study, "relu")
    run = trained(study, "arelu")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "link").symlink_to(run)
    monkeypatch.chdir(run if place == "." else elsewhere)
    pair = find_pair(Path(place))
    assert [run.config.arm for run in pair.runs] == ["relu", "arelu"]


def test_what_is_none_of_both_is_told(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run of this study has weights"):
        find_pair(study)
    export, other = tmp_path / "export", tmp_path / "other"
    for folder in (export, other):
        folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (export / name).write_text("{}")
    with pytest.raises(DataError, match="is an export"):
        find_pair(export)
    with pytest.raises(DataError, match="neither a run folder nor a study"):
        find_pair(other)
