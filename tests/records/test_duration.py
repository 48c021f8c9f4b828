"""Durations are read as people write them, and told as people say them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arelu_tl.errors import ConfigError
from arelu_tl.records.amounts import format_duration, parse_duration
from arelu_tl.records.config import SweepConfig, check_config


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("45s", 45), (" 1h0m5s ", 3605), ("0h1s", 1)],
)
def test_a_time_is_read_as_it_is_written(written: str, seconds: float) -> None:
    assert parse_duration(written) == seconds
    assert check_config({"time_budget": written}, SweepConfig).time_budget == written


@pytest.mark.parametrize(
    "written", ["", "90", "1.5h", "30m1h", "-5m", "0s", "1d", "2 h", "soon", 90, True, ["1h"]]
)
def test_what_is_no_time_is_told_the_form(written: object) -> None:
    with pytest.raises(ConfigError, match="90m, 2h, 1h30m or 45s"):
        check_config({"time_budget": written}, SweepConfig)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_a_time_is_told_as_people_say_it(seconds: float, told: str) -> None:
    assert format_duration(seconds) == told


@given(st.integers(1, 3599))
def test_what_is_told_below_an_hour_reads_back(seconds: int) -> None:
    assert parse_duration(format_duration(seconds).replace("min", "m").replace(" ", "")) == seconds
