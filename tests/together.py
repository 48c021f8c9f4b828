"""A function in several real processes that are connected as torchrun connects them, without torchrun's seconds of start-up."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# One process imports torch; those that are asked for are forked from it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["timm", "torch", "arelu_tl.training", "arelu_tl.surgery", "arelu_tl.data"])


def run_together(function: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Any]:
    """What ``function(world, *arguments)`` returns, or the exception that it raises, in each of ``size`` processes.

    None stands for a process that was killed.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        told = [Path(folder) / str(rank) for rank in range(size)]
        free.close()
        processes = [
            _CONTEXT.Process(target=_one, args=(told[rank], rank, size, port, function, arguments)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=60)
        hanging = [process for process in processes if process.exitcode is None]
        for process in hanging:
            process.kill()
        assert not hanging
        return [pickle.loads(path.read_bytes()) if path.exists() else None for path in told]


def _one(told: Path, rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    from arelu_tl.training.distributed import join_world

    torch.set_num_threads(1)
    local = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in local.items()}, MASTER_ADDR="127.0.0.1")
    try:
        with join_world() as world:
            result = function(world, *arguments)
    except Exception as error:  # noqa: BLE001  handed to the test
        result = error
    told.write_bytes(pickle.dumps(result))
