"""Several processes that train one model: who they are, what they tell each other, and how they end together.

torchrun starts them and names them by RANK, WORLD_SIZE and LOCAL_RANK. Each computes its slice of every batch; the gradients
are averaged once a step, so that all take the same step. What is said about the training goes over the processors (gloo), also
where the gradients lie on GPUs (NCCL): a process that has died is noticed there, before anything waits on a GPU.

torch's DistributedDataParallel is not used, although a run would resume to the bit with it too: as a net needs it of which a pass
may leave out layers (find_unused_parameters), its buckets stay as they were built. It exchanges gradients while the backward pass
runs, so that a process that runs out of memory in that pass could not begin it again in parts: the others have what it has sent,
and wait for the rest. That costs time: with it a step took 0.80 to 0.85 of ours (``benchmarks/ddp_exchange.py``: resnet50, gloo,
two processes on two busy cores; medians of 12 and 15 pairs, single ones 0.5 to 1.3).
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

# A process that is dead is noticed at once. This is for one that hangs, and must outlast whatever the others wait for: the check
# of all pictures by the first one, say.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees them; alone unless told otherwise.

    Every method but the properties is called by all of them, in the same order.

    Attributes:
        rank: this one's number; 0 leads: it alone writes and speaks.
        size: how many there are.
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
        """``values``, each the sum of all processes', in place."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(values)
        return values

    def highest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        told = torch.tensor([value])
        with _peers():
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told)

    def gather(self, value: _T) -> list[_T]:
        """Every process's value, in order of rank."""
        told: list[Any] = [value] * self.size
        if self.size > 1:
            with _peers():
                dist.all_gather_object(told, value)
        return told

    def lead(self, make: Callable[[], _T]) -> _T:
        """What ``make`` returns in the first process, in all of them. Where it fails there, the others end too."""
        if self.size == 1:
            return make()
        told: list[Any] = [make() if self.leads else None]
        with _peers():
            dist.broadcast_object_list(told)
        value: _T = told[0]
        return value

    def share_weights(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's ``tensors``, in place."""
        if self.size > 1:
            with _peers():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean of all processes' in place of each tensor; one exchange for each type of number.

        All are laid end to end in the order given, so that equal numbers have equal means to the last bit, whatever came before.
        """
        if self.size == 1:
            return
        for _, group in groupby(sorted(tensors, key=lambda t: str(t.dtype)), key=lambda t: t.dtype):
            same = list(group)
            flat = self.sum(torch.cat([t.detach().flatten() for t in same])).div_(self.size)
            parts = torch.split(flat, [t.numel() for t in same])
            torch._foreach_copy_([t.detach() for t in same], [p.view(t.shape) for p, t in zip(parts, same, strict=True)])


ALONE = World()


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the failure of an exchange into the error that says what it means."""
    try:
        yield
    except RuntimeError as error:
        raise PeerError("another process of this training has ended or does not answer") from error


@contextmanager
def join_world() -> Iterator[World]:
    """The processes that torchrun has started, connected for the block; ``ALONE`` where it has not, or only one.

    Raises:
        ConfigError: the others cannot be found.
        PeerError: another one ended during the block.
    """
    if not is_one_of_many():
        yield ALONE
        return
    try:
        local = {name: int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))}
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        found = " ".join(f"{name}={os.environ.get(name)}" for name in _NAMES)
        raise ConfigError(f"the processes of this training do not find each other ({found}): start them with torchrun") from error
    world = World(dist.get_rank(), dist.get_world_size(), local["LOCAL_RANK"], local["LOCAL_WORLD_SIZE"])
    try:
        yield world
    except BaseException as error:
        # Before the others notice: the reason is told by the one that has it.
        speaks_first(int(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)))
        raise
    finally:
        dist.destroy_process_group()


_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_one_of_many() -> bool:
    """Whether torchrun, or who does as it does, has started this process as one of several."""
    return all(name in os.environ for name in _NAMES) and os.environ["WORLD_SIZE"] != "1"


def leads_here() -> bool:
    """Whether this process is the only one or the first one, also before they are connected."""
    return not is_one_of_many() or os.environ["RANK"] == "0"


_told: tuple[bool, int] | None = None


def speaks_first(code: int) -> tuple[bool, int]:
    """Whether this process is the first of those that train together to end with an error, and the first one's exit code.

    One error so becomes one line, whichever processes meet it: the first one says it, the others end as it did.
    """
    global _told
    if _told is None:
        _told = _ask(code)
    return _told


def _ask(code: int) -> tuple[bool, int]:
    rank = os.environ["RANK"]
    try:
        store = dist.distributed_c10d._get_default_store() if dist.is_initialized() else _agent_store()
        if store is None:  # started by hand, and not connected yet
            return rank == "0", code
        key = f"arelu-tl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/end"
        first, its_code = store.compare_set(key, "", f"{rank} {code}").decode().split()
    except (RuntimeError, ValueError):  # whoever keeps the answer has gone
        return True, code
    if first == rank and threading.current_thread() is threading.main_thread():
        # torchrun ends the others as soon as one has gone, with this signal: they shall not be cut short in saying why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return first == rank, int(its_code)


def _agent_store() -> Any:
    """torchrun's own store, which outlives all of its processes; None where somebody else has started them."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=10)
    )
