"""The server that the other tests' processes are forked from gives each what an interpreter of its own would."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from commands import run_code, start_code, start_command

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="where a fork may do without the libraries' threads"
)


def test_code_has_its_own_folder_environment_arguments_output_and_exit_code(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ.get('A'), sys.argv); print('bad', file=sys.stderr); sys.exit(7)"
    done = run_code(code, "x y", cwd=tmp_path, env={"A": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (
        7,
        f"{tmp_path} 1 ['-c', 'x y']\n",
        "bad\n",
    )
    assert run_code("print('HOME' in __import__('os').environ)", env={}).stdout == "False\n"


@pytest.mark.parametrize(
    ("code", "exit_code", "last"),
    [("1 / 0", 1, "ZeroDivisionError: division by zero"), ("raise SystemExit('no')", 1, "no"), ("x = 1", 0, ""),
     ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "")],
)  # fmt: skip
def test_every_end_has_the_interpreters_code(code: str, exit_code: int, last: str) -> None:
    done = run_code(code)
    assert done.returncode == exit_code
    assert (done.stderr.splitlines() or [""])[-1] == last


def test_nothing_is_left_for_the_next_one() -> None:
    run_code("import timm, os; timm.left = 1; os.environ['LEFT'] = '1'")
    assert (
        run_code("import timm, os; print(hasattr(timm, 'left'), 'LEFT' in os.environ)").stdout
        == "False False\n"
    )


def test_what_was_started_is_signalled_and_others_are_served_meanwhile(tmp_path: Path) -> None:
    began = tmp_path / "began"
    waiting = start_code(
        "import pathlib, sys, time\ntry:\n    pathlib.Path(sys.argv[1]).touch()\n    time.sleep(60)\nexcept KeyboardInterrupt:\n"
        "    print('stopped')",
        began,
    )
    assert run_code("print(1)").stdout == "1\n"
    while not began.exists():
        time.sleep(0.05)
    assert not waiting.ended()
    waiting.send_signal(signal.SIGINT)
    done = waiting.end(30)
    assert (done.returncode, done.stdout) == (0, "stopped\n")
    grouped = start_command("--version", cwd=tmp_path, group=True)
    assert grouped.end(30).stdout.startswith("arelu-tl ")
    slow = start_code("import time; time.sleep(60)")
    with pytest.raises(TimeoutError):
        slow.end(0.1)
    assert os.getpgid(0) != slow.pid
