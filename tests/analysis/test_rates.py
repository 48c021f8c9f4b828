"""The best rate is chosen on pictures that do not judge it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from arelu_tl.analysis.curves import Curve
from arelu_tl.analysis.rates import best_rate
from arelu_tl.records.runs import pack_flags


def curve(correct: NDArray[np.bool_], *, recorded: bool = True) -> Curve:
    top1 = correct.mean(axis=1)
    steps = np.arange(len(correct)) * 10
    return Curve(
        steps, top1, 1 - top1, steps / 2, tuple(map(pack_flags, correct)) if recorded else ()
    )


def draw(
    stream: np.random.Generator, accuracy: float, pictures: int = 400, evaluations: int = 4
) -> NDArray[np.bool_]:
    return stream.random((evaluations, pictures)) < accuracy


def test_a_clearly_better_rate_is_chosen_in_every_fold() -> None:
    stream = np.random.default_rng(0)
    found = best_rate(
        {
            lr: [curve(draw(stream, p)) for _ in range(2)]
            for lr, p in ((1e-4, 0.5), (1e-3, 0.9), (1e-2, 0.6))
        }
    )
    assert (found.lr, found.choices) == (1e-3, {1e-3: 1.0})
    assert found.accuracy == pytest.approx([0.9, 0.9], abs=0.05)
    assert found.correct is not None
    assert found.correct.shape == (2, 400)
    assert found.correct.mean(axis=1) == pytest.approx(found.accuracy)


def test_choosing_among_many_equals_does_not_flatter() -> None:
    """The best of 20 rates and 20 checkpoints by luck alone looks far above 0.5 on the pictures that chose it."""
    stream = np.random.default_rng(1)
    drawn = {
        float(lr): [curve(draw(stream, 0.5, pictures=200, evaluations=20))] for lr in range(1, 21)
    }
    flattered = max(each[0].top1.max() for each in drawn.values())
    honest = best_rate(drawn).accuracy[0]
    assert flattered > 0.58
    assert abs(honest - 0.5) < 0.07


def test_of_one_rate_the_checkpoint_is_chosen_all_the_same() -> None:
    stream = np.random.default_rng(3)
    correct = np.concatenate(
        [
            draw(stream, 0.2, evaluations=1),
            draw(stream, 0.9, evaluations=1),
            draw(stream, 0.5, evaluations=1),
        ]
    )
    found = best_rate({1e-3: [curve(correct)]})
    assert found.accuracy[0] == pytest.approx(correct[1].mean())


def test_without_recorded_pictures_the_best_of_each_run_is_taken() -> None:
    stream = np.random.default_rng(4)
    correct = [draw(stream, 0.5), draw(stream, 0.6)]
    found = best_rate({1e-3: [curve(each, recorded=False) for each in correct]})
    assert found.correct is None
    assert found.accuracy.tolist() == [each.mean(axis=1).max() for each in correct]
