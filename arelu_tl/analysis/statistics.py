"""Statistics of a paired difference between two arms: intervals, tests and effect sizes.

See docs/statistics.md. The difference between two arms is uncertain for two reasons: other seeds
would have given another one, and so would other validation pictures. Both arms were trained with
the same seeds and judged on the same pictures, so everything here works on their difference, which
is far less uncertain than either arm's value.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
# The bootstrap interval of n values lies between their minimum and maximum, which enclose the
# median of the distribution with probability 1 - 2^(1 - n): below six values no resampling can
# reach 95%.
FEWEST_TO_RESAMPLE = 6
_RESAMPLES = 9999
_RESAMPLING_SEED = 20061385

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference between an arm and its reference, in the unit of the compared quantity.

    Attributes:
        mean: over seeds and pictures; positive if the arm has more.
        low, high: interval at ``CONFIDENCE``; None for one seed, which says nothing about other
            seeds.
        p: two-sided p of no difference; the interval excludes 0 if it is below 1 - ``CONFIDENCE``.
            None for one seed.
        seeds, pictures: how many of each were used; pictures is None if their error is not
            included.
        values: the difference of each seed.
        sd: standard deviation of those values; None for one seed.
        seed_error, picture_error: standard errors of the mean due to seeds and to pictures.
        t_test_p: paired t-test over the seeds alone.
        wilcoxon_p: Wilcoxon's signed-rank test over the seeds, which assumes no distribution; None
            below six seeds, where it cannot be less than 0.05.
        effect_size: Hedges' g of the paired differences (mean over sd, corrected for few seeds);
            None below three.
        probability_of_improvement: share of the seeds in which the arm had more, ties counted as
            half; None for one.
        bootstrap: interval of the mean by resampling seeds (percentiles, widened for few values as
            in Hesterberg 2015); None below six.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    pictures: int | None
    values: list[float]
    sd: float | None
    seed_error: float | None
    picture_error: float | None
    t_test_p: float | None
    wilcoxon_p: float | None
    effect_size: float | None
    probability_of_improvement: float | None
    bootstrap: tuple[float, float] | None

    @property
    def detectable(self) -> bool:
        """Whether the interval excludes 0.

        False if the uncertainty due to the pictures is unknown.
        """
        known = bool(self.picture_error) and self.low is not None and self.high is not None
        return known and not self.low <= 0 <= self.high  # type: ignore[operator]

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def picture_blur(self) -> float | None:
        """Half-width of the interval over pictures alone, as if seeds made no difference."""
        if self.picture_error is None or self.pictures is None:
            return None
        return float(stats.t.isf((1 - CONFIDENCE) / 2, self.pictures - 1)) * self.picture_error

    @property
    def beyond_pictures(self) -> bool:
        """Whether the difference exceeds the uncertainty due to the pictures.

        This is all that one seed can show. False if the pictures were not recorded.
        """
        return self.picture_blur is not None and abs(self.mean) > self.picture_blur


def paired_difference(
    values: Sequence[float], *, picture_error: float | None = None, pictures: int | None = None
) -> PairedDifference:
    """Compute all statistics of the mean of ``values``, one difference per seed.

    The interval's half-width is sqrt((t_S se_S)^2 + (t_N se_N)^2), with the standard errors due to
    seeds and pictures, and Student's quantiles at S - 1 and N - 1 degrees of freedom. Weighting the
    quantiles by their variances is Cochran's solution of the Behrens-Fisher problem; adding them in
    quadrature is a little wider. Both have at least the nominal coverage.

    Args:
        values: arm minus reference for each seed, at least one.
        picture_error: standard error of the mean due to the choice of validation pictures; None if
            unknown. The interval is then that of the seeds alone, and nothing is detectable. With
            one seed there is no interval.
        pictures: number of pictures from which ``picture_error`` was estimated.
    """
    differences = np.asarray(values, dtype=float)
    seeds = len(differences)
    mean = float(differences.mean())
    sd = float(differences.std(ddof=1)) if seeds > 1 else None
    # equal values: only rounding is left, and no effect is as large as 10^15 standard deviations
    if sd is not None and sd < 1e-12:
        sd = 0.0
    seed_error = sd / math.sqrt(seeds) if sd is not None else None
    # (standard error, degrees of freedom) of each source of uncertainty.
    blur = [(seed_error, seeds - 1)] if seed_error is not None else []
    # A single picture, or pictures with equal results, say nothing about others.
    if not picture_error or pictures is None or pictures < 2:
        picture_error = None
    else:
        blur.append((picture_error, pictures - 1))
    # An interval from the pictures alone would ignore the larger source of uncertainty, the seeds.
    known = seed_error is not None
    half = _half_width(blur, 1 - CONFIDENCE) if known else None
    return PairedDifference(
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        p=_p_value(mean, blur) if known else None,
        seeds=seeds,
        pictures=pictures,
        values=[float(value) for value in differences],
        sd=sd,
        seed_error=seed_error,
        picture_error=picture_error,
        t_test_p=_t_test(mean, seed_error, seeds),
        wilcoxon_p=_wilcoxon(differences),
        effect_size=_hedges_g(mean, sd, seeds),
        probability_of_improvement=float(((differences > 0) + 0.5 * (differences == 0)).mean())
        if known
        else None,
        bootstrap=_bootstrap(differences),
    )


def difference_of_shares(arm: NDArray[Any], reference: NDArray[Any]) -> PairedDifference:
    """Compute the difference of two arms that were judged on the same pictures.

    A picture's results are first averaged over the seeds, because they share the picture; the error
    due to pictures is that of the mean over pictures. It still contains some of the seeds' noise,
    which is thus counted twice, on the safe side. With one seed the seeds' noise is unknown; the
    pictures are then treated as if the two arms had been judged on different ones, which leaves
    room for some of it.

    Args:
        arm, reference: (S, N), each seed's result on each picture, 0..1: correct or not, or the
            share of the training over which it was correct.
    """
    seeds, pictures = arm.shape
    differences = arm.astype(float) - reference
    if seeds == 1 or pictures < 2:
        error = unpaired_picture_error(float(arm.mean()), float(reference.mean()), pictures)
    else:
        error = float(differences.mean(axis=0).std(ddof=1) / math.sqrt(pictures))
    return paired_difference(
        differences.mean(axis=1).tolist(), picture_error=error, pictures=pictures
    )


def unpaired_picture_error(p: float, q: float, pictures: int) -> float:
    """Return the standard error of the difference of two accuracies measured on different pictures.

    It is an upper bound: a picture's share lies between 0 and 1, and with mean p its variance is at
    most p (1 - p).
    """
    return math.sqrt((p * (1 - p) + q * (1 - q)) / pictures)


def _half_width(blur: Sequence[tuple[float, int]], p: float) -> float:
    return math.sqrt(sum((stats.t.isf(p / 2, freedom) * error) ** 2 for error, freedom in blur))


def _p_value(mean: float, blur: Sequence[tuple[float, int]]) -> float:
    """Return the p at which the end of the interval is 0."""
    if mean == 0:
        return 1.0
    least = 1e-15
    if _half_width(blur, least) <= abs(mean):
        return least if any(error for error, _ in blur) else 0.0
    return float(optimize.brentq(lambda p: _half_width(blur, p) - abs(mean), least, 1.0))


def _t_test(mean: float, seed_error: float | None, seeds: int) -> float | None:
    # one seed, or equal differences in all seeds, for which t is undefined
    if not seed_error:
        return None
    return float(2 * stats.t.sf(abs(mean) / seed_error, seeds - 1))


def _wilcoxon(differences: Floats) -> float | None:
    if len(differences) < FEWEST_TO_RESAMPLE or not differences.any():
        return None
    # By default scipy permutes if values tie, which takes a second; areas under curves hardly ever
    # tie.
    method = "exact" if len(differences) <= 50 else "asymptotic"
    return float(stats.wilcoxon(differences, zero_method="zsplit", method=method).pvalue)


def _hedges_g(mean: float, sd: float | None, seeds: int) -> float | None:
    if not sd or seeds < 3:
        return None
    freedom = seeds - 1
    # The exact form of the usual 1 - 3 / (4 df - 1).
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(
        freedom / 2
    )
    return mean / sd * correction


def _bootstrap(differences: Floats) -> tuple[float, float] | None:
    count = len(differences)
    if count < FEWEST_TO_RESAMPLE:
        return None
    # Percentiles of resampled means are too narrow for few values: they lack the factor n / (n - 1)
    # and Student's tails. Hesterberg (2015, The American Statistician 69:371, "expanded
    # percentile") chooses percentiles that compensate for it.
    tail = stats.norm.cdf(
        -math.sqrt(count / (count - 1)) * stats.t.isf((1 - CONFIDENCE) / 2, count - 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", stats.DegenerateDataWarning
        )  # the interval of equal values has width 0
        interval = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=_RESAMPLES,
            confidence_level=1 - 2 * tail,
            method="percentile",
            rng=np.random.default_rng(_RESAMPLING_SEED),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's correction for multiple tests to ``p_values``, in their order."""
    count = len(p_values)
    corrected = [0.0] * count
    reached = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = reached
    return corrected


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Apply the exact two-sided McNemar test to two classifiers' results, bool (N,).

    It is 1.0 if they never differ.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return (
        1.0 if only_a + only_b == 0 else float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
    )
