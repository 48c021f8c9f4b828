"""Where reduced pictures are kept: on disk for later studies, in memory during one, or nowhere."""

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
# With less room a cache would hold only a few dozen pictures, and get in the way of other programs.
_LEAST_ROOM = 100_000_000
_HELD = "held"


@contextmanager
def open_cache(kind: CacheKind, limit: int) -> Iterator[PictureStore | None]:
    """Open a store for the duration of the block; all studies of this user share it.

    It is None for "off", and if "auto" finds no place.

    "auto" means the disk: recent files are read from the page cache there too, the system reclaims
    that memory when it is needed, and the next study finds the pictures ready. "auto" uses memory
    only if no disk has room.

    Args:
        limit: maximum size in bytes; also at most a quarter of the free disk, or half of the free
            memory.

    Raises:
        ConfigError: "ram" on a system without a folder in memory.
        StorageError: the folder cannot be made, belongs to somebody else, or others can write to it
            or replace it.
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
                reason = os.strerror(error.errno or 0)
                raise StorageError(
                    f"`cache` {place}: {root or 'no home folder'}: {reason}: pass `cache='off'`"
                ) from error
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
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(configured) if Path(configured).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise StorageError(
            "`cache='disk'`: this user has no home folder: set XDG_CACHE_HOME, or pass "
            "`cache='off'`"
        ) from None
    return home / "arelu-tl" / "pictures"


def _memory_folder() -> Path:
    if sys.platform == "win32" or not MEMORY.is_dir():
        raise ConfigError(f"`cache='ram'`: this system has no {MEMORY}: pass `cache='disk'`")
    return MEMORY / f"arelu-tl-pictures-{os.getuid()}"


def _enter(root: Path) -> int:
    """Make the folder, and return a descriptor of a file in it, which ``_lock`` uses."""
    while True:
        make_private(root)
        # In a folder that everybody can write to, somebody may have made it before us; elsewhere,
        # somebody with access may replace it.
        if (
            fault := f"{root} belongs to somebody else"
            if root.is_symlink()
            else who_else_writes(root)
        ):
            raise StorageError(f"{fault}: pass another `cache`")
        try:
            descriptor = os.open(root / _HELD, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(descriptor, alone=False)
            if os.path.samestat(os.fstat(descriptor), (root / _HELD).stat()):
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:  # the last user removed the folder before we held the lock
            continue


def _lock(descriptor: int, *, alone: bool) -> bool:
    """Lock the folder, shared or (without waiting) alone; return whether it succeeded.

    Where the file system has no locks, like some network file systems, it never succeeds.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except OSError:
        return False
    return True


def _room(root: Path, disk: bool, used: int) -> int:
    """Bytes that the store may use, including what it uses already."""
    free = shutil.disk_usage(root).free + used
    if disk:
        return free // 4
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = min(free, int(line.split()[1]) * 1024 + used)
    return free // 2
