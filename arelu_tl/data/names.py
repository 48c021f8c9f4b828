"""Names that a reader, or some disks, cannot tell apart."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable


def same_letters(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that look alike: the same letters, accents written into them or after them."""
    return _groups(names, lambda name: unicodedata.normalize("NFC", name))


def same_but_for_case(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in upper and lower case, and not in how their accents are written alone."""
    groups = _groups(names, lambda name: unicodedata.normalize("NFC", name).casefold())
    return [group for group in groups if len({unicodedata.normalize("NFC", name) for name in group}) > 1]


def _groups(names: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]
