"""Over many drawn studies: the intervals cover, and where there is nothing "faster" comes at most at the stated rate.

The numbers of studies make a rate's standard error about 0.5%; the bounds leave three of them. docs/statistics.md has more.
"""

from __future__ import annotations

import pytest
from simulation import World, judge_best_rates, judge_one_rate

STATED = 0.025
SLACK = 0.015


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("pictures", [100, 1000])
def test_where_there_is_nothing_faster_comes_at_most_at_the_stated_rate(
    seeds: int, pictures: int
) -> None:
    told = judge_one_rate(World(), seeds, pictures, 1000)
    assert told.faster <= STATED + SLACK
    assert told.slower <= STATED + SLACK
    assert told.covered >= 0.95 - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_a_real_difference_too(seeds: int) -> None:
    assert judge_one_rate(World(gain=0.5), seeds, 300, 1000).covered >= 0.95 - 0.02


@pytest.mark.slow
def test_a_clear_difference_is_found_with_three_seeds() -> None:
    assert judge_one_rate(World(gain=1.5), 3, 300, 300).faster > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_best_rate_against_best_rate_does_not_cry_better(seeds: int) -> None:
    told = judge_best_rates(World(), seeds, 300, 300)
    assert told.faster <= STATED + 0.025
    assert told.slower <= STATED + 0.025


def test_one_seed_covers_what_the_pictures_blur() -> None:
    """With seeds that have no luck at all, a single one is judged rightly; its sentence speaks of this one run only."""
    told = judge_one_rate(World(seed=0.0), 1, 100, 200)
    assert told.covered > 0.95


def test_three_seeds_in_the_fast_suite() -> None:
    told = judge_one_rate(World(), 3, 100, 200)
    assert told.covered > 0.92
    assert told.faster < 0.08
