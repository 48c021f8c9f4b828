"""Peak and free memory of the training device, and the largest batch size that fits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of peak memory.

    For the CPU this works only on Linux; elsewhere the peak covers the process's lifetime.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            # A hardened kernel: the peak covers the process's lifetime, as on other systems.
            return


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak of allocated GPU memory, or of the process's resident memory on the CPU.

    Returns:
        Bytes; None if unknown.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def used_memory_bytes(device: torch.device) -> int | None:
    """Return the allocated GPU memory, or the process's resident memory on the CPU, now.

    Returns:
        Bytes; None if unknown.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    return _line_of(Path("/proc/self/status"), "VmRSS:")


def free_memory_bytes(device: torch.device) -> int | None:
    """Return the free memory of the GPU, or of the machine within its container's limits.

    Returns:
        Bytes; None if unknown.
    """
    if device.type == "cuda":
        unreserved, _ = torch.cuda.mem_get_info(device)
        return unreserved + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    free = _line_of(Path("/proc/meminfo"), "MemAvailable:")
    within = _free_in_container()
    return free if within is None else within if free is None else min(free, within)


def _line_of(path: Path, name: str) -> int | None:
    """Return the bytes in line ``name`` of a Linux /proc file whose values are in kB."""
    found = (line.split()[1] for line in path.read_text().splitlines() if line.startswith(name))
    value = next(found, None)
    return None if value is None else int(value) * 1024


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory left in the control group; None without a limit.

    Cached files count as free, because the kernel reclaims them.
    """
    for limit, usage, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            most, used = (int((root / name).read_text()) for name in (limit, usage))
            reclaimable = dict(line.split() for line in (root / stat).read_text().splitlines()).get(
                cached, "0"
            )
        except (OSError, ValueError):  # another version of control groups, none at all, or "max"
            continue
        return max(0, most - used + int(reclaimable))
    return None


# A larger batch at the same rate learns less in an epoch: it takes fewer steps.
_MOST = 256
_STEPS_AN_EPOCH = 8
# The rest is left for evaluation, fragmentation and other processes.
_SHARE = {"cuda": 0.85, "cpu": 0.7}
# On the CPU large trial steps are slow; the growth of memory is measured up to this batch size.
_TRIED_ON_CPU = 16


@dataclass(frozen=True)
class BatchSize:
    """A batch size, and in words what bounds it."""

    size: int
    why: str


def largest_useful(pictures: int) -> BatchSize:
    """Return the largest power of two that leaves enough steps in an epoch of ``pictures``.

    It is at least two, for BatchNorm.
    """
    bound = max(2, min(_MOST, pictures // _STEPS_AN_EPOCH))
    size = 1 << (bound.bit_length() - 1)
    if size == _MOST:
        return BatchSize(size, f"more than {_MOST} would slow learning at the same rate")
    return BatchSize(
        size,
        f"more would leave fewer than {_STEPS_AN_EPOCH} steps in an epoch of {pictures} pictures",
    )


def largest_fitting(
    useful: BatchSize, take: Callable[[int], None], device: torch.device, *, share: int = 1
) -> BatchSize:
    """Return the largest power of two up to ``useful`` whose steps fit into the free memory.

    Args:
        take: takes a whole training step on the given number of pictures.
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

    return choose(
        useful, growth, room, tried=useful.size if device.type != "cpu" else _TRIED_ON_CPU
    )


def choose(
    useful: BatchSize, growth: Callable[[int], int | None], room: int | None, *, tried: int
) -> BatchSize:
    """Choose the batch size for ``largest_fitting``.

    Args:
        growth: returns the bytes that a step of a given size needs; None if unknown.
        room: bytes available; None if unknown.
        tried: sizes up to this one are tried; the need of larger ones is extrapolated.
    """
    sizes = [1 << n for n in range(1, useful.size.bit_length())]
    needs: list[tuple[int, int]] = []
    best = 0
    for size in sizes:
        predicted = _line(needs, size)
        if predicted is not None and room is not None and predicted > room:
            return BatchSize(best, _reason(best, room, needs))
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
                    return BatchSize(best, _reason(best, room, needs))
        best = size
    return useful


def _line(needs: Sequence[tuple[int, int]], size: int) -> int | None:
    """Extrapolate the need of ``size`` pictures from the last two measurements, None if fewer."""
    if len(needs) < 2:
        return None
    (fewer, less), (more, need) = needs[-2:]
    # Measurements are noisy: a picture costs at least half the average of the last measurement.
    a_picture = max((need - less) / (more - fewer), need / more / 2)
    return int(need + a_picture * (size - more))


def _reason(size: int, room: int, needs: Sequence[tuple[int, int]]) -> str:
    need = dict(needs).get(size) or _line(needs, size)
    gib = "" if need is None else f" ({need / 2**30:.2g} GiB)"
    return f"the largest power of two{gib} that {room / 2**30:.2g} GiB of memory hold for every arm"
