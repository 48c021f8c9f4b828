"""The statistics agree with scipy's and statsmodels', and with what can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from arelu_tl.analysis.statistics import (
    difference_of_shares,
    holm,
    mcnemar,
    paired_difference,
    unpaired_picture_error,
)

FEW = [0.04, 0.11, 0.02, 0.07]
MANY = [0.04, 0.11, -0.02, 0.07, 0.01, 0.09, 0.03, -0.015]
differences = st.lists(
    st.floats(-1, 1, allow_nan=False).map(lambda v: round(v, 3)), min_size=2, max_size=12
)


def test_over_seeds_alone_it_is_the_t_interval() -> None:
    found = paired_difference(FEW)
    reference = DescrStatsW(FEW)
    assert (found.low, found.high) == pytest.approx(reference.tconfint_mean())
    assert found.t_test_p == pytest.approx(reference.ttest_mean(0)[1])
    assert found.t_test_p == pytest.approx(stats.ttest_rel(FEW, [0.0] * 4).pvalue)
    assert found.p == pytest.approx(found.t_test_p)
    assert (found.mean, found.sd, found.seed_error) == pytest.approx(
        (0.06, np.std(FEW, ddof=1), stats.sem(FEW))
    )


def test_of_one_seed_only_what_the_pictures_blur_is_known() -> None:
    """No interval and no p: another seed would have given another difference, by nobody knows how much."""
    found = paired_difference([0.1], picture_error=0.03, pictures=50)
    assert found.picture_blur == pytest.approx(stats.t.isf(0.025, 49) * 0.03)
    assert (found.low, found.high, found.p, found.sd, found.t_test_p, found.effect_size) == (
        None,
    ) * 6
    assert found.probability_of_improvement is None
    assert found.beyond_pictures
    assert not found.detectable
    assert not paired_difference([0.06], picture_error=0.03, pictures=50).beyond_pictures


def test_seeds_and_pictures_add_up_in_quadrature() -> None:
    found = paired_difference(FEW, picture_error=0.02, pictures=300)
    seeds = stats.t.isf(0.025, 3) * stats.sem(FEW)
    pictures = stats.t.isf(0.025, 299) * 0.02
    assert found.half_width == pytest.approx(math.hypot(seeds, pictures))


@settings(deadline=None, max_examples=60)
@given(values=differences, error=st.floats(0.001, 0.2), pictures=st.integers(2, 5000))
def test_the_interval_leaves_out_0_exactly_where_p_is_below_5_percent(
    values: list[float], error: float, pictures: int
) -> None:
    found = paired_difference(values, picture_error=error, pictures=pictures)
    assert found.p is not None
    if not math.isclose(found.p, 0.05, rel_tol=1e-6):
        assert found.detectable == (found.p < 0.05)
    assert (
        found.detectable
        == paired_difference(
            [-v for v in values], picture_error=error, pictures=pictures
        ).detectable
    )


@settings(deadline=None, max_examples=60)
@given(values=differences, error=st.floats(0.001, 0.2))
def test_what_is_not_known_never_narrows_the_interval(values: list[float], error: float) -> None:
    both = paired_difference(values, picture_error=error, pictures=100)
    assert both.half_width is not None
    assert both.half_width >= error * stats.t.isf(0.025, 99) - 1e-12
    alone = paired_difference(values).half_width
    assert alone is not None
    assert both.half_width >= alone


def test_one_seed_without_pictures_has_no_interval_and_nothing_is_detectable() -> None:
    found = paired_difference([0.9])
    assert (found.low, found.high, found.p, found.half_width) == (None, None, None, None)
    assert not found.detectable


def test_wilcoxon_agrees_with_scipy_and_is_left_out_where_it_cannot_fall_below_5_percent() -> None:
    assert paired_difference(MANY).wilcoxon_p == pytest.approx(stats.wilcoxon(MANY).pvalue)
    assert paired_difference(MANY[:5]).wilcoxon_p is None
    assert stats.wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5]).pvalue > 0.05


def test_hedges_g_is_the_corrected_standardised_mean() -> None:
    found = paired_difference(FEW)
    correction = math.gamma(1.5) / (math.sqrt(1.5) * math.gamma(1.0))
    assert found.effect_size == pytest.approx(np.mean(FEW) / np.std(FEW, ddof=1) * correction)
    assert paired_difference([0.1, 0.2]).effect_size is None
    assert paired_difference([0.1, 0.1, 0.1]).effect_size is None


def test_probability_of_improvement_counts_ties_half() -> None:
    assert paired_difference([0.1, -0.1, 0.0, 0.2]).probability_of_improvement == pytest.approx(
        (2 + 0.5) / 4
    )


def test_the_bootstrap_is_scipys_at_the_widened_level_and_reproducible() -> None:
    found = paired_difference(MANY)
    tail = stats.norm.cdf(-math.sqrt(8 / 7) * stats.t.isf(0.025, 7))
    reference = stats.bootstrap(
        (MANY,),
        np.mean,
        confidence_level=1 - 2 * tail,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.bootstrap == pytest.approx((reference.low, reference.high), abs=0.003)
    assert found.bootstrap == paired_difference(MANY).bootstrap
    plain = stats.bootstrap(
        (MANY,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.bootstrap is not None
    assert found.bootstrap[1] - found.bootstrap[0] > plain.high - plain.low


def test_no_bootstrap_below_six_seeds() -> None:
    """Two least and greatest values enclose the median with 1 - 2^(1 - n): 94% for five, 97% for six."""
    assert paired_difference(MANY[:5]).bootstrap is None
    assert paired_difference(MANY[:6]).bootstrap is not None


def test_shares_of_the_same_pictures_are_paired() -> None:
    """Two arms that get nearly the same pictures right differ by far less than two samples of pictures would."""
    stream = np.random.default_rng(0)
    reference = stream.random((3, 400)) < 0.7
    arm = reference ^ (stream.random((3, 400)) < 0.02)
    found = difference_of_shares(arm, reference)
    by_picture = (arm.astype(float) - reference).mean(axis=0)
    assert found.picture_error == pytest.approx(stats.sem(by_picture))
    assert found.values == pytest.approx((arm.mean(1) - reference.mean(1)).tolist())
    assert found.pictures == 400
    one = difference_of_shares(arm[:1], reference[:1])
    assert one.picture_error == pytest.approx(
        unpaired_picture_error(arm[0].mean(), reference[0].mean(), 400)
    )
    assert one.picture_error > 3 * found.picture_error  # type: ignore[operator]


@settings(deadline=None, max_examples=8)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize(
    ("only_arm", "only_base", "both"), [(9, 1, 30), (1, 9, 0), (6, 6, 3), (5, 0, 2), (40, 20, 100)]
)
def test_mcnemar_agrees_with_statsmodels(only_arm: int, only_base: int, both: int) -> None:
    arm = np.array([True] * only_arm + [False] * only_base + [True] * both + [False] * 4)
    base = np.array([False] * only_arm + [True] * only_base + [True] * both + [False] * 4)
    reference = reference_mcnemar([[both, only_arm], [only_base, 4]], exact=True)
    assert mcnemar(arm, base) == pytest.approx(reference.pvalue)


def test_mcnemar_of_the_same_mistakes_is_one() -> None:
    assert mcnemar(np.array([True, False]), np.array([True, False])) == 1.0
