"""Every call that changes a file of a run fails once, or is the process's last: nothing that was saved is lost.

The fast suite takes four of the calls, the slow one (``-m slow``) all of them and moments between.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import GIVEN_WORDS, run_command
from harness import EIO, ENOSPC, build_shim, count_calls, everything, run_with_fault, unfinished

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
RUN = [
    "--model", "test_resnet", "--no-pretrained", *GIVEN_WORDS, "--img-size", "32", "--batch-size", "8", "--epochs", "2",
    "-j", "0", "--eval-every", "2", "--model-ema", "--lr", "1e-3", "--no-baseline", "--name", "s", "--quiet",
]  # fmt: skip


class Place:
    """A folder of pictures, the shim, and what an undisturbed study leaves."""

    def __init__(self, pictures: Path, shim: Path, place: Path) -> None:
        self.pictures, self.shim = pictures, shim
        place.mkdir()
        self.calls = count_calls(shim, *self.command(), cwd=place, root=place / "runs")
        self.whole = everything(place / "runs" / "s")
        began = time.perf_counter()
        run_command(*self.command(), cwd=place, preload=shim)
        self.seconds = time.perf_counter() - began

    def command(self) -> list[str | Path]:
        return ["finetune", self.pictures, *RUN]

    def go_on(self, place: Path) -> dict[str, Any]:
        """What the study at ``place`` leaves once it has been resumed, or begun, until it ends."""
        study = place / "runs" / "s"
        begun = (study / "study.yaml").exists()
        arguments: list[str | Path] = (
            ["finetune", "--resume", study, "--quiet"] if begun else self.command()
        )
        done = run_with_fault(self.shim, *arguments, cwd=place, root=place / "nowhere")
        assert done.returncode == 0, done.stderr
        # A study that had not begun is begun under the next name.
        study = study if begun else sorted((place / "runs").iterdir())[-1]
        assert unfinished(study) == []
        return everything(study)


@pytest.fixture(scope="module")
def place(make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("faults")
    shim = build_shim(folder)
    if shim is None:
        pytest.skip("no C compiler")
    return Place(make_folder(), shim, folder / "whole")


def _some(place: Place) -> range:
    """Numbers of four calls, from the first on."""
    return range(1, len(place.calls) + 1, -(-len(place.calls) // 4))


def _fails(place: Place, folder: Path, at: int, code: int, *, stays: bool) -> str | None:
    """What is wrong about how a failing call was taken, and what came afterwards."""
    folder.mkdir()
    done = run_with_fault(
        place.shim,
        *place.command(),
        cwd=folder,
        root=folder / "runs",
        at=at,
        code=code,
        stays=stays,
    )
    if done.returncode == 0 and everything(folder / "runs" / "s") == place.whole:
        return None  # it could do without: a folder that is there already need not be made
    if done.returncode != 5 or len(done.stderr.splitlines()) != 1:
        return f"call {at}, {place.calls[at - 1]}: exit code {done.returncode}, {done.stderr}"
    return (
        None
        if place.go_on(folder) == place.whole
        else f"call {at}, {place.calls[at - 1]}: another end"
    )


def _dies(place: Place, folder: Path, at: int) -> str | None:
    folder.mkdir()
    done = run_with_fault(place.shim, *place.command(), cwd=folder, root=folder / "runs", at=at)
    if done.returncode != -9:
        return f"call {at}, {place.calls[at - 1]}: exit code {done.returncode}"
    return (
        None
        if place.go_on(folder) == place.whole
        else f"call {at}, {place.calls[at - 1]}: another end"
    )


def test_a_full_disk_at_any_call_ends_with_5_and_loses_nothing(
    place: Place, tmp_path: Path
) -> None:
    assert not [
        wrong
        for at in _some(place)
        if (wrong := _fails(place, tmp_path / str(at), at, ENOSPC, stays=True))
    ]


def test_killed_at_any_call_a_run_goes_on_to_the_same_end(place: Place, tmp_path: Path) -> None:
    assert not [wrong for at in _some(place) if (wrong := _dies(place, tmp_path / str(at), at))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "error", "kill"])
def test_every_single_call(place: Place, tmp_path: Path, kind: str) -> None:
    def wrong(at: int) -> str | None:
        if kind == "kill":
            return _dies(place, tmp_path / str(at), at)
        return _fails(
            place, tmp_path / str(at), at, ENOSPC if kind == "full" else EIO, stays=kind == "full"
        )

    assert not list(filter(None, map(wrong, range(1, len(place.calls) + 1))))


def _dies_at_some_moment(place: Place, folder: Path, moment: float) -> bool:
    """Whether it was killed before it had ended."""
    folder.mkdir()
    done = run_command(*place.command(), cwd=folder, preload=place.shim, killed_after=moment)
    assert done.returncode in (0, -signal.SIGALRM), f"after {moment} s: {done.stderr}"
    assert place.go_on(folder) == place.whole, f"after {moment} s"
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("times", [200])
def test_killed_at_random_times_a_run_goes_on_to_the_same_end(
    place: Place, tmp_path: Path, times: int
) -> None:
    moments = random.Random(times).choices(range(1, 1000), k=times)
    died = [
        _dies_at_some_moment(place, tmp_path / str(n), place.seconds * m / 1000)
        for n, m in enumerate(moments)
    ]
    assert sum(died) >= times / 2
