"""A process that loads pictures dies: one clear line, and the training goes on from what was saved."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import GIVEN_WORDS, run_command, start_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
RUN = [
    "--model",
    "test_resnet",
    "--no-pretrained",
    *GIVEN_WORDS,
    "--img-size",
    "32",
    "-b",
    "8",
    "--no-baseline",
    "--name",
    "s",
    "--quiet",
]


def test_a_dead_loader_process_is_told_in_one_line_and_costs_no_saved_state(
    make_folder: Any, tmp_path: Path
) -> None:
    running = start_command(
        "finetune", make_folder(), *RUN, "--epochs", "40", "-j", "2", cwd=tmp_path
    )
    run = tmp_path / "runs" / "s" / "arelu-lr0.0001-s0"
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-?*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    done = running.end(120)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "a process that loads pictures has died" in done.stderr
    resumed = run_command("finetune", "--resume", "runs/s", "--quiet", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
