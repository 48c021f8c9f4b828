"""Thumbnails of validation pictures, made from the files as they are now."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.records.storage import leaves_folder
from arelu_tl.render.report.subjects import Judged

MOST_SHOWN = 24
SIDE = 112


@dataclass(frozen=True)
class Thumbnail:
    """A picture of the page, scaled down.

    Attributes:
        judged: the picture and both predictions.
        source: a data: URI; "" if the picture cannot be shown.
        missing: why it cannot be shown; "" if it can.
        small: whether it has fewer pixels than its place on the page.
    """

    judged: Judged
    source: str
    missing: str
    small: bool


def thumbnails(pictures: Sequence[Judged], root: Path | None) -> list[Thumbnail]:
    """Thumbnails of the first ``MOST_SHOWN`` of ``pictures``, from the folder ``root``.

    A picture that cannot be shown gets a reason instead.
    """
    with ThreadPoolExecutor(4) as pool:  # decoding and scaling release the GIL
        return list(pool.map(lambda picture: _thumbnail(picture, root), pictures[:MOST_SHOWN]))


def _thumbnail(judged: Judged, root: Path | None) -> Thumbnail:
    if root is None:
        return Thumbnail(judged, "", "the folder of pictures is not recorded", False)
    # The page must not show files from elsewhere on this machine.
    if leaves_folder(judged.path):
        return Thumbnail(judged, "", "its path is none inside the folder of pictures", False)
    try:
        picture = open_picture(root / judged.path)
    except FileNotFoundError:
        return Thumbnail(judged, "", "the file is gone", False)
    except UndecodableError as error:
        return Thumbnail(judged, "", f"no picture any more: {error}", False)
    except OSError as error:
        return Thumbnail(judged, "", f"cannot be read: {os.strerror(error.errno or 0)}", False)
    small = max(picture.size) < SIDE
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return Thumbnail(
        judged,
        f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
        "",
        small,
    )
