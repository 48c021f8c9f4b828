"""The command line, and pieces of Python, in processes of their own without the seconds that importing torch costs each of them.

A first process, the server, imports what the commands import and forks itself for everything that it is asked for. That runs in
the child as it would in an interpreter of its own: with its own working directory, environment, output and exit code, and nothing
of what it does is left for the next one. All processes of a test run share one server (``tests/conftest.py``).
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# What ``auto`` stands for, given: for tests of other things, which need not try what to choose.
GIVEN = {"head_init": "random", "head_lr": 1e-3, "bn_stats": "batch", "init": "calibrated"}
GIVEN_WORDS = [
    word for name, value in GIVEN.items() for word in (f"--{name.replace('_', '-')}", str(value))
]
# Options of a training that takes a second or two.
ONE_EPOCH = [
    "--model",
    "test_resnet",
    "--no-pretrained",
    "--img-size",
    "32",
    "--batch-size",
    "8",
    "--epochs",
    "1",
    "-j",
    "0",
    *GIVEN_WORDS,
]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# Where the server listens that whoever started this process shares with it.
SHARED = "ARELU_TL_TESTS_SERVER"
_PATIENCE_SECONDS = 300.0

_SERVER = """
import atexit, gc, json, os, select, signal, socket, sys, tempfile, threading, traceback

import matplotlib.backends.backend_agg, matplotlib.backends.backend_svg, matplotlib.pyplot
import timm, torch, torch._dynamo, torchvision
import arelu_tl.cli.app, arelu_tl.cli.study, arelu_tl.experiment.finetune, arelu_tl.experiment.sweep
import arelu_tl.explain.sites.inspection


