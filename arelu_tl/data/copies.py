"""Files that show one picture: the same bytes, or another encoding of what they show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arelu_tl.data.similar import Look, same_looks
from arelu_tl.data.split import Sample


@dataclass(frozen=True)
class Copies:
    """Attributes:
    paths: of the files, in order.
    splits, classes: of each of them.
    exact: whether all have the same bytes.
    """

    paths: list[str]
    splits: list[str]
    classes: list[str]
    exact: bool

    @property
    def across_splits(self) -> bool:
        return len(set(self.splits)) > 1

    @property
    def across_classes(self) -> bool:
        return len(set(self.classes)) > 1

    def pair(self) -> tuple[str, str]:
        """Two of them, from two splits where there are two."""
        other = next((i for i, split in enumerate(self.splits) if split != self.splits[0]), 1)
        return self.paths[0], self.paths[other]

    def to_json(self) -> dict[str, Any]:
        return {"paths": self.paths, "splits": self.splits, "classes": self.classes, "exact": self.exact}


def join_looks(looks: Mapping[str, Look]) -> dict[str, str]:
    """{SHA-256: that of the first, in their order, which shows the same}."""
    digests = list(looks)
    first = dict(zip(digests, digests, strict=True))
    for one, other in same_looks(list(looks.values())):
        a, b = (_root(first, digests[number]) for number in (one, other))
        first[b] = a
    places = {digest: number for number, digest in enumerate(digests)}
    joined: dict[str, list[str]] = defaultdict(list)
    for digest in digests:
        joined[_root(first, digest)].append(digest)
    return {digest: min(members, key=places.__getitem__) for members in joined.values() for digest in members}


def _root(first: dict[str, str], digest: str) -> str:
    while first[digest] != digest:
        first[digest] = first[first[digest]]
        digest = first[digest]
    return digest


def find_copies(splits: Mapping[str, Sequence[Sample]], classes: Sequence[str], same: Mapping[str, str]) -> list[Copies]:
    """Every group of files that show one picture, those across splits first.

    Args:
        same: see ``join_looks``.
    """
    groups: dict[str, list[tuple[str, Sample]]] = defaultdict(list)
    for split, samples in splits.items():
        for sample in samples:
            groups[same[sample.digest]].append((split, sample))
    found = [
        Copies(
            paths=[sample.path for _, sample in group],
            splits=[split for split, _ in group],
            classes=[classes[sample.label] for _, sample in group],
            exact=len({sample.digest for _, sample in group}) == 1,
        )
        for group in groups.values()
        if len(group) > 1
    ]
    return sorted(found, key=lambda each: not each.across_splits)
