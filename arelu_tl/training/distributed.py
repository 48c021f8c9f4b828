"""Several processes that train one model: their ranks, their communication, and how they end.

torchrun starts them and sets RANK, WORLD_SIZE and LOCAL_RANK. Each computes its slice of every
batch; the gradients are averaged once a step, so that all take the same step. Control messages use
gloo on the CPU, even if the gradients are on GPUs (NCCL): gloo detects a dead process before
anything waits on a GPU.

torch's DistributedDataParallel is not used. Resuming would be bitwise reproducible with it too: in
the mode for models whose forward pass may skip layers (find_unused_parameters) its buckets never
change. But it exchanges gradients during the backward pass, so a process that runs out of memory
there could not repeat the step in parts: the others already have some of its gradients and wait for
the rest. Our exchange is slower: a step with DistributedDataParallel took 0.80 to 0.85 of the time
(``benchmarks/ddp_exchange.py``: resnet50, gloo, two processes on two busy cores; medians of 12 and
15 pairs, single pairs 0.5 to 1.3).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from arelu_tl.errors import ConfigError, PeerError

_T = TypeVar("_T")

# A dead process is detected at once. This timeout is for one that hangs, and must exceed every
# regular wait, such as the check of all pictures by rank 0.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """The processes that train together, from the view of one; by default a single process.

    All ranks must call every method (except properties) in the same order.

    Attributes:
        rank: number of this process; only rank 0 writes files and messages.
        size: number of processes.
        local_rank, local_size: the same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum ``values`` over all processes, in place, and return them."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(values)
        return values

    def highest(self, value: int) -> int:
        """Return the largest value of all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor([value])
        with _peers():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all processes, in order of rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            with _peers():
                dist.all_gather_object(values, value)
        return values

    def lead(self, make: Callable[[], _T]) -> _T:
        """Call ``make`` on rank 0, and return its result on all ranks; if it fails, all end."""
        if self.size == 1:
            return make()
        values: list[Any] = [make() if self.leads else None]
        with _peers():
            dist.broadcast_object_list(values)
        value: _T = values[0]
        return value

    def share_weights(self, tensors: Iterable[Tensor]) -> None:
        """Copy the ``tensors`` of rank 0 to all ranks, in place."""
        if self.size > 1:
            with _peers():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, with one exchange per dtype.

        The tensors are concatenated in the given order, so that equal values always have bitwise
        equal means, whatever was exchanged before.
        """
        if self.size == 1:
            return
        for _, group in groupby(sorted(tensors, key=lambda t: str(t.dtype)), key=lambda t: t.dtype):
            same = list(group)
            flat = self.sum(torch.cat([t.detach().flatten() for t in same])).div_(self.size)
            parts = torch.split(flat, [t.numel() for t in same])
            torch._foreach_copy_(
                [t.detach() for t in same],
                [p.view(t.shape) for p, t in zip(parts, same, strict=True)],
            )


ALONE = World()


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the failure of an exchange into a PeerError."""
    try:
        yield
    except RuntimeError as error:
        raise PeerError("another process of this training has ended or does not answer") from error


@contextmanager
def join_world() -> Iterator[World]:
    """Connect the processes that torchrun has started, until the context ends.

    Without torchrun, or with a single process, the world is ``ALONE``.

    Raises:
        ConfigError: the other processes cannot be found.
        PeerError: another process ended inside the context.
    """
    if not is_one_of_many():
        yield ALONE
        return
    try:
        local = {
            name: int(os.environ.get(name, default))
            for name, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
        }
        backend = (
            "cpu:gloo,cuda:nccl"
            if torch.cuda.is_available() and dist.is_nccl_available()
            else "gloo"
        )
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        found = " ".join(f"{name}={os.environ.get(name)}" for name in _NAMES)
        raise ConfigError(
            f"the processes of this training do not find each other ({found}): start them with "
            "torchrun"
        ) from error
    world = World(
        dist.get_rank(), dist.get_world_size(), local["LOCAL_RANK"], local["LOCAL_WORLD_SIZE"]
    )
    try:
        yield world
    except BaseException as error:
        # Claim the report before the others notice: the process with the original error reports it.
        speaks_first(
            int(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))
        )
        raise
    finally:
        dist.destroy_process_group()


_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_one_of_many() -> bool:
    """Return whether torchrun, or an equivalent, has started this process as one of several."""
    return all(name in os.environ for name in _NAMES) and os.environ["WORLD_SIZE"] != "1"


def leads_here() -> bool:
    """Return whether this process is the only one or rank 0, even before they are connected."""
    return not is_one_of_many() or os.environ["RANK"] == "0"


_answer: tuple[bool, int] | None = None


def speaks_first(code: int) -> tuple[bool, int]:
    """Determine whether this process is the first of its world to end with an error.

    Only the first process reports the error and the others exit with its code, so that an error is
    shown in one line however many processes have it.

    Args:
        code: exit code of this process's error.

    Returns:
        (whether this process is the first, exit code of the first).
    """
    global _answer
    if _answer is None:
        _answer = _ask(code)
    return _answer


def _ask(code: int) -> tuple[bool, int]:
    rank = os.environ["RANK"]
    try:
        store = (
            dist.distributed_c10d._get_default_store() if dist.is_initialized() else _agent_store()
        )
        if store is None:  # started without torchrun, and not connected yet
            return rank == "0", code
        key = f"arelu-tl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/end"
        first, its_code = store.compare_set(key, "", f"{rank} {code}").decode().split()
    except (RuntimeError, ValueError):  # the process that hosts the store has ended
        return True, code
    if first == rank and threading.current_thread() is threading.main_thread():
        # torchrun sends this signal to the others as soon as one process has exited; it must not
        # interrupt the report of the error.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return first == rank, int(its_code)


def _agent_store() -> Any:
    """Return torchrun's own store, which outlives its processes; None without torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=10),
    )
