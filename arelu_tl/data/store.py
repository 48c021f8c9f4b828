"""Reduced pictures as files, in a folder that any number of processes read and write at once.

A file is a header with a checksum over everything, followed by the picture's pixels. It is written
under a temporary name and renamed, so a writer that dies leaves nothing readable. A file that is
truncated, altered or in the wrong place is made again.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import re
import struct
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from arelu_tl.data.recipe import Recipe, decoder

if sys.platform != "win32":
    import fcntl

# Magic, recipe, SHA-256 of the picture's file, height, width; then the checksum of these and the
# pixels.
_FIELDS = struct.Struct("<8s16s32sII")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_MAGIC = b"ARELUTL1"
_USAGE, _GOOD = "usage", "good"
# At 418 bytes per picture, verdicts on three hundred thousand pictures.
_MOST_VERDICT_BYTES = 128_000_000
_VERDICT = re.compile(rb"([0-9a-f]{64}) ([A-Za-z0-9+/=]+)")
# File times come from a clock that lags behind time.time().
_CLOCK_SECONDS = 2.0
_evicting = threading.Lock()
_numbers = itertools.count()


@dataclass
class PictureStore:
    """Cached pictures, by recipe and SHA-256 of the picture's file.

    Can be pickled for other processes, even where the folder does not exist. No method fails for
    lack of disk space, access rights or the like: a picture that cannot be kept is made again at
    every use.

    Attributes:
        root: the folder.
        limit: maximum size of all its files together, in bytes. To make room, files that were not
            used since this study began are removed, the least recently used first.
        began: when this study began, in seconds since 1970.
        full: whether the store has stopped keeping pictures.
    """

    root: Path
    limit: int
    began: float = field(default_factory=time.time)
    full: bool = False
    _good: dict[str, bytes] = field(default_factory=dict, repr=False)
    _unused: deque[tuple[float, int, Path]] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, object]:
        # Only the check of the pictures needs the verdicts; they are megabytes.
        return {**self.__dict__, "_good": {}, "_unused": None}

    def get(self, recipe: Recipe, digest: str) -> Image.Image | None:
        """The kept result of ``recipe`` for the picture; None if there is none."""
        path = self._path(recipe, digest)
        try:
            # Read, not mapped: mapped pages count into the peak memory that a run reports (330 MiB
            # of mapped pictures raised it by 333 MiB, reading by none). Either way all processes
            # share one copy in the page cache.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                status = os.fstat(descriptor)
                content = os.read(descriptor, status.st_size)
            finally:
                os.close(descriptor)
            picture = _unpack(content, recipe, digest)
            if picture is None:
                path.unlink()
                self._account(-status.st_size)
            elif status.st_mtime < self.began - _CLOCK_SECONDS:
                os.utime(path)
        except OSError:  # never kept, evicted, or on another machine or of another user
            return None
        return picture

    def holds(self, recipe: Recipe, digest: str) -> bool:
        """Whether the picture's file exists, without reading it; marks it as used."""
        try:
            os.utime(self._path(recipe, digest))
        except OSError:
            return False
        return True

    def size(self, recipe: Recipe, digest: str) -> int:
        """Bytes that the picture takes in the store; 0 if it is not kept."""
        try:
            return self._path(recipe, digest).stat().st_size
        except OSError:
            return 0

    def put(self, recipe: Recipe, digest: str, picture: Image.Image) -> None:
        """Keep the result of ``recipe`` for a picture; safe from any thread or process."""
        path = self._path(recipe, digest)
        if self.full or path.exists():
            return
        content = _pack(recipe, digest, picture)
        beside = path.with_name(f"{digest}.{os.getpid()}-{next(_numbers)}.tmp")
        try:
            if not self._reserve(len(content)):
                self.full = True
                return
            try:
                # Never make the root itself: it was removed, or was never on this machine.
                path.parent.parent.mkdir(mode=0o700, exist_ok=True)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                beside.write_bytes(content)
                os.replace(beside, path)
            except BaseException:
                beside.unlink(missing_ok=True)
                self._account(-len(content))
                raise
        except OSError:  # for example a full disk
            self.full = True

    def verdict(self, digest: str) -> bytes | None:
        """The note on the file with this SHA-256, if it is known to be valid; otherwise None."""
        return self._good.get(digest)

    def note_good(self, digest: str, noted: bytes) -> None:
        """Record that a file is valid, with a few bytes about it."""
        try:
            # One write per line, so lines of concurrent writers do not mix. A half line, from a
            # writer that died, does not parse as a verdict.
            descriptor = os.open(self._verdicts, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, f"{digest} {base64.b64encode(noted).decode()}\n".encode())
            finally:
                os.close(descriptor)
        except OSError:
            self.full = True

    def tidy(self) -> None:
        """Recount the size, and remove leftovers of dead writers and files beyond the limit.

        Only for a process that holds the folder alone.
        """
        for path in self.root.glob("*/*/*.tmp"):
            path.unlink()
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.limit:
                break
            path.unlink()
            total -= size
        with self._usage() as descriptor:
            _write_total(descriptor, total)
        for path in self.root.glob(f"{_GOOD}-*"):
            # Written for another version of Pillow, or grown beyond any real use.
            if path != self._verdicts or path.stat().st_size > _MOST_VERDICT_BYTES:
                path.unlink()

    def load_verdicts(self) -> None:
        """Read which files are known to be valid."""
        try:
            lines = self._verdicts.read_bytes().splitlines()
        except OSError:
            return
        self._good = {}
        for line in lines:
            if found := _VERDICT.fullmatch(line):
                with suppress(binascii.Error):
                    self._good[found[1].decode()] = base64.b64decode(found[2], validate=True)

    def used(self) -> int:
        """Bytes used, as counted by the writers; 0 if the folder is not accessible."""
        try:
            with self._usage() as descriptor:
                return self._total(descriptor)
        except OSError:
            return 0

    @property
    def _verdicts(self) -> Path:
        return self.root / f"{_GOOD}-{zlib.crc32(decoder().encode()):08x}"

    def _path(self, recipe: Recipe, digest: str) -> Path:
        # Folders with many thousands of files are slow on some file systems.
        return self.root / recipe.key / digest[:2] / digest

    def _reserve(self, size: int) -> bool:
        """Add ``size`` bytes to the count, evicting files if needed; False if there is no room."""
        while not self._account(size):
            with _evicting:
                if self._unused is None:
                    self._unused = deque(
                        each for each in self._files() if each[0] < self.began - _CLOCK_SECONDS
                    )
                if not self._unused:
                    return False
                listed, freed, path = self._unused.popleft()
            try:
                if path.stat().st_mtime == listed:  # not used in the meantime
                    path.unlink()
                    self._account(-freed)
            except FileNotFoundError:  # another process evicted it, and updated the count
                continue
        return True

    def _account(self, change: int) -> bool:
        """Add to the count; False, without adding, if it would exceed the limit."""
        with self._usage() as descriptor:
            total = self._total(descriptor) + change
            if change > 0 and total > self.limit:
                return False
            _write_total(descriptor, max(0, total))
            return True

    def _total(self, descriptor: int) -> int:
        os.lseek(descriptor, 0, os.SEEK_SET)
        written = os.read(descriptor, 32)
        return (
            int(written) if written.strip().isdigit() else sum(size for _, size, _ in self._files())
        )

    @contextmanager
    def _usage(self) -> Iterator[int]:
        """Open the file with the count, locked against all other processes."""
        descriptor = os.open(self.root / _USAGE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every kept picture, least recently used first."""
        found = []
        for path in self.root.glob("*/*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return sorted(found)


def _write_total(descriptor: int, total: int) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, f"{total:<31d}\n".encode())


def _pack(recipe: Recipe, digest: str, picture: Image.Image) -> bytes:
    fields = _FIELDS.pack(
        _MAGIC, recipe.key.encode(), bytes.fromhex(digest), picture.height, picture.width
    )
    pixels = picture.tobytes()
    return b"".join((fields, _CHECKSUM.pack(zlib.crc32(pixels, zlib.crc32(fields))), pixels))


def _unpack(content: bytes, recipe: Recipe, digest: str) -> Image.Image | None:
    """The picture; None unless it is complete, unaltered and the one asked for."""
    if len(content) < _HEADER_BYTES:
        return None
    fields, pixels = content[: _FIELDS.size], memoryview(content)[_HEADER_BYTES:]
    magic, key, sha256, height, width = _FIELDS.unpack(fields)
    asked = (_MAGIC, recipe.key.encode(), bytes.fromhex(digest))
    if (magic, key, sha256) != asked or len(pixels) != height * width * 3:
        return None
    (checksum,) = _CHECKSUM.unpack_from(content, _FIELDS.size)
    if zlib.crc32(pixels, zlib.crc32(fields)) != checksum:
        return None
    return Image.frombytes("RGB", (width, height), pixels)
