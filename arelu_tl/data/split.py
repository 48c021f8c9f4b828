"""Split a folder without splits: hold out a share of every class, and keep copies on one side."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arelu_tl.data.listing import natural_key


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture: path relative to the folder (with /), class index, SHA-256 of its bytes."""

    path: str
    label: int
    digest: str


@dataclass
class HeldOut:
    """The result of ``hold_out``.

    Attributes:
        train, val: the two sides, in order.
        problems: one line for each class that is not on both sides, with the reason.
    """

    train: list[Sample]
    val: list[Sample]
    problems: list[str]


def hold_out(
    samples: Iterable[Sample],
    classes: Sequence[str],
    fraction: float,
    seed: int,
    same: Mapping[str, str] | None = None,
) -> HeldOut:
    """Hold out a share of every class.

    Each class draws from its own random stream, so adding pictures to one class leaves the split of
    the others unchanged. The exception is copies of these pictures in other classes, which stay on
    the same side.

    Args:
        fraction: 0..1; at least one picture of each class stays on each side.
        same: {SHA-256: that of the first picture which shows the same}. Such pictures stay on one
            side, across classes. None: only pictures of one class with equal bytes stay together.
    """
    groups: list[dict[str, list[Sample]]] = [defaultdict(list) for _ in classes]
    for sample in samples:
        groups[sample.label][same[sample.digest] if same else sample.digest].append(sample)
    side: dict[str, bool] = {}
    problems = []
    train: list[Sample] = []
    val: list[Sample] = []
    # Smallest class first: copies in other classes leave it the fewest choices.
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


def _draw(
    units: Mapping[str, Sequence[Sample]],
    name: str,
    fraction: float,
    seed: int,
    side: dict[str, bool],
) -> str:
    """Assign each unit of a class that is not yet in ``side`` to one of the sides.

    A held-out unit is True in ``side``. Returns the reason if the class is not on both sides,
    otherwise "".
    """
    if not units:
        return ""
    if len(units) < 2:
        (files,) = units.values()
        count = f"{len(files)} copies of one picture" if len(files) > 1 else "one picture only"
        way = (
            " (`allow_duplicates` takes those of other bytes for different)"
            if len({s.digest for s in files}) > 1
            else ""
        )
        return f"class {name} has {count}; a split needs at least two different ones a class{way}"
    held_out = min(max(round(len(units) * fraction), 1), len(units) - 1)
    stream = np.random.default_rng(
        [seed, int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8])]
    )
    order = stream.permutation(len(units))
    names = list(units)
    wanted = held_out - sum(side.get(unit, False) for unit in names)
    for unit in (names[i] for i in order):
        if unit not in side:
            side[unit] = wanted > 0
            wanted -= 1
    if len({side[unit] for unit in names}) < 2:
        return (
            f"class {name}: its pictures stand in other classes too, so that it cannot be on both "
            "sides: remove the copies"
        )
    return ""


def in_order(samples: Iterable[Sample]) -> list[Sample]:
    """Sort by class, then by path in natural order."""
    return sorted(samples, key=lambda s: (s.label, natural_key(s.path)))
