"""timm's evaluation transform without torch: bit-identical, from Pillow and numpy alone.

The counterpart of ``timm.data.transforms_factory.transforms_imagenet_eval`` and of the torchvision
functions that it uses (``Resize``, ``CenterCrop``, ``ToTensor``, ``Normalize``), with the same
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arelu_tl.data.decode import UndecodableError
from arelu_tl.data.formats import MAX_PIXELS
from arelu_tl.errors import ArtefactError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
CROP_MODES = ("center", "squash", "border")
# timm's default for a model's configuration without one.
_CROP_PCT = 0.875
# Far beyond any model; a corrupt file must not exhaust the memory.
_LARGEST_SIDE = 16_384


class Preprocessing:
    """From an RGB picture to the model's input; bit-identical to ``eval_transform(data_config)``.

    Attributes:
        size: (height, width) of the output.
    """

    def __init__(self, data_config: Mapping[str, Any]) -> None:
        """Validate the settings and prepare the transform.

        Args:
            data_config: input_size (3, H, W), mean and std (3 each, of pixels 0..1), interpolation;
                crop_pct and crop_mode (center, squash or border) are optional.

        Raises:
            ArtefactError: a setting is missing or not supported.
        """
        try:
            channels, height, width = (int(side) for side in data_config["input_size"])
            mean, std = ([float(v) for v in data_config[key]] for key in ("mean", "std"))
            interpolation = str(data_config["interpolation"])
            crop_pct = float(data_config.get("crop_pct") or _CROP_PCT)
            mode = str(data_config.get("crop_mode") or "center")
            _require(0 < crop_pct < math.inf, f"crop_pct {crop_pct}")
            scaled = math.floor(height / crop_pct), math.floor(width / crop_pct)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtefactError(
                f"preprocessing cannot be read: {type(error).__name__} {error}"
            ) from None
        _require(
            channels == 3 and len(mean) == len(std) == 3, "pictures with other than three channels"
        )
        _require(interpolation in INTERPOLATIONS, f"interpolation {interpolation!r}")
        _require(mode in CROP_MODES, f"crop_mode {mode!r}")
        _require(
            all(map(math.isfinite, (*mean, *std))) and all(np.float32(v) > 0 for v in std),
            f"mean {mean} and std {std}",
        )
        _require(
            min(height, width, *scaled) >= 1 and max(height, width, *scaled) <= _LARGEST_SIDE,
            f"size {height} x {width}",
        )
        self.size = height, width
        self._scaled = scaled
        self._resample = INTERPOLATIONS[interpolation]
        self._mode = mode
        self._fill = tuple(round(255 * v) for v in mean) if mode == "border" else (0, 0, 0)
        # A channel has only 256 values. The order and precision are those of ToTensor and
        # Normalize.
        pixels = np.arange(256, dtype=np.float32) / np.float32(255)
        self._table = (pixels - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[
            :, None
        ]

    def __call__(self, picture: Image.Image) -> NDArray[np.float32]:
        """The normalised picture (3, H, W).

        Raises:
            UndecodableError: as ``resized``.
        """
        pixels = np.asarray(self.resized(picture))
        return np.stack([self._table[channel].take(pixels[:, :, channel]) for channel in range(3)])

    def resized(self, picture: Image.Image) -> Image.Image:
        """The RGB picture before normalisation: resized, and cropped or padded to ``size``.

        Raises:
            UndecodableError: it is so long and narrow that it would exceed ``MAX_PIXELS`` after
                resizing.
        """
        height, width = self._resized_size(picture.height, picture.width)
        if height * width > MAX_PIXELS:
            raise UndecodableError(
                f"too long and narrow: resized it would have {width} x {height} pixels"
            )
        if (width, height) != picture.size:
            picture = picture.resize((width, height), self._resample)
        return _crop_or_pad(picture, *self.size, self._fill)

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self._mode == "squash":
            return self._scaled
        if self._mode == "center" and self._scaled[0] == self._scaled[1]:
            # torchvision: the shorter side becomes the target; the longer is truncated to whole
            # pixels.
            short, long = (
                self._scaled[0],
                int(self._scaled[0] * max(height, width) / min(height, width)),
            )
            return (long, short) if width <= height else (short, long)
        # timm's ResizeKeepRatio: one side becomes the target's. With "border" that is the longer
        # side, which leaves a border.
        ratios = height / self._scaled[0], width / self._scaled[1]
        ratio = max(ratios) if self._mode == "border" else min(ratios)
        # timm fails if less than half a pixel remains of the shorter side.
        return max(1, round(height / ratio)), max(1, round(width / ratio))


def _crop_or_pad(picture: Image.Image, height: int, width: int, fill: Sequence[int]) -> Image.Image:
    """The centre of ``picture``, padded with ``fill`` where the picture is smaller."""
    if height > picture.height or width > picture.width:
        padded = Image.new(
            "RGB", (max(width, picture.width), max(height, picture.height)), tuple(fill)
        )
        padded.paste(
            picture, ((padded.width - picture.width) // 2, (padded.height - picture.height) // 2)
        )
        picture = padded
    if picture.size == (width, height):
        return picture
    # round() takes halves to the even number, like torchvision's.
    top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))


def _require(served: bool, what: str) -> None:
    if not served:
        raise ArtefactError(f"preprocessing with {what} is not supported")
