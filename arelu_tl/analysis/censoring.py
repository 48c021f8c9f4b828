"""Times that some runs never reached: censored, not dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class TimeToTarget:
    """How long several runs took to reach a target.

    Runs that never did count as censored; they are not dropped.

    Attributes:
        reached, of: number of runs that reached it, and of all runs.
        median: the Kaplan-Meier median; None if fewer than half of the runs reached it.
        restricted_mean: mean of the time to the target or to the run's end, whichever came first; a
            lower bound of the mean if a run never reached it.
        values: time of each run; None if it never reached the target.
    """

    reached: int
    of: int
    median: float | None
    restricted_mean: float
    values: list[float | None]


def time_to_target(values: Sequence[float | None], ends: Sequence[float]) -> TimeToTarget:
    """Summarise the times at which runs reached a target.

    Where a run did not, its entry in ``values`` is None, and its entry in ``ends`` counts.
    """
    times = np.array(
        [end if value is None else value for value, end in zip(values, ends, strict=True)],
        dtype=float,
    )
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
