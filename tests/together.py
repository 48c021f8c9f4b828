"""A function in several real processes that are connected as torchrun connects them, without torchrun's seconds of start-up."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from commands import run_code


def run_together(function: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """What ``function(world, *arguments)`` returns, or the exception that it raises, in each of ``size`` processes.

    None stands for a process that was killed.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(size) as pool:
        asked = Path(folder) / "asked"
        asked.write_bytes(pickle.dumps((function, arguments)))
        code = f"import sys; sys.path[:] = {sys.path!r}; from together import answer; answer(sys.argv[1])"
        done = pool.map(lambda env: run_code(code, asked, env={**os.environ, **env}), worlds(size))
        errors = [each.stderr for each in done if each.returncode not in (0, -9)]
        assert not errors, errors
        told = [asked.with_name(str(rank)) for rank in range(size)]
        return [pickle.loads(path.read_bytes()) if path.exists() else None for path in told]


def worlds(size: int) -> list[dict[str, str]]:
    """The environment that torchrun would give to each of ``size`` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free.getsockname()[1],
        }
    return [
        {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(size)
    ]


def answer(asked: str) -> None:
    """Of one of the processes: do what ``asked`` holds, and leave beside it what came of it."""
    from arelu_tl.training.distributed import join_world

    torch.set_num_threads(1)
    function, arguments = pickle.loads(Path(asked).read_bytes())
    try:
        with join_world() as world:
            result = function(world, *arguments)
    except Exception as error:  # noqa: BLE001  handed to the test
        result = error
    Path(asked).with_name(os.environ["RANK"]).write_bytes(pickle.dumps(result))
