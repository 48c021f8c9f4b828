"""The batch size that is found: a power of two, no larger than is useful, and within memory as far as it was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arelu_tl.training.memory import (
    BatchSize,
    _free_in_container,
    choose,
    free_memory_bytes,
    largest_fitting,
    largest_useful,
    used_memory_bytes,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("pictures", "size", "word"),
    [(400, 32, "400 pictures"), (12, 2, "12 pictures"), (1, 2, "1 pictures"), (10**6, 256, "256")],
)
def test_useful_sizes_leave_eight_steps_in_an_epoch_and_end_at_256(
    pictures: int, size: int, word: str
) -> None:
    found = largest_useful(pictures)
    assert found.size == size
    assert word in found.why


@given(
    pictures=st.integers(1, 10**5),
    fixed=st.integers(0, 500 * MIB),
    each=st.integers(MIB, 50 * MIB),
    room=st.integers(100 * MIB, 10**11),
    tried=st.sampled_from([16, 256]),
)
def test_the_largest_power_of_two_within_room_is_found(
    pictures: int, fixed: int, each: int, room: int, tried: int
) -> None:
    useful = largest_useful(pictures)
    steps: list[int] = []

    def growth(size: int) -> int:
        steps.append(size)
        return fixed + each * size

    found = choose(useful, growth, room, tried=tried)
    assert found.size in [1 << n for n in range(1, 9)]
    assert found.size <= useful.size
    assert max(steps) <= tried
    assert found.size == 2 or fixed + each * found.size <= room
    if found is not useful:
        assert "memory" in found.why
        # Where pictures cost more than the model, nothing twice as large would have fitted either.
        assert fixed > each or fixed + each * found.size * 2 > room


def test_a_gpu_that_runs_out_of_memory_ends_the_search() -> None:
    def growth(size: int) -> int:
        if size > 8:
            raise torch.OutOfMemoryError
        return size * MIB

    assert choose(BatchSize(64, ""), growth, 10**12, tried=64) == BatchSize(
        8, "16 run out of memory"
    )
    with pytest.raises(torch.OutOfMemoryError):
        choose(BatchSize(64, ""), lambda _: growth(9), 10**12, tried=64)


def test_where_memory_cannot_be_told_the_useful_size_is_taken() -> None:
    useful = BatchSize(64, "useful")
    assert choose(useful, lambda _: None, None, tried=16) is useful


@pytest.mark.skipif(sys.platform != "linux", reason="the memory that is left can be told on Linux")
def test_a_step_that_needs_much_memory_is_seen_to_do_so() -> None:
    device = torch.device("cpu")
    free = free_memory_bytes(device)
    used = used_memory_bytes(device)
    assert free is not None
    assert used is not None
    assert used > 50 * MIB

    def take(size: int) -> None:
        # A share of what is free, so that few of them fit; written to, or the system would not give it.
        torch.empty(min(free // 8192, 4 * MIB) * size).fill_(1.0)

    found = largest_fitting(
        BatchSize(256, "useful"), take, device, share=max(1, free // (512 * MIB))
    )
    assert 2 <= found.size < 256
    assert "GiB of memory" in found.why


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (
            {
                "memory.max": "1000",
                "memory.current": "900",
                "memory.stat": "anon 1\ninactive_file 300\n",
            },
            400,
        ),
        (
            {"memory.max": "max", "memory.current": "900", "memory.stat": "inactive_file 300\n"},
            None,
        ),
        ({}, None),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "700",
                "memory/memory.stat": "total_inactive_file 100\n",
            },
            400,
        ),
    ],
)
def test_a_containers_limit_counts(files: dict[str, str], free: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _free_in_container(tmp_path) == free
