"""From a picture file to the 8-bit picture that a transform starts from, which may be cached.

A recipe is a function of the file's bytes. Training and validation use its result, whether that is
read from a cache or computed again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import PIL
from PIL import Image, features

from arelu_tl.data.decode import open_picture
from arelu_tl.data.preprocess import Preprocessing

# Increase it whenever the recipes here, or open_picture, change their result for a file.
_VERSION = 2


@functools.cache
def decoder() -> str:
    """What else decides the pixels: the versions of this module, Pillow and its JPEG library."""
    return (
        f"{_VERSION} Pillow {PIL.__version__} "
        f"jpeg {features.version('jpg')} {features.version('libjpeg_turbo')}"
    )


def _key(words: str) -> str:
    return hashlib.sha256(f"{decoder()} {words}".encode()).hexdigest()[:16]


class Recipe(Protocol):
    """A computation in two steps, because the first alone decides whether a file is a picture.

    Attributes:
        key: 16 hex digits, equal for recipes that make the same pixels of every file.
    """

    @property
    def key(self) -> str: ...

    def open(self, content: bytes) -> Image.Image:
        """Decode a file's content to its end, as an RGB picture.

        Raises:
            UndecodableError: as ``open_picture``, with the same verdict for every recipe.
        """

    def reduce(self, picture: Image.Image) -> Image.Image:
        """Compute what is kept of the picture.

        Raises:
            UndecodableError: the transform cannot process such a picture.
        """


@dataclass(frozen=True)
class Whole:
    """The picture unchanged."""

    @property
    def key(self) -> str:
        return _key("whole")

    def open(self, content: bytes) -> Image.Image:
        return open_picture(content)

    def reduce(self, picture: Image.Image) -> Image.Image:
        return picture


@dataclass(frozen=True)
class Reduced:
    """For random crops: scaled down until its shorter side has ``side`` pixels; never enlarged.

    A JPEG that is at least twice as large is decoded at a half, a quarter or an eighth of its size,
    as long as that is large enough. The rest is a bicubic filter over all pixels. It is nearly as
    sharp as Lanczos; speed matters because a picture that does not fit into the cache is reduced
    again at every use.
    """

    side: int

    @property
    def key(self) -> str:
        return _key(f"reduced {self.side}")

    def open(self, content: bytes) -> Image.Image:
        return open_picture(content, at_least=self.side)

    def reduce(self, picture: Image.Image) -> Image.Image:
        shorter = min(picture.size)
        if shorter <= self.side:
            return picture
        width, height = (
            max(self.side, round(length * self.side / shorter)) for length in picture.size
        )
        return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


class Evaluated:
    """For evaluation: timm's evaluation transform, bit for bit, up to the normalisation."""

    def __init__(self, data_config: Mapping[str, Any]) -> None:
        """Set up the transform.

        Raises:
            ArtefactError: as ``Preprocessing``.
        """
        self._resized = Preprocessing(data_config).resized
        settings = {
            k: data_config.get(k) for k in ("input_size", "interpolation", "crop_pct", "crop_mode")
        }
        if settings["crop_mode"] == "border":
            settings["mean"] = list(data_config["mean"])  # the border's colour
        self.key = _key(f"evaluated {json.dumps(settings, sort_keys=True)}")

    def open(self, content: bytes) -> Image.Image:
        return open_picture(content)

    def reduce(self, picture: Image.Image) -> Image.Image:
        return self._resized(picture)


def for_crops(data_config: Mapping[str, Any], least_area: float) -> Reduced:
    """The recipe for random crops: large enough for a crop of the least area to fill the input.

    A square crop of that share of a square picture has as many pixels as the input, and needs no
    enlargement; of a longer picture it has more. timm's crops are up to a third wider than high, or
    higher than wide: they may lack up to 15% in one direction, and have as much to spare in the
    other.

    Args:
        data_config: input_size (3, H, W).
        least_area: the least share of the picture's area that a crop keeps, 0..1.
    """
    _, height, width = data_config["input_size"]
    return Reduced(math.ceil(max(height, width) / math.sqrt(least_area)))
