"""Reduced pictures as files, in a folder that any number of processes read and fill at once.

A file is a picture's pixels beneath a header with a checksum over all of it. It is written beside and renamed in, so that a
writer that dies leaves nothing that could be read; whatever is found short, altered or in the wrong place is made anew.
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

# Magic, recipe, SHA-256 of the picture's file, height, width; then the checksum of these and the pixels.
_FIELDS = struct.Struct("<8s16s32sII")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_MAGIC = b"ARELUTL1"
_USAGE, _GOOD = "usage", "good"
# 418 bytes a picture: verdicts on three hundred thousand.
_MOST_VERDICT_BYTES = 128_000_000
_VERDICT = re.compile(rb"([0-9a-f]{64}) ([A-Za-z0-9+/=]+)")
# A file's time comes from a clock that lags behind the one we read.
_CLOCK_SECONDS = 2.0
_evicting = threading.Lock()
_numbers = itertools.count()


@dataclass
class PictureStore:
    """Kept pictures, by recipe and SHA-256 of the picture's file. Travels to other processes, which need not have the folder.

    Nothing here fails for want of disk, rights or luck: what cannot be kept is made anew whenever it is needed.

    Attributes:
        root: the folder.
        limit: bytes that all files in it may have together. To make room for new ones, those are removed that nobody has
            used since this study began, the longest unused first.
        began: when this study began, in seconds since 1970.
        full: no more is kept.
    """

    root: Path
    limit: int
    began: float = field(default_factory=time.time)
    full: bool = False
    _good: dict[str, bytes] = field(default_factory=dict, repr=False)
    _unused: deque[tuple[float, int, Path]] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, object]:
        # Verdicts were for the gate; megabytes that no other process asks for.
        return {**self.__dict__, "_good": {}, "_unused": None}

    def get(self, recipe: Recipe, digest: str) -> Image.Image | None:
        """What ``recipe`` once made of the picture; None where it is not here."""
        path = self._path(recipe, digest)
        try:
            # Read and not mapped: a map's pages count into the peak memory that a run reports (330 MiB of pictures mapped raised
            # it by 333 MiB, read by none), and both ways they lie in memory once for all processes.
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
        except OSError:  # never kept, evicted, or of another machine or user
            return None
        return picture

    def holds(self, recipe: Recipe, digest: str) -> bool:
        """Whether it is here, as far as can be told without reading it; it then counts as used."""
        try:
            os.utime(self._path(recipe, digest))
        except OSError:
            return False
        return True

    def size(self, recipe: Recipe, digest: str) -> int:
        """Bytes that it takes here; 0 where it is not here."""
        try:
            return self._path(recipe, digest).stat().st_size
        except OSError:
            return 0

    def put(self, recipe: Recipe, digest: str, picture: Image.Image) -> None:
        """Keep what ``recipe`` has made of a picture, from any thread or process."""
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
                # Never the store's own folder: it has been removed, or was never on this machine.
                path.parent.parent.mkdir(mode=0o700, exist_ok=True)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                beside.write_bytes(content)
                os.replace(beside, path)
            except BaseException:
                beside.unlink(missing_ok=True)
                self._account(-len(content))
                raise
        except OSError:  # a full disk, say
            self.full = True

    def verdict(self, digest: str) -> bytes | None:
        """What was noted of the file with this SHA-256, which is known to decode to its end; None where it is not."""
        return self._good.get(digest)

    def note_good(self, digest: str, noted: bytes) -> None:
        """Remember that a file does, and a few bytes about it."""
        try:
            # One write of one line: other writers' come before or after it. A dead writer's half line is no verdict.
            descriptor = os.open(self._verdicts, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, f"{digest} {base64.b64encode(noted).decode()}\n".encode())
            finally:
                os.close(descriptor)
        except OSError:
            self.full = True

    def tidy(self) -> None:
        """Count what is here, and remove what dead writers left and what is beyond the limit. Only where nobody else is."""
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
            # Another Pillow's, or more than anybody's pictures.
            if path != self._verdicts or path.stat().st_size > _MOST_VERDICT_BYTES:
                path.unlink()

    def load_verdicts(self) -> None:
        """Read which files are known to decode."""
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
        """Bytes in it, as its writers have counted them; 0 where there is none."""
        try:
            with self._usage() as descriptor:
                return self._total(descriptor)
        except OSError:
            return 0

    @property
    def _verdicts(self) -> Path:
        return self.root / f"{_GOOD}-{zlib.crc32(decoder().encode()):08x}"

    def _path(self, recipe: Recipe, digest: str) -> Path:
        # Folders of many thousands of files are slow to search on some file systems.
        return self.root / recipe.key / digest[:2] / digest

    def _reserve(self, size: int) -> bool:
        """Count a file of ``size`` bytes in, after making room for it if need be; False where there is none."""
        while not self._account(size):
            with _evicting:
                if self._unused is None:
                    self._unused = deque(each for each in self._files() if each[0] < self.began - _CLOCK_SECONDS)
                if not self._unused:
                    return False
                listed, freed, path = self._unused.popleft()
            try:
                if path.stat().st_mtime == listed:  # nobody has used it meanwhile
                    path.unlink()
                    self._account(-freed)
            except FileNotFoundError:  # somebody else has made room of it, and counted it out
                continue
        return True

    def _account(self, change: int) -> bool:
        """Add to the count; False, and nothing added, where it would exceed the limit."""
        with self._usage() as descriptor:
            total = self._total(descriptor) + change
            if change > 0 and total > self.limit:
                return False
            _write_total(descriptor, max(0, total))
            return True

    def _total(self, descriptor: int) -> int:
        os.lseek(descriptor, 0, os.SEEK_SET)
        written = os.read(descriptor, 32)
        return int(written) if written.strip().isdigit() else sum(size for _, size, _ in self._files())

    @contextmanager
    def _usage(self) -> Iterator[int]:
        """The file with the count, all others kept out of it."""
        descriptor = os.open(self.root / _USAGE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every kept picture, the longest unused first."""
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
    fields = _FIELDS.pack(_MAGIC, recipe.key.encode(), bytes.fromhex(digest), picture.height, picture.width)
    pixels = picture.tobytes()
    return b"".join((fields, _CHECKSUM.pack(zlib.crc32(pixels, zlib.crc32(fields))), pixels))


def _unpack(content: bytes, recipe: Recipe, digest: str) -> Image.Image | None:
    """The picture; None unless it is whole, unaltered and the one asked for."""
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
