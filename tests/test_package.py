"""The wheel holds everything that the package needs, and works without the source."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from commands import ONE_EPOCH

ROOT = Path(__file__).parents[1]
SOURCES = (".py", ".c", ".h", ".tsv", ".typed", ".j2", ".html", ".css", ".js")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, timeout=300)
    (built,) = folder.glob("arelu_tl-*.whl")
    return built


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "arelu_tl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= held
    assert {Path(name).suffix for name in files} <= set(SOURCES)
    assert not [name for name in held if not name.startswith(("arelu_tl/", "arelu_tl-"))]


def test_it_works_without_the_source(wheel: Path, make_folder: Any, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*words: object) -> str:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout

    assert str(installed) in run("-c", "import arelu_tl; print(arelu_tl.__file__)")
    assert "demo" in run("-m", "arelu_tl", "demo", "--help")
    assert "ReLU" in run("-m", "arelu_tl", "inspect", "test_resnet", "--no-pretrained")
    run("-m", "arelu_tl", "finetune", make_folder(), *ONE_EPOCH, "--output", tmp_path / "runs")
    assert list((tmp_path / "runs").glob("*/report.html"))
