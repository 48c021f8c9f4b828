"""The highest memory use since a moment, of the device that trains, and how much of its memory is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement. On the CPU only Linux can; elsewhere the process's lifetime is what is measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # a hardened kernel: the figure then covers the whole process, as on other systems
            return


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak of allocated GPU memory, or of the process's resident memory on the CPU; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def used_memory_bytes(device: torch.device) -> int | None:
    """Allocated GPU memory, or the process's resident memory, now; None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    return _line_of(Path("/proc/self/status"), "VmRSS:")


def free_memory_bytes(device: torch.device) -> int | None:
    """Memory that could still be taken: of the GPU, or of the machine within the limits of a container; None if unknown."""
    if device.type == "cuda":
        unreserved, _ = torch.cuda.mem_get_info(device)
        return unreserved + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    free = _line_of(Path("/proc/meminfo"), "MemAvailable:")
    within = _free_in_container()
    return free if within is None else within if free is None else min(free, within)


def _line_of(path: Path, name: str) -> int | None:
    """Bytes told by the line ``name`` of one of Linux's files in kB."""
    found = (line.split()[1] for line in path.read_text().splitlines() if line.startswith(name))
    value = next(found, None)
    return None if value is None else int(value) * 1024


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group's limit leaves; None without a limit. Files in the cache count as free: they give way."""
    for limit, usage, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most, used = (int((root / name).read_text()) for name in (limit, usage))
            gives_way = dict(line.split() for line in (root / stat).read_text().splitlines()).get(cached, "0")
        except (OSError, ValueError):  # another version of control groups, none, or "max"
            continue
        return max(0, most - used + int(gives_way))
    return None


# A larger batch at the same rate learns less in an epoch: it takes fewer steps.
_MOST = 256
_STEPS_AN_EPOCH = 8
# The rest is for what comes later: evaluation, fragments, other processes.
_SHARE = {"cuda": 0.85, "cpu": 0.7}
# On the processor memory grows with the batch as on any device, but large steps take long: these tell the growth.
_TRIED_ON_CPU = 16


@dataclass(frozen=True)
class BatchSize:
    """A size, and what bounds it, in words."""

    size: int
    why: str


def largest_useful(pictures: int) -> BatchSize:
    """The largest power of two that leaves enough steps in an epoch of so many training pictures; two or more, for BatchNorm."""
    bound = max(2, min(_MOST, pictures // _STEPS_AN_EPOCH))
    size = 1 << (bound.bit_length() - 1)
    if size == _MOST:
        return BatchSize(size, f"more than {_MOST} would slow learning at the same rate")
    return BatchSize(size, f"more would leave fewer than {_STEPS_AN_EPOCH} steps in an epoch of {pictures} pictures")


def largest_fitting(useful: BatchSize, take: Callable[[int], None], device: torch.device, *, share: int = 1) -> BatchSize:
    """The largest power of two up to ``useful`` whose steps fit into the memory that is free now.

    Args:
        take: takes a whole training step on so many pictures.
        share: how many runs will share that memory.

    Raises:
        OutOfMemoryError: not even two pictures fit.
    """
    free, before = free_memory_bytes(device), used_memory_bytes(device)
    room = None if free is None else int(free * _SHARE.get(device.type, 0.7)) // share

    def growth(size: int) -> int | None:
        reset_peak_memory(device)
        take(size)
        peak = peak_memory_bytes(device)
        return None if peak is None or before is None else peak - before

    return choose(useful, growth, room, tried=useful.size if device.type != "cpu" else _TRIED_ON_CPU)


def choose(useful: BatchSize, growth: Callable[[int], int | None], room: int | None, *, tried: int) -> BatchSize:
    """``largest_fitting`` with ``growth`` (bytes that a step of a size needs) and ``room`` given.

    Sizes up to ``tried`` are tried; what larger ones need follows from the growth of those.
    """
    sizes = [1 << n for n in range(1, useful.size.bit_length())]
    needs: list[tuple[int, int]] = []
    best = 0
    for size in sizes:
        predicted = _line(needs, size)
        if predicted is not None and room is not None and predicted > room:
            return BatchSize(best, _told(best, room, needs))
        if size <= tried:
            try:
                need = growth(size)
            except torch.OutOfMemoryError:
                if not best:
                    raise
                return BatchSize(best, f"{size} run out of memory")
            if need is not None:
                needs.append((size, need))
                if room is not None and need > room and best:
                    return BatchSize(best, _told(best, room, needs))
        best = size
    return useful


def _line(needs: Sequence[tuple[int, int]], size: int) -> int | None:
    """What ``size`` pictures need, on the line through the last two measurements; None before there are two."""
    if len(needs) < 2:
        return None
    (fewer, less), (more, need) = needs[-2:]
    # Measurements jitter: no picture costs less than its share of the last one's half.
    a_picture = max((need - less) / (more - fewer), need / more / 2)
    return int(need + a_picture * (size - more))


def _told(size: int, room: int, needs: Sequence[tuple[int, int]]) -> str:
    need = dict(needs).get(size) or _line(needs, size)
    told = "" if need is None else f" ({need / 2**30:.2g} GiB)"
    return f"the largest power of two{told} that {room / 2**30:.2g} GiB of memory hold for every arm"
