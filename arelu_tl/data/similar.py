"""Pictures that are the same but for their encoding: scaled, compressed again, brightened a little.

A perceptual hash finds candidates among a hundred thousand in seconds; their thumbnails decide, so that two different digits on
black, which hash alike, are not taken for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

# A hash has 64 bits. Two that differ in fewer than 8 agree in one of 8 bytes, by which candidates are found.
_BYTES = 8
_DIFFERENT_BITS = 7
_SIDE = 16
# Of the contrast of a thumbnail: what compression and scaling change, and no more.
_DIFFERENCE = 0.08
# In grey levels. Blank pages are all alike, and copies of one another only by their bytes.
_LEAST_CONTRAST = 6.0


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture looks like.

    Attributes:
        hash: 8 bytes: the signs of its lowest spatial frequencies (pHash).
        thumbnail: 16 x 16 grey levels, row by row.
    """

    hash: bytes
    thumbnail: bytes


def look(picture: Image.Image) -> Look:
    """The look of an RGB or grey picture of any size, squeezed to a square."""
    grey = picture.convert("L")
    square = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
    # The first row and column hold the mean and the slopes of the light, which an exposure changes.
    waves = fft.dctn(square, norm="ortho")[1:9, 1:9]
    return Look(np.packbits(waves > np.median(waves)).tobytes(), grey.resize((_SIDE, _SIDE), Image.Resampling.BOX).tobytes())


def same_looks(looks: Sequence[Look]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures that look the same, in order."""
    if len(looks) < 2:
        return []
    hashes = np.frombuffer(b"".join(each.hash for each in looks), np.uint8).reshape(-1, _BYTES)
    thumbnails = np.frombuffer(b"".join(each.thumbnail for each in looks), np.uint8).reshape(len(looks), -1).astype(np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    contrast = np.sqrt((thumbnails**2).mean(axis=1))
    found: set[tuple[int, int]] = set()
    for first, others in _candidates(hashes):
        if contrast[first] < _LEAST_CONTRAST:
            continue
        difference = np.sqrt(((thumbnails[others] - thumbnails[first]) ** 2).mean(axis=1))
        found.update((first, int(other)) for other in others[difference <= _DIFFERENCE * contrast[first]])
    return sorted(found)


def _candidates(hashes: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """(a picture, later ones whose hash is close to its): every close pair at least once."""
    whole = hashes.view(np.uint64)[:, 0]
    for byte in range(_BYTES):
        order = np.argsort(hashes[:, byte], kind="stable")
        edges = np.flatnonzero(np.diff(hashes[order, byte])) + 1
        for group in np.split(order, edges):
            for place, first in enumerate(group[:-1]):
                others = group[place + 1 :]
                close = others[np.bitwise_count(whole[others] ^ whole[first]) <= _DIFFERENT_BITS]
                if len(close):
                    yield int(first), close
