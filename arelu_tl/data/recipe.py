"""From a picture file to the 8-bit picture that a transform begins with: what is worth doing once, and keeping.

A recipe is a function of the file's bytes. Training and validation see what it makes of them, whether that comes from a
cache or is made anew.
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

# Raise it with any change of what the recipes here, or open_picture, make of a file.
_VERSION = 2


@functools.cache
def decoder() -> str:
    """What else decides on the pixels: this module's version, Pillow's, and that of its JPEG library."""
    return f"{_VERSION} Pillow {PIL.__version__} jpeg {features.version('jpg')} {features.version('libjpeg_turbo')}"


def _key(words: str) -> str:
    return hashlib.sha256(f"{decoder()} {words}".encode()).hexdigest()[:16]


class Recipe(Protocol):
    """Two steps, because the first alone tells whether a file is a picture.

    Attributes:
        key: 16 hex digits; equal where recipes make the same pixels of every file.
    """

    @property
    def key(self) -> str: ...

    def open(self, content: bytes) -> Image.Image:
        """A file's content as an RGB picture, decoded to its end.

        Raises:
            UndecodableError: see ``open_picture``, whose verdict it shares.
        """

    def reduce(self, picture: Image.Image) -> Image.Image:
        """What is kept of it.

        Raises:
            UndecodableError: the transform cannot serve such a picture.
        """


@dataclass(frozen=True)
class Whole:
    """The picture as it is."""

    @property
    def key(self) -> str:
        return _key("whole")

    def open(self, content: bytes) -> Image.Image:
        return open_picture(content)

    def reduce(self, picture: Image.Image) -> Image.Image:
        return picture


@dataclass(frozen=True)
class Reduced:
    """For random crops: smaller, its shorter side ``side`` pixels; never enlarged.

    A JPEG many times larger is decoded at a half, a quarter or an eighth of its size, whichever is still large enough. The
    rest is a bicubic filter over all pixels: nearly as sharp as Lanczos's, and what does not fit into a cache is reduced anew
    every time.
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
        width, height = (max(self.side, round(length * self.side / shorter)) for length in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


class Evaluated:
    """For evaluation: all that timm's evaluation transform does before it makes numbers of the pixels, and as it does it."""

    def __init__(self, data_config: Mapping[str, Any]) -> None:
        """
        Raises:
            ArtefactError: see ``Preprocessing``.
        """
        self._resized = Preprocessing(data_config).resized
        settings = {k: data_config.get(k) for k in ("input_size", "interpolation", "crop_pct", "crop_mode")}
        if settings["crop_mode"] == "border":
            settings["mean"] = list(data_config["mean"])  # the border's colour
        self.key = _key(f"evaluated {json.dumps(settings, sort_keys=True)}")

    def open(self, content: bytes) -> Image.Image:
        return open_picture(content)

    def reduce(self, picture: Image.Image) -> Image.Image:
        return self._resized(picture)


def for_crops(data_config: Mapping[str, Any], least_area: float) -> Reduced:
    """What random crops to the input's (height, width) need, so that one of the least area still fills it.

    A crop of that share of a square picture, itself square, then has as many pixels as the input, and needs no enlargement;
    of a longer picture it has more. Crops that timm makes up to a third wider than high, or higher than wide, may lack up to
    15% in one direction and have as much to spare in the other.

    Args:
        least_area: the least share of the picture's area that a crop keeps, 0..1.
    """
    _, height, width = data_config["input_size"]
    return Reduced(math.ceil(max(height, width) / math.sqrt(least_area)))
