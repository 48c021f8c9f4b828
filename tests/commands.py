"""The command line in processes of its own, but without the seconds that importing torch costs each of them.

A first process imports what the commands import and forks itself for every command that it is asked for. The command runs in
that child as it would in a process of its own: with its own working directory, environment, output and exit code, and nothing of
what it does is left for the next one.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

_SERVER = """
import atexit, gc, json, os, signal, sys, threading

import matplotlib.backends.backend_agg, matplotlib.backends.backend_svg, matplotlib.pyplot
import timm, torch, torch._dynamo, torchvision
import arelu_tl.cli.study, arelu_tl.study.finetune, arelu_tl.study.inspection, arelu_tl.study.sweep, arelu_tl.training
from arelu_tl.cli import main

gc.freeze()
print("ready", flush=True)
while line := sys.stdin.readline():
    asked = json.loads(line)
    child = os.fork()
    if not child:
        # No handler is set for it: the process goes as it does on SIGKILL.
        signal.setitimer(signal.ITIMER_REAL, asked["killed_after"])
        for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
            os.dup2(os.open(os.path.join(asked["told"], name), flags | os.O_CREAT), number)
        os.chdir(asked["cwd"])
        os.environ.update(asked["env"])
        sys.argv = ["arelu-tl", *asked["arguments"]]
        try:
            main()
        except SystemExit as end:
            # The interpreter's own end takes seconds, in which it takes torch apart.
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_alone(*arguments: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """``arelu-tl ARGUMENTS`` as a user starts it, in a process that imports everything anew."""
    return subprocess.run(
        [sys.executable, "-m", "arelu_tl", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, **env},
        timeout=300,
    )


def run_command(
    *arguments: str | Path, cwd: Path, preload: Path | None = None, killed_after: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """``arelu-tl ARGUMENTS`` in a forked process, which has torch already; ``preload`` goes in front of the C library.

    It is killed after so many seconds.
    """
    if sys.platform != "linux":  # where a fork may do without the libraries' threads
        return run_alone(*arguments, cwd=cwd, **env)
    server, words = _server(preload), list(map(str, arguments))
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as told:
        asked = {"arguments": words, "cwd": str(cwd), "env": env, "told": told, "killed_after": killed_after}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        # As subprocess reads them: text, with a newline whatever ended the line.
        stdout, stderr = ((Path(told) / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, code, stdout, stderr)


@functools.cache
def _server(preload: Path | None) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT, **({} if preload is None else {"LD_PRELOAD": str(preload)})},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    atexit.register(server.communicate)  # whose end of input ends it
    return server
