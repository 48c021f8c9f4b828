"""The paper's table from run folders: means, the best of each group, and AReLU's lead and place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from arelu_tl.paper.results import Reproduction, tabulate
from arelu_tl.records.runs import load_run

TITLES = {"relu": "ReLU", "tanh": "Tanh", "prelu": "PReLU", "pau": "PAU", "arelu": "AReLU"}
LEARNABLE = ["prelu", "pau", "arelu"]


def write(parent: Path, arm: str, seed: int, *top1: float, **settings: Any) -> None:
    """A run of an epoch of four steps; its rows say which epoch they are in."""
    steps = [0, 2, 4][: len(top1)]
    told = {"aulc": sum(top1) / len(top1), **settings.pop("told", {})}
    path = write_run(parent, arm, top1, steps=steps, seed=seed, told=told, sites=0, **settings)
    text = (path / "metrics.jsonl").read_text()
    # The helper's rows are all of epoch 0; an epoch's end is what the table is made of.
    (path / "metrics.jsonl").write_text(
        text.replace('"step": 4, "epoch": 0', '"step": 4, "epoch": 1')
    )


def table(folder: Path, **settings: Any) -> Reproduction:
    studies = {
        study.name: [load_run(path) for path in sorted(study.iterdir())]
        for study in sorted(folder.iterdir())
    }
    return tabulate(studies, titles=TITLES, learnable=LEARNABLE, **settings)


def test_columns_have_the_best_of_each_group_and_arelus_lead_and_place(tmp_path: Path) -> None:
    for opt in ("adam", "sgd"):
        for seed, more in ((0, 0.0), (1, 0.02)):
            place = tmp_path / opt
            shift = more if opt == "sgd" else -more
            write(place, "relu", seed, 0.1, 0.3, 0.5 + shift, opt=opt)
            write(place, "tanh", seed, 0.1, 0.9, 0.4, opt=opt)
            write(place, "prelu", seed, 0.1, 0.3, 0.7, opt=opt)
            write(place, "pau", seed, 0.1, 0.3, 0.6, opt=opt)
            write(place, "arelu", seed, 0.1, 0.3, 0.6, opt=opt)
    told = table(tmp_path)
    assert [(column.opt, column.lr) for column in told.columns] == [("adam", 1e-4), ("sgd", 1e-4)]
    column = told.columns[1]
    assert column.best == {"fixed": "relu", "learnable": "prelu"}
    assert column.lead == {"fixed": pytest.approx(0.6 - 0.51), "learnable": pytest.approx(-0.1)}
    # Equal to PAU's, behind PReLU's alone.
    assert (column.rank, column.of) == (2, 5)
    relu = column.entries["relu"]
    assert relu.first.values == [0.5, 0.52]
    assert relu.first.sd == pytest.approx(0.02 / 2**0.5)
    assert column.entries["tanh"].best.mean == pytest.approx(0.9)
    assert relu.curve == {
        "step": [0, 2, 4],
        "mean": pytest.approx([0.1, 0.3, 0.51]),
        "low": pytest.approx([0.1, 0.3, 0.5]),
        "high": pytest.approx([0.1, 0.3, 0.52]),
    }
    assert told.activations == list(TITLES)
    assert told.groups == {name: "learnable" if name in LEARNABLE else "fixed" for name in TITLES}


def test_rates_are_from_large_to_small_and_without_arelu_there_is_no_lead(tmp_path: Path) -> None:
    for lr in (1e-5, 1e-2, 1e-3):
        write(tmp_path / "sgd", "relu", 0, 0.1, 0.2, 0.3, lr=lr, opt="sgd")
    told = table(tmp_path)
    assert [column.lr for column in told.columns] == [1e-2, 1e-3, 1e-5]
    assert all(
        (column.lead, column.rank, column.best) == ({}, None, {"fixed": "relu"})
        for column in told.columns
    )
    assert told.columns[0].entries["relu"].first.sd is None


def test_a_training_that_diverged_counts_and_is_told(tmp_path: Path) -> None:
    write(tmp_path / "sgd", "relu", 0, 0.1, 0.2, 0.3, opt="sgd")
    write(tmp_path / "sgd", "arelu", 0, 0.1, 0.2, 0.1, opt="sgd", status="failed")
    told = table(tmp_path)
    assert told.columns[0].entries["arelu"].diverged == 1
    assert told.columns[0].lead["fixed"] == pytest.approx(-0.2)
    assert "arelu sgd 0.0001: 1 of 1" in told.notes[-1]
