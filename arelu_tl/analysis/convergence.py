"""Numbers that describe one validation-accuracy curve: steps (K,) ascending from 0, accuracy (K,) in 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


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


@dataclass(frozen=True)
class TimeToTarget:
    """How long several runs took to reach a target, those that never did counted as censored, not dropped.

    Attributes:
        reached, of: runs that reached it, and all runs.
        median: Kaplan and Meier's; None where fewer than half of the runs reached it.
        restricted_mean: mean of the time to the target or to the run's end, whichever came first; a lower bound of the mean
            where a run never reached it.
        values: of each run; None where it never did.
    """

    reached: int
    of: int
    median: float | None
    restricted_mean: float
    values: list[float | None]


def time_to_target(values: Sequence[float | None], ends: Sequence[float]) -> TimeToTarget:
    """Summarise the times at which runs reached a target; ``values`` is None, and ``ends`` counts, where one did not."""
    times = np.array([end if value is None else value for value, end in zip(values, ends, strict=True)], dtype=float)
    censored = np.array([value is None for value in values])
    survival = stats.ecdf(stats.CensoredData.right_censored(times, censored)).sf
    under = np.flatnonzero(survival.probabilities <= 0.5)
    return TimeToTarget(
        reached=int((~censored).sum()),
        of=len(times),
        median=float(survival.quantiles[under[0]]) if len(under) else None,
        restricted_mean=float(times.mean()),
        values=[None if value is None else float(value) for value in values],
    )
