"""The split of a folder that has none of its own: a share of every class is held out, and copies stay on one side."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arelu_tl.data.listing import natural_key


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture: path relative to the folder (with forward slashes), class index, SHA-256 of its bytes."""

    path: str
    label: int
    digest: str


@dataclass
class HeldOut:
    """Attributes:
    train, val: the two sides, in order.
    problems: why a class is not on both sides, one line each.
    """

    train: list[Sample]
    val: list[Sample]
    problems: list[str]


def hold_out(
    samples: Iterable[Sample], classes: Sequence[str], fraction: float, seed: int, same: Mapping[str, str] | None = None
) -> HeldOut:
    """Hold out a share of every class.

    Each class draws from its own stream: pictures added to one leave the others' split as it was, unless copies of them stand
    there, which follow.

    Args:
        fraction: 0..1; at least one picture of a class stays on each side.
        same: {SHA-256: that of the first picture which shows the same}; those stay on one side, in whatever class they are.
            None: of every class those with the same bytes.
    """
    groups: list[dict[str, list[Sample]]] = [defaultdict(list) for _ in classes]
    for sample in samples:
        groups[sample.label][same[sample.digest] if same else sample.digest].append(sample)
    side: dict[str, bool] = {}
    problems = []
    train: list[Sample] = []
    val: list[Sample] = []
    # The smallest first: with copies in other classes, it is they that have the least choice.
    for label in sorted(range(len(classes)), key=lambda each: len(groups[each])):
        units = groups[label]
        if same is None:
            side = {}
        problem = _draw(units, classes[label], fraction, seed, side)
        if problem:
            problems.append(problem)
        for unit, members in units.items():
            (val if side.get(unit) else train).extend(members)
    return HeldOut(in_order(train), in_order(val), problems)


def _draw(units: Mapping[str, Sequence[Sample]], name: str, fraction: float, seed: int, side: dict[str, bool]) -> str:
    """Decide for each unit of a class whether it is held out, where ``side`` does not say so already; what stands against it."""
    if not units:
        return ""
    if len(units) < 2:
        (files,) = units.values()
        told = f"{len(files)} copies of one picture" if len(files) > 1 else "one picture only"
        way = " (--allow-duplicates takes those of other bytes for different)" if len({s.digest for s in files}) > 1 else ""
        return f"class {name} has {told}; a split needs at least two different ones a class{way}"
    held_out = min(max(round(len(units) * fraction), 1), len(units) - 1)
    stream = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8])])
    order = stream.permutation(len(units))
    names = list(units)
    wanted = held_out - sum(side.get(unit, False) for unit in names)
    for unit in (names[i] for i in order):
        if unit not in side:
            side[unit] = wanted > 0
            wanted -= 1
    if len({side[unit] for unit in names}) < 2:
        return f"class {name}: its pictures stand in other classes too, so that it cannot be on both sides: remove the copies"
    return ""


def in_order(samples: Iterable[Sample]) -> list[Sample]:
    """By class, then in natural order of the paths."""
    return sorted(samples, key=lambda s: (s.label, natural_key(s.path)))
