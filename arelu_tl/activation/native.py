"""Small C files, built on first use if there is a compiler, and kept in the user's cache.

They do not include torch's headers, so a build takes about a second. Without a compiler the caller
does without, and gives the reason.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from arelu_tl.private import make_private, who_else_writes

# Comparisons never trap here; knowing this, the compiler can vectorise them.
_ALWAYS = ("-O3", "-fno-trapping-math", "-fno-math-errno", "-shared", "-fPIC", "-std=c99")
# Best first. Apple's compiler has no OpenMP, and some compilers lack -march=native.
_WISHES = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())


def build(source: Path, included: Sequence[Path]) -> tuple[ctypes.CDLL | None, str]:
    """Return (the library of ``source``, its description), or (None, the reason).

    The library is built now or found in the cache.

    Args:
        source: the C file.
        included: files that ``source`` includes; the library is rebuilt when they change.
    """
    if os.environ.get("ARELU_TL_FUSED", "1") == "0":
        return None, "portable: ARELU_TL_FUSED is 0"
    asked = os.environ.get("CC")
    compiler = (
        shutil.which(asked)
        if asked
        else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    )
    if compiler is None:
        return None, f"portable: no C compiler ({asked or 'cc, gcc, clang'})"
    try:
        path, flags = _compiled(compiler, source, included)
        return ctypes.CDLL(str(path)), f"fused ({Path(compiler).name} {' '.join(flags)})".replace(
            " )", ")"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"portable: the C file does not build ({' '.join(str(error).split())[:200]})"


def not_kept() -> str:
    """Say why every process has to rebuild the libraries; "" if they are cached."""
    return _cache()[1]


def _compiled(
    compiler: str, source: Path, included: Sequence[Path]
) -> tuple[Path, tuple[str, ...]]:
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=30
    ).stdout
    folder, _ = _cache()
    reason = "no attempt"
    for flags in _WISHES:
        command = [compiler, *_ALWAYS, *flags]
        # A file built for this CPU must not be used by another that shares the home folder.
        parts = [
            *(file.read_bytes() for file in (source, *included)),
            repr(command).encode(),
            version,
            _processor(),
        ]
        key = hashlib.sha256(b"\0".join(parts)).hexdigest()
        path = folder / f"{source.stem}-{key[:24]}.so"
        if path.is_file() and not path.is_symlink() and not who_else_writes(path):
            return path, flags
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as place:
            made = Path(place) / path.name
            done = subprocess.run(
                [*command, str(source), "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            if done.returncode == 0:
                made.chmod(0o700)
                made.replace(path)  # atomic, since another process may build it at the same time
                return path, flags
            reason = done.stderr
    raise OSError(reason)


def _cache() -> tuple[Path, str]:
    """Return (the user's own cache folder, "").

    If others can write to it, return a folder of this process and the reason, because the files in
    the folder are executed.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # Ignore a relative path, which would depend on the current folder.
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "arelu-tl"
        make_private(folder)
        fault = who_else_writes(folder) or (
            "" if os.access(folder, os.W_OK) else f"{folder} cannot be written to"
        )
    except (OSError, RuntimeError) as error:  # no home folder is a RuntimeError
        folder, fault = Path(), " ".join(str(error).split())
    return (_own_folder(), fault) if fault else (folder, "")


@lru_cache(maxsize=1)
def _own_folder() -> Path:
    own = tempfile.mkdtemp(prefix="arelu-tl-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = ""
    return f"{platform.machine()} {platform.processor()} {flags}".encode()
