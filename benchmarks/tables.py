"""What every benchmark needs: the machine in words, the spread of ratios, and rows as a Markdown table."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def spread(values: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """Cells for the median of several rounds, and for the least and the greatest of them."""
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "greatest": round(max(values), digits),
    }


def markdown(rows: Rows) -> str:
    """A table whose heading is the first row's keys; ``least`` and ``greatest`` share a column."""
    heads = [key for key in rows[0] if key != "greatest"]
    shown = ["least .. greatest" if head == "least" else head for head in heads]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [
            f"{row['least']} .. {row['greatest']}" if head == "least" else row[head]
            for head in heads
        ]
        lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    from importlib.metadata import version

    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
        if hasattr(os, "sysconf")
        else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "pillow", "onnxruntime", "arelu-tl")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
