"""Decode any picture file to an 8-bit RGB picture, equally in training, validation, prediction."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from arelu_tl.data.formats import HEAD, MAX_PIXELS, formats_of, thumbnail_only, unreadable


class UndecodableError(ValueError):
    """The bytes cannot be decoded to the last row of a picture; the message says why."""


def open_picture(source: Path | bytes, *, at_least: int | None = None) -> Image.Image:
    """Decode a picture completely, to mode RGB.

    Takes the first frame, applies the EXIF rotation, composites transparency over white, and scales
    16 bits to 8.

    Args:
        source: a file, or its content.
        at_least: a sufficient size of the shorter side, in pixels. A JPEG with at least twice as
            many is decoded at a half, a quarter or an eighth of its size, which is much faster.
            None decodes at full size.

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
    if reason := unreadable(content):
        raise UndecodableError(reason)
    try:
        with Image.open(io.BytesIO(content), formats=formats_of(content[:HEAD])) as picture:
            if reason := thumbnail_only(picture):
                raise UndecodableError(reason)
            if picture.width * picture.height > MAX_PIXELS:
                raise UndecodableError(f"claims {picture.width} x {picture.height} pixels")
            if at_least is not None:
                # Only Pillow's JPEG reader supports this. It still reads every coefficient, so
                # damage is detected.
                picture.draft(None, (at_least, at_least))
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise UndecodableError("not a picture in any known format") from None
    except UndecodableError:
        raise
    except Image.DecompressionBombError:
        raise UndecodableError("claims more pixels than any camera delivers") from None
    except Exception as error:  # noqa: BLE001  a plug-in may raise anything on a damaged file
        raise UndecodableError(" ".join(str(error).split()) or type(error).__name__) from None
    return to_rgb(upright)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB without loss of range; transparency goes over white."""
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
    """Scale wide greyscale to 8 bits, from 0..65535 if it fits 16 bits, else from its own range."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if picture.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    # Scaling loses the value that the file declares transparent, so it is set to white here.
    if isinstance(transparent := picture.info.get("transparency"), int):
        scaled[values == transparent] = 255.0
    return Image.fromarray(np.round(scaled).astype(np.uint8))
