"""The pixels of pictures that were decoded once, in a file of their own: all runs of one machine read them from it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from arelu_tl.errors import StorageError
from arelu_tl.records.storage import hold_folder, storage_errors

# Some 100,000 pictures of 240 x 240, or 500 of a camera's 12 megapixels; more are decoded whenever they are needed.
LIMIT_BYTES = 16 * 2**30
_PREFIX = "arelu-tl-pictures-"


@dataclass(frozen=True)
class DecodedPictures:
    """Where each picture's pixels lie. Travels to other processes as a path and an index; they need not have the file.

    Attributes:
        path: the file of 8-bit RGB pixels, row by row.
        index: {SHA-256 of a picture file's bytes: (offset, height, width)}.
    """

    path: Path
    index: dict[str, tuple[int, int, int]] = field(default_factory=dict, repr=False)

    def get(self, digest: str) -> Image.Image | None:
        """The picture as ``open_picture`` gave it when it was added, whatever has become of its file; None without it."""
        place = self.index.get(digest)
        if place is None:
            return None
        offset, height, width = place
        try:
            # Read and not mapped: pages of a map would count into the peak memory that a run reports.
            pixels = np.fromfile(self.path, np.uint8, count=height * width * 3, offset=offset)
        except OSError:  # another machine's or another user's, or the study that made it has ended
            return None
        if pixels.size < height * width * 3:
            return None
        return Image.fromarray(pixels.reshape(height, width, 3))


class PictureCache:
    """A private temporary folder with decoded pictures, as a context manager that removes it; ``add`` fills it.

    It takes no more pictures at its limit, a quarter of the disk's free space at most, or when the disk refuses. What it
    holds is what was decoded: a picture file that changes afterwards changes nothing.
    """

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self._limit = limit
        self._end = 0
        self._adding = threading.Lock()
        self._open = ExitStack()

    def __enter__(self) -> PictureCache:
        _remove_abandoned()
        with storage_errors(Path(tempfile.gettempdir())):
            folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX)))
        # Tells the processes that clean up that somebody lives here.
        self._open.enter_context(hold_folder(folder))
        self._limit = min(self._limit, shutil.disk_usage(folder).free // 4)
        self.pictures = DecodedPictures(folder / "pixels")
        self._file = os.open(self.pictures.path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        self._open.callback(os.close, self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)

    def add(self, digest: str, picture: Image.Image) -> None:
        """Keep an RGB picture, from any thread."""
        pixels = np.asarray(picture)
        height, width, _ = pixels.shape
        with self._adding:
            if digest in self.pictures.index or self._end + pixels.nbytes > self._limit:
                return
            try:
                os.lseek(self._file, self._end, os.SEEK_SET)
                left = memoryview(pixels.tobytes())
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError:  # a full disk, say: the pictures are then decoded as they are needed
                self._limit = 0
                return
            self.pictures.index[digest] = self._end, height, width
            self._end += pixels.nbytes


def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            # One that was made a moment ago may not be held yet.
            if time.time() - folder.stat().st_mtime > 60:
                with hold_folder(folder) as held:
                    if held:
                        shutil.rmtree(folder)
        except (StorageError, OSError):  # in use, another user's, or removed by somebody else just now
            continue
