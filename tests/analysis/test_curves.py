"""A run's rows as arrays, and each picture's own share in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import draw_correct, write_run

from arelu_tl.analysis.curves import read_curve, read_predictions
from arelu_tl.errors import ArtefactError
from arelu_tl.records.runs import load_run, pack_flags, unpack_flags


@given(st.lists(st.booleans(), max_size=70))
def test_packed_flags_come_back(flags: list[bool]) -> None:
    packed = pack_flags(np.array(flags, dtype=bool))
    assert unpack_flags([packed, packed]).tolist() == [flags, flags]


@pytest.mark.parametrize("text", ["", "3", "9:AA==", "x:AA==", "3:A", "3:$$$$", "-1:AA=="])
def test_damaged_flags_are_refused(text: str) -> None:
    for texts in ([text], ["3:AA==", text]):
        with pytest.raises(ValueError, match="not packed flags"):
            unpack_flags(texts)


def test_the_pictures_areas_have_the_runs_area_as_their_mean(tmp_path: Path) -> None:
    correct = draw_correct(np.random.default_rng(0), [0.2, 0.5, 0.7, 0.6], 37)
    curve = read_curve(load_run(write_run(tmp_path, "relu", correct=correct, steps=(0, 5, 20, 30))))
    assert curve is not None
    assert curve.picture_aulc is not None
    assert curve.picture_aulc.mean() == pytest.approx(curve.aulc)
    by_hand = (
        5 * (correct[0] / 2 + correct[1] / 2)
        + 15 * (correct[1] / 2 + correct[2] / 2)
        + 10 * (correct[2] / 2 + correct[3] / 2)
    ) / 30
    assert curve.picture_aulc == pytest.approx(by_hand)
    assert curve.pictures == 37
    assert (curve.right(2) == correct[2]).all()
    assert (curve.correct() == correct).all()


def test_a_cut_curve_knows_nothing_of_what_came_later(tmp_path: Path) -> None:
    correct = draw_correct(np.random.default_rng(0), [0.2, 0.5, 0.9], 20)
    curve = read_curve(load_run(write_run(tmp_path, "relu", correct=correct)))
    assert curve is not None
    cut = curve.until(15)
    assert (cut.end, len(cut.top1), cut.correct().shape) == (10, 2, (2, 20))
    assert cut.aulc == pytest.approx(cut.top1.mean())
    assert curve.until(1000) is curve


def test_the_best_is_by_accuracy_then_loss_then_time(tmp_path: Path) -> None:
    run = write_run(tmp_path, "relu", (0.1, 0.8, 0.8, 0.8), losses=(2.0, 1.0, 0.5, 0.5))
    curve = read_curve(load_run(run))
    assert curve is not None
    assert curve.steps[curve.best] == 20


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"top1"', '"top2"'),
        ('"step": 20', '"step": 10'),
        ('"loss": 0.5', '"loss": "x"'),
        ("20:", "21:"),
    ],
)
def test_rows_that_lack_or_contradict_something_are_named(
    old: str, new: str, tmp_path: Path
) -> None:
    correct = draw_correct(np.random.default_rng(0), [0.5, 0.5, 0.5], 20)
    metrics = write_run(tmp_path, "relu", correct=correct, losses=(0.5, 0.5, 0.5)) / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace(old, new, 1))
    with pytest.raises(ArtefactError, match=r"metrics\.jsonl"):
        read_curve(load_run(metrics.parent))


@pytest.mark.parametrize(
    "content", [b"path,predicted\na,b\n", b"path,label,predicted,probability\n\xff,a,b,1\n"]
)
def test_damaged_predictions_are_named(content: bytes, tmp_path: Path) -> None:
    run = write_run(tmp_path, "relu", (0.1, 0.2))
    (run / "predictions.csv").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"predictions\.csv"):
        read_predictions(load_run(run))
