"""Where reduced pictures are kept: on disk for the next study too, in memory for as long as a study runs, or nowhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from arelu_tl.data.store import PictureStore
from arelu_tl.errors import ConfigError, StorageError
from arelu_tl.private import make_private, who_else_writes

if sys.platform != "win32":
    import fcntl

CacheKind = Literal["auto", "ram", "disk", "off"]
MEMORY = Path("/dev/shm")
# Below it a cache would hold a few dozen pictures and be in the way of everything else.
_LEAST_ROOM = 100_000_000
_HELD = "held"


@contextmanager
def open_cache(kind: CacheKind, limit: int) -> Iterator[PictureStore | None]:
    """A store that every study of this user shares while the block lasts; None for "off", and where "auto" finds no place.

    "auto" is the disk: what was written a moment ago is read from memory there too, the system takes that memory back when
    something else needs it, and the next study finds the pictures ready. It is memory only where there is no disk with room.

    Args:
        limit: bytes at most; of the disk never more than a quarter of what is free, of the memory never more than half.

    Raises:
        ConfigError: "ram" where the system has no folder in memory.
        StorageError: the folder cannot be made, is somebody else's, or others can write to it or exchange it.
    """
    if kind == "off":
        yield None
        return
    with _open(kind, limit) as store:
        yield store


@contextmanager
def _open(kind: CacheKind, limit: int) -> Iterator[PictureStore | None]:
    for place in ("disk", "ram") if kind == "auto" else (kind,):
        root = None
        try:
            root = _disk_folder() if place == "disk" else _memory_folder()
            descriptor = _enter(root)
        except (OSError, ConfigError) as error:
            if kind == "auto":
                continue
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                told = os.strerror(error.errno or 0)
                raise StorageError(f"--cache {place}: {root or 'no home folder'}: {told}: pass --cache off") from error
            raise
        try:
            store = PictureStore(root, limit)
            if _lock(descriptor, alone=True):
                store.tidy()
            _lock(descriptor, alone=False)
            store.limit = min(limit, _room(root, place == "disk", store.used()))
            if kind == "auto" and store.limit < _LEAST_ROOM:
                continue
            store.load_verdicts()
            yield store
        finally:
            if place == "ram" and _lock(descriptor, alone=True):
                shutil.rmtree(root, ignore_errors=True)
            os.close(descriptor)
        return
    yield None


def _disk_folder() -> Path:
    told = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(told) if Path(told).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise StorageError("--cache disk: this user has no home folder: set XDG_CACHE_HOME, or pass --cache off") from None
    return home / "arelu-tl" / "pictures"


def _memory_folder() -> Path:
    if sys.platform == "win32" or not MEMORY.is_dir():
        raise ConfigError(f"--cache ram: this system has no {MEMORY}: pass --cache disk")
    return MEMORY / f"arelu-tl-pictures-{os.getuid()}"


def _enter(root: Path) -> int:
    """Make the folder; a descriptor of a file in it, on which ``_lock`` works."""
    while True:
        make_private(root)
        # Where everybody may write, somebody could have made it before us; elsewhere, exchange it.
        if fault := f"{root} belongs to somebody else" if root.is_symlink() else who_else_writes(root):
            raise StorageError(f"{fault}: pass another --cache")
        try:
            descriptor = os.open(root / _HELD, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(descriptor, alone=False)
            if os.path.samestat(os.fstat(descriptor), (root / _HELD).stat()):
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:  # whoever was here last removed it before we held it
            continue


def _lock(descriptor: int, *, alone: bool) -> bool:
    """Hold the folder with others, or alone if nobody else does. Without locks (some network file systems) never alone."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except OSError:
        return False
    return True


def _room(root: Path, disk: bool, used: int) -> int:
    """Bytes that the store may have, with what it has already."""
    free = shutil.disk_usage(root).free + used
    if disk:
        return free // 4
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = min(free, int(line.split()[1]) * 1024 + used)
    return free // 2
