"""The environment of a run: versions, device, threads, revision."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

from arelu_tl.activation import fused, gpu, native
from arelu_tl.records.format import FORMAT
from arelu_tl.version import __version__


def rebuilt_kernels() -> str:
    """Explain in one line why every process recompiles AReLU's kernel, which takes a second.

    Returns:
        The explanation; "" if the compiled kernel is kept.
    """
    why = native.not_kept() if fused.kernel_state().startswith("fused") else ""
    return f"the compiled kernel is not kept, and built anew by every process: {why}" if why else ""


def describe_environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Return the content of environment.json.

    Args:
        processes: number of processes that train the run.
    """
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
    """Describe the differences from ``before`` that can change the last digits of results.

    Args:
        before: content of environment.json.

    Returns:
        The differences, in one line; "" if there are none.
    """
    now = describe_environment(device)

    def flat(environment: dict[str, Any]) -> dict[str, Any]:
        kept = (
            "arelu_tl",
            "python",
            "platform",
            "device",
            "device_name",
            "threads",
            "arelu_on_cpu",
            "arelu_on_gpu",
        )
        packages = environment.get("packages")
        return {key: environment.get(key) for key in kept} | (
            packages if isinstance(packages, dict) else {}
        )

    old, new = flat(before), flat(now)
    return ", ".join(
        f"{key} {old.get(key)} -> {new[key]}" for key in new if new[key] != old.get(key)
    )


def _revision() -> str | None:
    """Return the git revision of the working folder; None outside of a checkout."""
    try:
        finished = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() or None
