"""Numbers that describe one validation-accuracy curve: steps (K,) ascending from 0, accuracy (K,) in 0..1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def aulc(steps: Sequence[int], accuracy: Sequence[float]) -> float:
    """Area under the learning curve by the trapezoid rule, divided by the steps: the mean accuracy on the way, 0..1.

    A curve of a single point has that point's accuracy.
    """
    if len(steps) != len(accuracy) or not steps:
        raise ValueError("a curve needs as many accuracies as steps, and at least one")
    span = steps[-1] - steps[0]
    if span == 0:
        return float(accuracy[-1])
    return float(np.trapezoid(np.asarray(accuracy, dtype=float), np.asarray(steps, dtype=float)) / span)


def steps_to_target(steps: Sequence[int], accuracy: Sequence[float], target: float) -> int | None:
    """First evaluated step whose accuracy reaches ``target``; None where none does (censored)."""
    return next((step for step, value in zip(steps, accuracy, strict=True) if value >= target), None)


def common_steps(a: Sequence[int], b: Sequence[int]) -> int:
    """The last step up to which both curves were evaluated; 0 where one has nothing."""
    return min(a[-1], b[-1]) if a and b else 0
