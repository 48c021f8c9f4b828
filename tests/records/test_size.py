"""Sizes are read as people write them, and told as people say them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arelu_tl.errors import ConfigError
from arelu_tl.records.amounts import format_size, parse_size
from arelu_tl.records.config import check_config


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("16GB", 16 * 10**9),
        ("16GiB", 2**34),
        ("1.5 tb", 1_500_000_000_000),
        (" 500MB ", 5 * 10**8),
        ("7kB", 7000),
        ("1B", 1),
    ],
)
def test_a_size_is_read_as_it_is_written(written: str, size: int) -> None:
    assert parse_size(written) == size
    assert check_config({"cache_limit": written}).cache_limit == written


@pytest.mark.parametrize(
    "written",
    ["", "16", "16G", "0GB", "0.1B", "-1GB", "1,5GB", "much", "1e3MB", "GB", 16, True, None],
)
def test_what_is_no_size_is_told_the_form(written: object) -> None:
    with pytest.raises(ConfigError, match="500MB, 16GB or 16GiB"):
        check_config({"cache_limit": written})


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (376_400_000, "376 MB"),
        (1_540_000_000, "1.5 GB"),
        (16 * 10**9, "16 GB"),
    ],
)
def test_a_size_is_told_as_people_say_it(size: int, told: str) -> None:
    assert format_size(size) == told


@given(st.integers(1, 10**15))
def test_what_is_told_reads_back_within_its_digits(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.051)
