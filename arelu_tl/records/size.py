"""Amounts of storage as people write and read them: ``16GB`` in a setting, ``376 MB`` in a message."""

from __future__ import annotations

import re

_UNITS = {"b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}b"], _UNITS[f"{_letter}ib"] = 1000**_power, 1024**_power
_WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]i?b|b)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of ``16GB``, ``1.5 TB``, ``500MB`` (powers of 1000) or ``16GiB`` (of 1024).

    Raises:
        ValueError: ``text`` is none of these, or less than a byte.
    """
    found = _WRITTEN.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if not size:
        raise ValueError("write a size as 500MB, 16GB or 16GiB")
    return size


def told_size(size: int) -> str:
    """``0 B``, ``700 B``, ``12 kB``, ``376 MB``, ``1.5 GB`` or ``16 GB``: two digits that count, at least."""
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if round(number) < 1000:
            break
        number, unit = number / 1000, larger
    short = f"{number:.1f}" if unit != "B" and number < 9.95 else f"{number:.0f}"
    return f"{short.removesuffix('.0')} {unit}"
