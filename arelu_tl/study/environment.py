"""Where a run ran: versions, device, threads, revision."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

from arelu_tl import __version__
from arelu_tl.activation import fused, gpu, native
from arelu_tl.errors import ConfigError
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.records.format import FORMAT


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    if name is None:
        best = torch.accelerator.current_accelerator(check_available=True)
        return best if best is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {name}: not usable here: {str(error).splitlines()[0]}") from None
    return device


def choose_workers(asked: int | None, device: torch.device, processors: int | None = None) -> int:
    """Processes that load pictures: on a GPU most processors wait for it; on the CPU those that training leaves idle.

    Args:
        asked: what the user wants, None for no wish.
        processors: those there are for this run; all of the machine's when None.
    """
    if asked is not None:
        return asked
    processors = processors or os.cpu_count() or 1
    if device.type != "cpu":
        return min(8, processors - 1)
    return min(4, max(processors - torch.get_num_threads(), processors // 4))


def slow_mixed_precision(device: torch.device, config: FinetuneConfig) -> str | None:
    """Why ``--amp`` makes training slower on ``device``, in a line; None where it does not, or nobody knows."""
    if device.type != "cpu" or not config.amp or not hasattr(torch.cpu, "get_capabilities"):
        return None
    units = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
    if any(torch.cpu.get_capabilities().get(unit) for unit in units):
        return None
    return "--amp: this processor has no bfloat16 units, so that training is slower with it than without"


def rebuilt_kernels() -> str:
    """Why every process compiles AReLU's kernel anew, a second each time, in a line; "" where it is kept."""
    why = native.not_kept() if fused.kernel_state().startswith("fused") else ""
    return f"the compiled kernel is not kept, and built anew by every process: {why}" if why else ""


def describe_environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Content of environment.json, of a run that so many processes train."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
    return {
        "format": FORMAT,
        "arelu_tl": __version__,
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "arelu_on_cpu": fused.kernel_state(),
        **({"arelu_on_gpu": gpu.kernel_state(device)} if device.type == "cuda" else {}),
        "git_revision": _revision(),
    }


def changed_environment(before: dict[str, Any], device: torch.device) -> str:
    """What is different here from ``before`` (content of environment.json) and can change the last digits; "" for nothing."""
    now = describe_environment(device)

    def flat(environment: dict[str, Any]) -> dict[str, Any]:
        kept = ("arelu_tl", "python", "platform", "device", "device_name", "threads", "arelu_on_cpu", "arelu_on_gpu")
        packages = environment.get("packages")
        return {key: environment.get(key) for key in kept} | (packages if isinstance(packages, dict) else {})

    old, new = flat(before), flat(now)
    return ", ".join(f"{key} {old.get(key)} -> {new[key]}" for key in new if new[key] != old.get(key))


def _revision() -> str | None:
    """Revision of the working folder's git checkout; None outside of one."""
    try:
        told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None
