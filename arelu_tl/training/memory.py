"""The highest memory use since a moment, of the device that trains, and how much of its memory is left."""

from __future__ import annotations

import sys
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
