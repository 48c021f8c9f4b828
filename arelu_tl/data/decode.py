"""Any picture file to an 8-bit RGB picture, the same way in training, validation and prediction."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from arelu_tl.data.formats import HEAD, MAX_PIXELS, formats_of, thumbnail_only, unreadable


class UndecodableError(ValueError):
    """The bytes are no picture that can be decoded to its last row; the message says why."""


def open_picture(source: Path | bytes, *, at_least: int | None = None) -> Image.Image:
    """Decode to the end: first frame, EXIF rotation applied, transparency over white, 16 bits scaled to 8, mode RGB.

    Args:
        source: a file, or its content.
        at_least: pixels of the shorter side that are enough; a JPEG that has twice as many or more is decoded at a half, a
            quarter or an eighth of its size, in a fraction of the time. Whole when None.

    Raises:
        UndecodableError: truncated, not a picture, or larger than MAX_PIXELS.
        OSError: the file cannot be read.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return _decode(content, at_least)
    except UndecodableError as error:
        why = unreadable(content, "" if isinstance(source, bytes) else source.name)
        raise UndecodableError(why or str(error)) from None


def _decode(content: bytes, at_least: int | None) -> Image.Image:
    if not content:
        raise UndecodableError("empty file")
    if told := unreadable(content):
        raise UndecodableError(told)
    try:
        with Image.open(io.BytesIO(content), formats=formats_of(content[:HEAD])) as picture:
            if told := thumbnail_only(picture):
                raise UndecodableError(told)
            if picture.width * picture.height > MAX_PIXELS:
                raise UndecodableError(f"claims {picture.width} x {picture.height} pixels")
            if at_least is not None:
                # Of Pillow's formats only JPEG has something to do here. Every coefficient is still read, so that damage shows.
                picture.draft(None, (at_least, at_least))
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise UndecodableError("not a picture in any known format") from None
    except UndecodableError:
        raise
    except Image.DecompressionBombError:
        raise UndecodableError("claims more pixels than any camera delivers") from None
    except Exception as error:  # noqa: BLE001  a damaged file makes a plug-in raise whatever it stumbles over
        raise UndecodableError(" ".join(str(error).split()) or type(error).__name__) from None
    return to_rgb(upright)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB without losing range or inventing black where the picture is transparent."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_eight_bits(picture)
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Wide greyscale by its range: 0..65535 where it fits 16 bits, its own least to most value otherwise."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if picture.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    # The one value that the file declares transparent is composited here: scaling has taken its name away.
    if isinstance(transparent := picture.info.get("transparency"), int):
        scaled[values == transparent] = 255.0
    return Image.fromarray(np.round(scaled).astype(np.uint8))
