"""Parse and format sizes and durations: ``16GB``, ``1h30m`` in settings, ``376 MB`` in messages."""

from __future__ import annotations

import re

_BYTES = {"b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _BYTES[f"{_letter}b"], _BYTES[f"{_letter}ib"] = 1000**_power, 1024**_power
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]i?b|b)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Parse a size into bytes: ``16GB``, ``1.5 TB``, ``500MB`` (powers of 1000), ``16GiB`` (1024).

    Raises:
        ValueError: ``text`` is not a size, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _BYTES[found[2].lower()]) if found else 0
    if not size:
        raise ValueError("write a size as 500MB, 16GB or 16GiB")
    return size


def format_size(size: int) -> str:
    """Format a size with at least two significant digits.

    Examples: ``0 B``, ``700 B``, ``12 kB``, ``376 MB``, ``1.5 GB``, ``16 GB``.
    """
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if round(number) < 1000:
            break
        number, unit = number / 1000, larger
    short = f"{number:.1f}" if unit != "B" and number < 9.95 else f"{number:.0f}"
    return f"{short.removesuffix('.0')} {unit}"


_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_duration(text: str) -> float:
    """Parse a duration into seconds: ``90m``, ``2h``, ``1h30m`` or ``45s``.

    Raises:
        ValueError: ``text`` is not a duration, or zero.
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = (
        sum(int(n) * unit for n, unit in zip(found.groups(default="0"), (3600, 60, 1), strict=True))
        if found
        else 0
    )
    if not seconds:
        raise ValueError("write a time as 90m, 2h, 1h30m or 45s")
    return float(seconds)


def parse_interval(text: str) -> tuple[int, None] | tuple[None, float]:
    """Parse an interval: (steps, None) for ``500``, (None, seconds) for ``10m``.

    Raises:
        ValueError: ``text`` is neither, or zero.
    """
    try:
        steps = int(text)
    except ValueError:
        return None, parse_duration(text)
    if steps < 1:
        raise ValueError("write a number of steps as 500, or a time as 10m")
    return steps, None


def format_duration(seconds: float) -> str:
    """Format a duration, to the second below an hour, to the minute above.

    Examples: ``2 h 5 min``, ``3 min 20 s``, ``7 s``.
    """
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {whole} s"
        if minutes
        else f"{whole} s"
    )
