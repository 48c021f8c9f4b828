"""Durations as people write and read them: ``1h30m`` in a setting, ``1 h 30 min`` in a message."""

from __future__ import annotations

import re

_WRITTEN = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_duration(text: str) -> float:
    """Seconds of ``90m``, ``2h``, ``1h30m`` or ``45s``.

    Raises:
        ValueError: ``text`` is none of these, or no time at all.
    """
    found = _WRITTEN.fullmatch(text.strip())
    seconds = sum(int(n) * unit for n, unit in zip(found.groups(default="0"), (3600, 60, 1), strict=True)) if found else 0
    if not seconds:
        raise ValueError("write a time as 90m, 2h, 1h30m or 45s")
    return float(seconds)


def parse_interval(text: str) -> tuple[int, None] | tuple[None, float]:
    """(steps, None) of ``500``, (None, seconds) of ``10m``.

    Raises:
        ValueError: ``text`` is neither, or nothing at all.
    """
    try:
        steps = int(text)
    except ValueError:
        return None, parse_duration(text)
    if steps < 1:
        raise ValueError("write a number of steps as 500, or a time as 10m")
    return steps, None


def told_duration(seconds: float) -> str:
    """``2 h 5 min``, ``3 min 20 s`` or ``7 s``: to the second below an hour, to the minute above."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole} s" if minutes else f"{whole} s"