def live(asked):
    # Whoever started the test run in the background has it, and all that it starts, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # No handler is set for it: the process goes as it does on SIGKILL.
    signal.setitimer(signal.ITIMER_REAL, asked["killed_after"])
    if asked["group"]:
        os.setpgid(0, 0)
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        os.dup2(os.open(os.path.join(asked["told"], name), flags | os.O_CREAT), number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    tempfile.tempdir = None
    sys.argv = ["arelu-tl" if asked["code"] is None else "-c", *asked["arguments"]]
    code = 0
    try:
        if asked["code"] is None:
            arelu_tl.cli.app.main()
        else:
            exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
        code = code if isinstance(code, int) else int(code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # The interpreter's own end takes seconds, in which it takes torch apart.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(connection):
    # A process for each that is asked for: it waits, so that others can be asked for meanwhile.
    with connection.makefile("rw") as line:
        asked = json.loads(line.readline())
        child = os.fork()
        if not child:
            connection.close()
            live(asked)
        print(child, file=line, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            print(code, file=line, flush=True)
        except BrokenPipeError:
            pass


listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
gc.freeze()
waiting = 0
while True:
    # Its standard input ends with whoever started it.
    if sys.stdin.fileno() in select.select([listener, sys.stdin.fileno()], [], [])[0]:
        break
    connection, _ = listener.accept()
    # Buried one by one, so that what they used counts among what this process did.
    while waiting and os.waitpid(-1, os.WNOHANG)[0]:
        waiting -= 1
    waiting += 1
    if not os.fork():
        listener.close()
        try:
            serve(connection)
        finally:
            os._exit(0)
    connection.close()
"""


def run_alone(*arguments: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """``arelu-tl ARGUMENTS`` as a user starts it, in a process that imports everything anew."""
    return subprocess.run(
        [sys.executable, "-m", "arelu_tl", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, **env},
        timeout=_PATIENCE_SECONDS,
    )


class Started:
    """A forked process under way; what it prints is read at its end."""

    def __init__(
        self,
        arguments: list[str],
        cwd: Path,
        env: dict[str, str],
        *,
        code: str | None = None,
        preload: Path | None = None,
        killed_after: float = _PATIENCE_SECONDS,
        group: bool = False,
    ) -> None:
        self.args = arguments
        self._told = Path(tempfile.mkdtemp())
        asked = {
            "arguments": arguments, "cwd": str(cwd), "env": env, "told": str(self._told), "killed_after": killed_after,
            "code": code, "group": group,
        }  # fmt: skip
        self._connection = _connect(_server(preload))
        self._connection.sendall(json.dumps(asked).encode() + b"\n")
        self.pid = int(self._line())

    def _line(self) -> str:
        # Byte by byte: what was read ahead could not be asked for by ``ended``.
        read = b""
        while not read.endswith(b"\n"):
            byte = self._connection.recv(1)
            assert byte, "the server has ended"
            read += byte
        return read.decode()

    def ended(self) -> bool:
        """Whether it has."""
        return bool(select.select([self._connection], [], [], 0)[0])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, seconds: float = _PATIENCE_SECONDS) -> subprocess.CompletedProcess[str]:
        """Wait for its end.

        Raises:
            TimeoutError: it has not ended after so many seconds; it is killed.
        """
        self._connection.settimeout(seconds)
        try:
            code = int(self._line())
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            raise
        finally:
            self._connection.close()
        # As subprocess reads them: text, with a newline whatever ended the line.
        stdout, stderr = ((self._told / name).read_text() for name in ("stdout", "stderr"))
        shutil.rmtree(self._told)
        return subprocess.CompletedProcess(self.args, code, stdout, stderr)


def start_command(*arguments: str | Path, cwd: Path, group: bool = False, **env: str) -> Started:
    """Start ``arelu-tl ARGUMENTS`` in a forked process, with ``group`` in a process group of its own."""
    return Started([*map(str, arguments)], cwd, {**os.environ, **ENVIRONMENT, **env}, group=group)


def run_command(
    *arguments: str | Path,
    cwd: Path,
    preload: Path | None = None,
    killed_after: float = _PATIENCE_SECONDS,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """``arelu-tl ARGUMENTS`` in a forked process, which has torch already; ``preload`` goes in front of the C library.

    It is killed after so many seconds.
    """
    if sys.platform != "linux":  # where a fork may do without the libraries' threads
        return run_alone(*arguments, cwd=cwd, **env)
    words, environment = [*map(str, arguments)], {**os.environ, **ENVIRONMENT, **env}
    return Started(words, cwd, environment, preload=preload, killed_after=killed_after).end(
        killed_after + 60
    )


def start_code(
    code: str, *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Started:
    """Start ``python -c CODE ARGUMENTS`` in a forked process; ``env`` is its whole environment, this process's when None."""
    return Started(
        [*map(str, arguments)],
        cwd or Path.cwd(),
        dict(os.environ if env is None else env),
        code=code,
    )


def run_code(
    code: str, *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -c CODE ARGUMENTS`` in a forked process, for what is not about imports; see ``start_code``."""
    if sys.platform != "linux":
        words = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=env,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    return start_code(code, *arguments, cwd=cwd, env=env).end()


def begin_server(preload: Path | None = None) -> Path:
    """Start a server, which ends with this process; the path of its socket, where it listens in some seconds."""
    place = Path(tempfile.mkdtemp(prefix="arelu-tl-")) / "socket"
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(place)],
        stdin=subprocess.PIPE,
        env={
            **os.environ,
            **ENVIRONMENT,
            **({} if preload is None else {"LD_PRELOAD": str(preload)}),
        },
    )
    atexit.register(shutil.rmtree, place.parent, ignore_errors=True)
    atexit.register(server.communicate)  # whose end of input ends it
    return place


_preloaded: dict[Path, Path] = {}
_beginning = threading.Lock()


def _server(preload: Path | None) -> Path:
    with _beginning:
        if preload is None and SHARED not in os.environ:
            os.environ[SHARED] = str(begin_server())
        elif preload is not None and preload not in _preloaded:
            _preloaded[preload] = begin_server(preload)
    return Path(os.environ[SHARED]) if preload is None else _preloaded[preload]


def _connect(place: Path) -> socket.socket:
    """A connection to the server at ``place``, once it listens."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(place))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
