"""Pictures that are the same but for their encoding: scaled, compressed again, brightened a little.

A perceptual hash finds candidates among a hundred thousand in seconds; their thumbnails decide, so that two different digits on
black, which hash alike, are not taken for one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arelu_tl.data.decode import open_picture
from arelu_tl.data.split import Sample

# A hash has 64 bits. Two that differ in fewer than 8 agree in one of 8 bytes, by which candidates are found.
_BYTES = 8
_DIFFERENT_BITS = 7
_SIDE = 16
# Of the contrast of a thumbnail: what compression and scaling change, and no more.
_DIFFERENCE = 0.08
# In grey levels. Blank pages are all alike, and copies of one another only by their bytes.
_LEAST_CONTRAST = 6.0
_SQUARE = 32
# The lowest waves of the discrete cosine transform (8, 32); the first, whose products hold the mean and the slopes of the light,
# which an exposure changes, is left out.
_WAVES = np.cos(np.pi / _SQUARE * np.outer(np.arange(1, 9), np.arange(_SQUARE) + 0.5)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture looks like.

    Attributes:
        hash: 8 bytes: the signs of its lowest spatial frequencies (pHash).
        thumbnail: 16 x 16 grey levels, row by row.
    """

    hash: bytes
    thumbnail: bytes

    def pack(self) -> bytes:
        """``LOOK_BYTES`` that ``unpack`` reads back."""
        return self.hash + self.thumbnail

    @classmethod
    def unpack(cls, packed: bytes) -> Look:
        return cls(packed[:_BYTES], packed[_BYTES:])


LOOK_BYTES = _BYTES + _SIDE * _SIDE


def look_of(content: bytes, picture: Image.Image) -> Look:
    """The look of a picture's file, the same whatever else it is opened for: who compares looks decides on a split by them.

    Args:
        content: of the file.
        picture: what has been made of it. Of a JPEG that may be any fraction of its size, so that it is decoded once more, at an
            eighth where that is enough.
    """
    return look(open_picture(content, at_least=_SQUARE) if content.startswith(b"\xff\xd8") else picture)


def look(picture: Image.Image) -> Look:
    """The look of an RGB or grey picture of any size, squeezed to a square."""
    grey = picture.convert("L")
    square = np.asarray(grey.resize((_SQUARE, _SQUARE), Image.Resampling.BOX), dtype=np.float32)
    waves = _WAVES @ square @ _WAVES.T
    return Look(np.packbits(waves > np.median(waves)).tobytes(), grey.resize((_SIDE, _SIDE), Image.Resampling.BOX).tobytes())


def same_looks(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures that look the same, in order.

    Of many that all do, as the frames of a film, only as many pairs as join them: N pictures have fewer than N.
    """
    if len(looks) < 2:
        return []
    hashes = np.frombuffer(b"".join(each.hash for each in looks), np.uint8).reshape(-1, _BYTES)
    thumbnails = np.frombuffer(b"".join(each.thumbnail for each in looks), np.uint8).reshape(len(looks), -1).astype(np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    contrast = np.sqrt((thumbnails**2).mean(axis=1))
    seen = np.flatnonzero(contrast >= _LEAST_CONTRAST)
    joined = np.arange(len(looks))
    members = {number: [number] for number in range(len(looks))}
    found: list[tuple[int, int]] = []
    whole = hashes.view(np.uint64)[:, 0]
    for group in _alike_in_a_byte(hashes, seen):
        for place, one in enumerate(group[:-1]):
            others = group[place + 1 :]
            others = others[joined[others] != joined[one]]
            if not len(others):  # then all that follow belong together
                break
            others = others[np.bitwise_count(whole[others] ^ whole[one]) <= _DIFFERENT_BITS]
            if not len(others):
                continue
            difference = np.sqrt(((thumbnails[others] - thumbnails[one]) ** 2).mean(axis=1))
            for other in others[difference <= _DIFFERENCE * contrast[one]]:
                if joined[other] == joined[one]:  # by a pair just before
                    continue
                found.append((min(one, other), max(one, other)))
                small, large = sorted((joined[one], joined[other]), key=lambda each: len(members[each]))
                joined[members[small]] = large
                members[large] += members.pop(small)
    return sorted((int(i), int(j)) for i, j in found)


def _alike_in_a_byte(hashes: NDArray[np.uint8], numbers: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Groups of ``numbers``: every pair whose hashes (N, 8) are close stands in one at least."""
    for byte in range(_BYTES):
        order = numbers[np.argsort(hashes[numbers, byte], kind="stable")]
        yield from np.split(order, np.flatnonzero(np.diff(hashes[order, byte])) + 1)


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
