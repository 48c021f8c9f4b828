"""Numbers that describe one validation-accuracy curve: steps (K,) ascending from 0, accuracy (K,) in 0..1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def aulc(steps: Sequence[int], accuracy: Sequence[float]) -> float:
    """Area under the learning curve by the trapezoid rule, divided by the steps: the mean accuracy on the way, 0..1.

    A curve of a single point has that point's accuracy.
    """
    if len(steps) != len(accuracy) or not len(steps):
        raise ValueError("a curve needs as many accuracies as steps, and at least one")
    return float(np.average(np.asarray(accuracy, dtype=float), weights=step_weights(steps)))


def step_weights(steps: ArrayLike) -> NDArray[np.float64]:
    """The share (K,) of each evaluation in the area under a curve: its trapezoids' halves, all of them 1 together."""
    at = np.asarray(steps, dtype=float)
    span = at[-1] - at[0]
    if span == 0:
        return np.asarray(np.eye(len(at))[-1], dtype=float)
    widths = np.diff(at)
    return np.asarray((np.append(widths, 0.0) + np.insert(widths, 0, 0.0)) / (2 * span), dtype=float)


def steps_to_target(steps: Sequence[int], accuracy: Sequence[float], target: float) -> int | None:
    """First evaluated step whose accuracy reaches ``target``; None where none does (censored)."""
    return next((step for step, value in zip(steps, accuracy, strict=True) if value >= target), None)


def common_steps(a: ArrayLike, b: ArrayLike) -> int:
    """The last step at which both curves were evaluated; 0 where there is none."""
    return int(max(np.intersect1d(a, b), default=0))
