"""Atomic files, files that grow row by row, and folders that exactly one process claims.

Every error of the operating system becomes a StorageError that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic_core import from_json

from arelu_tl.errors import ArtefactError, DataError, StorageError

if sys.platform != "win32":
    import fcntl


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the context into a StorageError that names ``path``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {os.strerror(error.errno or 0)}") from error


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents."""
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def require_room(folder: Path, report: str) -> None:
    """Raise unless ``folder`` is new, empty, or holds an earlier ``report``.

    Raises:
        StorageError: it is a file, or contains other files.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file: choose another `output`")
    with storage_errors(folder):
        if folder.exists() and any(folder.iterdir()) and not (folder / report).is_file():
            raise StorageError(
                f"{folder} exists, is not empty and holds no {report}: choose another `output`"
            )


def require_folder(path: Path) -> None:
    """Check that the folder exists.

    Raises:
        DataError: ``path`` is not a folder.
    """
    if not path.is_dir():
        raise DataError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")


def remove_file(path: Path) -> None:
    """Remove ``path`` if it exists."""
    with storage_errors(path):
        path.unlink(missing_ok=True)


def claim_folder(parent: Path, name: str | None, default: str) -> Path:
    """Create a new folder under ``parent``.

    It is called ``name``, or ``name-2`` and so on if that exists; without a name, ``default-1`` and
    so on. ``mkdir`` is atomic, so two processes never get the same folder.
    """
    make_folder(parent)
    number = 1
    while True:
        candidate = parent / (
            f"{default}-{number}" if name is None else name if number == 1 else f"{name}-{number}"
        )
        with storage_errors(candidate):
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                number += 1


@contextmanager
def hold_folder(path: Path, *, what: str = "in use", patience: float = 0.0) -> Iterator[bool]:
    """Lock ``path`` against other processes inside the context; the lock ends if this process dies.

    Args:
        what: what the other process is doing with it, for the message.
        patience: seconds to wait for the other process.

    Yields:
        Whether it is locked; False on platforms and file systems without such locks.

    Raises:
        StorageError: another process holds the lock.
    """
    if sys.platform == "win32":
        yield False
        return
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _lock(descriptor, path, what, time.monotonic() + patience)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, what: str, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StorageError(
                    f"{path} is {what} by another process{_holder(descriptor)}"
                ) from None
            time.sleep(0.1)
        except OSError:
            # NFS cannot lock folders, and some network file systems cannot lock at all; training
            # must work there without a lock.
            return False


def leaves_folder(path: str) -> bool:
    """Return whether a path from an untrusted file, relative to a folder, leads out of it."""
    relative = Path(path)
    return relative.is_absolute() or bool(relative.drive) or ".." in relative.parts or "\0" in path


def _holder(descriptor: int) -> str:
    """Return " (PID 123)" for the process that has locked the open file; "" if unknown."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return ""
    return next(
        (f" (PID {words[4]})" for words in lines if words[1] == "FLOCK" and words[5] == place), ""
    )


def fsync_folder(path: Path) -> None:
    """Make renames inside ``path`` durable, on platforms where a folder can be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path`` when the context ends.

    A reader sees the old content or the new, never a part.

    Raises:
        StorageError: the file cannot be written; the old content stays.
    """
    beside = path.with_name(path.name + ".tmp")
    with storage_errors(path):
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` atomically, see ``replaced_file``."""
    with replaced_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically; bytes of file names that are not valid text become escapes."""
    write_bytes(path, content.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write JSON (UTF-8) atomically; much faster with ``indent=None``.

    NaN and infinite values raise ValueError, because other JSON readers reject them.
    """
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that we wrote.

    Raises:
        ArtefactError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing: not a complete run folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None


def sha256_file(path: Path) -> str:
    """Return the SHA-256 digest of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RowWriter:
    """Appends JSON objects, one per line, and flushes each: a crash loses at most one row."""

    def __init__(self, path: Path, *, keep: int | None = None) -> None:
        """Open ``path`` for appending.

        Args:
            keep: first truncate the file to this many bytes, to resume.

        Raises:
            StorageError: the file cannot be opened.
            ArtefactError: the file is shorter than ``keep``.
        """
        self.path = path
        with storage_errors(path):
            self._file: IO[bytes] = open(path, "ab")  # noqa: SIM115 (closed by close)
            if keep is not None and keep > self.length():
                self._file.close()
                raise ArtefactError(
                    f"{path} is shorter than its checkpoint knew it: rows were lost"
                )
            if keep is not None:
                self._file.truncate(keep)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and flush it."""
        with storage_errors(self.path):
            self._file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            self._file.flush()

    def truncate(self) -> None:
        """Remove every row."""
        with storage_errors(self.path):
            self._file.truncate(0)

    def length(self) -> int:
        """Return the number of bytes so far, all of them flushed."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        with storage_errors(self.path):
            self._file.close()


def read_rows(path: Path, *, without: str | None = None) -> list[dict[str, Any]]:
    """Read a file of ``RowWriter``; an incomplete last line (still being written) is skipped.

    Args:
        without: a key to drop from every row, to save memory if it makes up most of a long file.

    Raises:
        ArtefactError: the file is missing, or a complete line is not a JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from None
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            row = _parse(line)
        except (ValueError, RecursionError):
            raise ArtefactError(f"{path}, line {number}: not JSON") from None
        if not isinstance(row, dict):
            raise ArtefactError(f"{path}, line {number}: not an object")
        row.pop(without, None)
        rows.append(row)
    return rows


def _parse(line: bytes) -> Any:
    """Parse with pydantic, twice as fast as ``json``; fall back to ``json`` for lone surrogates.

    File names may contain lone surrogates, which pydantic rejects.
    """
    try:
        return from_json(line)
    except ValueError:
        return json.loads(line)


# torch.load, torch.export.load and pickle.load can execute code in such files.
EXECUTABLE_ENDINGS = (".pt2", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


def refuse_executable(path: Path) -> None:
    """Raise if ``path`` is a file of a type whose loading can execute code.

    Raises:
        ArtefactError: it is; such files are never loaded.
    """
    if path.suffix.lower() in EXECUTABLE_ENDINGS and not path.is_dir():
        raise ArtefactError(
            f"{path}: files of this kind can execute code when they are loaded, and are never "
            "loaded here: name the run, an exported safetensors folder or an .onnx file"
        )
