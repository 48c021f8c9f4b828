"""Find pictures that differ only in encoding: rescaled, recompressed, slightly brightened.

A perceptual hash finds candidates among a hundred thousand pictures in seconds. Their thumbnails
decide, because different digits on black have similar hashes.
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

# A hash has 64 bits. Two hashes that differ in fewer than 8 bits agree in at least one of 8 bytes,
# which is how candidates are found.
_BYTES = 8
_DIFFERENT_BITS = 7
_SIDE = 16
# Relative to a thumbnail's contrast: as much as compression and scaling change.
_DIFFERENCE = 0.08
# In grey levels. All blank pages look alike; they are copies only if their bytes are equal.
_LEAST_CONTRAST = 6.0
_SQUARE = 32
# The lowest frequencies of the discrete cosine transform (8, 32). The constant one is left out: its
# products hold the mean and the slopes of the brightness, which exposure changes.
_WAVES = np.cos(np.pi / _SQUARE * np.outer(np.arange(1, 9), np.arange(_SQUARE) + 0.5)).astype(
    np.float32
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture looks like, in a compact form.

    Attributes:
        hash: 8 bytes: the signs of its lowest spatial frequencies (pHash).
        thumbnail: 16 x 16 grey levels, row by row.
    """

    hash: bytes
    thumbnail: bytes

    def pack(self) -> bytes:
        """Serialise into ``LOOK_BYTES`` bytes, which ``unpack`` reads."""
        return self.hash + self.thumbnail

    @classmethod
    def unpack(cls, packed: bytes) -> Look:
        """Deserialise what ``pack`` returned."""
        return cls(packed[:_BYTES], packed[_BYTES:])


LOOK_BYTES = _BYTES + _SIDE * _SIDE


def look_of(content: bytes, picture: Image.Image) -> Look:
    """The look of a picture's file, independent of the size at which it was decoded.

    Splits depend on looks, so a file must always have the same look.

    Args:
        content: of the file.
        picture: decoded from it. A JPEG may have been decoded at any fraction of its size, so it is
            decoded again, at an eighth of its size if that is enough.
    """
    return look(
        open_picture(content, at_least=_SQUARE) if content.startswith(b"\xff\xd8") else picture
    )


def look(picture: Image.Image) -> Look:
    """The look of an RGB or grey picture of any size, scaled to a square."""
    grey = picture.convert("L")
    square = np.asarray(grey.resize((_SQUARE, _SQUARE), Image.Resampling.BOX), dtype=np.float32)
    waves = _WAVES @ square @ _WAVES.T
    return Look(
        np.packbits(waves > np.median(waves)).tobytes(),
        grey.resize((_SIDE, _SIDE), Image.Resampling.BOX).tobytes(),
    )


def same_looks(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Find pairs (i, j), i < j, of pictures that look the same, in order.

    A group of many such pictures, like the frames of a film, gives only the pairs that connect it:
    N pictures give fewer than N pairs.
    """
    if len(looks) < 2:
        return []
    hashes = np.frombuffer(b"".join(each.hash for each in looks), np.uint8).reshape(-1, _BYTES)
    thumbnails = (
        np.frombuffer(b"".join(each.thumbnail for each in looks), np.uint8)
        .reshape(len(looks), -1)
        .astype(np.float32)
    )
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
            if not len(others):  # all that follow are already in the same group
                break
            others = others[np.bitwise_count(whole[others] ^ whole[one]) <= _DIFFERENT_BITS]
            if not len(others):
                continue
            difference = np.sqrt(((thumbnails[others] - thumbnails[one]) ** 2).mean(axis=1))
            for other in others[difference <= _DIFFERENCE * contrast[one]]:
                if joined[other] == joined[one]:  # connected by one of the pairs just found
                    continue
                found.append((min(one, other), max(one, other)))
                small, large = sorted(
                    (joined[one], joined[other]), key=lambda each: len(members[each])
                )
                joined[members[small]] = large
                members[large] += members.pop(small)
    return sorted((int(i), int(j)) for i, j in found)


def _alike_in_a_byte(
    hashes: NDArray[np.uint8], numbers: NDArray[np.intp]
) -> Iterator[NDArray[np.intp]]:
    """Groups of ``numbers``; any two with close hashes (N, 8) are together in at least one."""
    for byte in range(_BYTES):
        order = numbers[np.argsort(hashes[numbers, byte], kind="stable")]
        yield from np.split(order, np.flatnonzero(np.diff(hashes[order, byte])) + 1)


@dataclass(frozen=True)
class Copies:
    """A group of files that show the same picture.

    Attributes:
        paths: of the files, in order.
        splits, classes: of each file.
        exact: whether all files have the same bytes.
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
        """Two of the paths, from different splits if there are any."""
        other = next((i for i, split in enumerate(self.splits) if split != self.splits[0]), 1)
        return self.paths[0], self.paths[other]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON data."""
        return {
            "paths": self.paths,
            "splits": self.splits,
            "classes": self.classes,
            "exact": self.exact,
        }


def join_looks(looks: Mapping[str, Look]) -> dict[str, str]:
    """{SHA-256: that of the first picture in ``looks`` which looks the same}."""
    digests = list(looks)
    first = dict(zip(digests, digests, strict=True))
    for one, other in same_looks(list(looks.values())):
        a, b = (_root(first, digests[number]) for number in (one, other))
        first[b] = a
    places = {digest: number for number, digest in enumerate(digests)}
    joined: dict[str, list[str]] = defaultdict(list)
    for digest in digests:
        joined[_root(first, digest)].append(digest)
    return {
        digest: min(members, key=places.__getitem__)
        for members in joined.values()
        for digest in members
    }


def _root(first: dict[str, str], digest: str) -> str:
    while first[digest] != digest:
        first[digest] = first[first[digest]]
        digest = first[digest]
    return digest


def find_copies(
    splits: Mapping[str, Sequence[Sample]], classes: Sequence[str], same: Mapping[str, str]
) -> list[Copies]:
    """Find every group of files that show the same picture, those across splits first.

    Args:
        same: as ``join_looks`` returns it.
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
