"""Runs the real command line with the operating system failing at a chosen call, and tells whether anything was lost."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from commands import run_command

SHIM = Path(__file__).with_name("shim.c")


def build_shim(folder: Path) -> Path | None:
    """The library that makes calls fail; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = folder / "shim.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", str(SHIM), "-o", str(library), "-ldl"], check=True
    )
    return library


def run_with_fault(
    shim: Path,
    *arguments: str | Path,
    cwd: Path,
    root: Path,
    at: int | None = None,
    code: int = 0,
    stays: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``arelu-tl ARGUMENTS``; its ``at``-th call that changes something below ``root`` fails with ``code``, 0: kills it."""
    env = {"FAULTS_ROOT": str(root), "FAULTS_ERRNO": str(code), "FAULTS_STAYS": str(int(stays))}
    if at is not None:
        env["FAULTS_AT"] = str(at)
    return run_command(*arguments, cwd=cwd, preload=shim, **env)


def count_calls(shim: Path, *arguments: str | Path, cwd: Path, root: Path) -> list[str]:
    """Each call of an undisturbed run, as "name path"."""
    log = cwd / "calls.log"
    done = run_command(
        *arguments, cwd=cwd, preload=shim, FAULTS_ROOT=str(root), FAULTS_LOG=str(log)
    )
    assert done.returncode == 0, done.stderr
    calls = [" ".join(line.split("\t")[1:]) for line in log.read_text().splitlines()]
    log.unlink()
    return calls


def everything(study: Path) -> dict[str, Any]:
    """All that a study leaves and that must not depend on how often it was interrupted: without clocks, to the last byte."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in study.rglob("*") if p.is_file()):
        name = path.relative_to(study).as_posix()
        if name.endswith(
            (".tmp", "convergence.png", "convergence.svg", "report.html", "comparison.json")
        ):
            continue
        if path.suffix == ".jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "results.csv":
            found[name] = [_timeless(row) for row in csv.DictReader(path.open())]
        elif path.name == "state.pt":
            found[name] = _timeless(torch.load(path, weights_only=True))
        elif path.name == "manifest.json":
            found[name] = json.loads(path.read_text())["step"]
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


_CLOCKS = {"seconds", "images_per_second", "peak_memory_bytes", "lengths"}


def _timeless(value: Any) -> Any:
    """Without what the clock says; tensors as their bytes."""
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in _CLOCKS}
    if isinstance(value, list | tuple):
        return [_timeless(each) for each in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    return value


def unfinished(study: Path) -> list[str]:
    """Names of what somebody left lying beside."""
    return [p.relative_to(study).as_posix() for p in study.rglob("*.tmp")]


ENOSPC, EIO = errno.ENOSPC, errno.EIO
