"""What the exchange of gradients costs where several processes train one net: ours, one for all of them after the backward pass,
against DistributedDataParallel's, bucket by bucket while it runs.

    make bench            (or: python benchmarks/ddp_exchange.py --rounds 15)

Two processes of one thread each, gloo. Each takes steps of both kinds in turns, on nets that begin alike; a step is everything
that training does in one, the mean of BatchNorm's statistics included, which DistributedDataParallel leaves to its user.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tables import Rows, machine, markdown, spread
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training_step import batch_of, net

from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.training.distributed import ALONE, World, join_world
from arelu_tl.training.optimisation import make_optimizer
from arelu_tl.training.step import Batch, Step, StepSettings

Cases = list[tuple[str, int, int]]
CASES: Cases = [("resnet18", 96, 8), ("resnet50", 96, 8)]
_CPU = torch.device("cpu")
_SIZE = 2


def ours(name: str, world: World, batch: Batch) -> Callable[[], None]:
    """A step as ``fit`` takes it."""
    model = net(name, arelu=True, device=_CPU)
    step = Step(
        model,
        make_optimizer(model, [], OptimizerSettings(opt="adamw", lr=1e-5)),
        StepSettings(),
        _CPU,
        world=world,
    )
    step.train_mode()

    def take() -> None:
        step.gradients([batch], 0)
        step.update()

    return take


def theirs(name: str, world: World, batch: Batch) -> Callable[[], None]:
    """The same by DistributedDataParallel, as a net needs it of which a forward pass may leave out layers."""
    model = net(name, arelu=True, device=_CPU)
    wrapped = DistributedDataParallel(
        model, find_unused_parameters=True, forward_sync_buffers=False
    )
    step = Step(
        wrapped,
        make_optimizer(model, [], OptimizerSettings(opt="adamw", lr=1e-5)),
        StepSettings(),
        _CPU,
        world=ALONE,
    )
    step.train_mode()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    learnt = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]

    def take() -> None:
        told = step.gradients([batch], 0)
        world.sum(torch.tensor(told, dtype=torch.float64))
        world.average(learnt)
        step.update()

    return take


def _seconds(take: Callable[[], None]) -> float:
    """From when both processes are ready until both are done."""
    dist.barrier()
    started = time.perf_counter()
    take()
    dist.barrier()
    return time.perf_counter() - started


def _measure(rank: int, port: int, cases: Cases, rounds: int, told: Any) -> None:
    names = {
        "RANK": rank,
        "WORLD_SIZE": _SIZE,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": _SIZE,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    with join_world() as world:
        for name, size, pictures in cases:
            batch = batch_of(size, pictures)
            steps = ours(name, world, batch), theirs(name, world, batch)
            gradients = [
                torch.zeros_like(p) for p in net(name, arelu=True, device=_CPU).parameters()
            ]
            taken = []
            for number in range(
                rounds + 2
            ):  # two to warm up: DistributedDataParallel would arrange its buckets after the first
                order = (0, 1) if number % 2 == 0 else (1, 0)
                found = {which: _seconds(steps[which]) for which in order}
                taken.append(
                    (found[0], found[1], _seconds(lambda given=gradients: world.average(given)))
                )  # type: ignore[misc]
            if world.leads:
                told.put((name, size, pictures, taken[2:]))


def rows(rounds: int = 15, cases: Cases = CASES) -> Rows:
    """A row for each backbone: their step's seconds over ours."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = context.Queue()
    processes = [
        context.Process(target=_measure, args=(rank, port, cases, rounds, told))
        for rank in range(_SIZE)
    ]
    for process in processes:
        process.start()
    found = []
    for _ in cases:
        name, size, pictures, taken = told.get(timeout=3600)
        row = {"backbone": name, "input": size, "batch of each": pictures}
        row |= {"a step, s": round(statistics.median(each[0] for each in taken), 3)}
        row |= {"its exchange alone, s": round(statistics.median(each[2] for each in taken), 3)}
        # Of a machine that has other work the quickest steps are those that were let alone.
        row |= {
            "quickest": round(min(each[1] for each in taken) / min(each[0] for each in taken), 2)
        }
        found.append(
            {**row, "compared": "DDP / ours", **spread([each[1] / each[0] for each in taken])}
        )
    for process in processes:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()), "\n")
    print(markdown(rows(given.rounds)))


if __name__ == "__main__":
    main()
