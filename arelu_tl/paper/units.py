"""The units that ``reproduce`` trains at once.

A unit is the nets of one activation and one optimiser, over rates and seeds, with their batches.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arelu_tl.paper.config import ReproduceConfig
from arelu_tl.paper.digits import DigitSet, batch_order
from arelu_tl.paper.nets.fit import StackCurves, train_stack
from arelu_tl.paper.nets.net import Stack, initial_weights
from arelu_tl.paper.nets.optimisers import OPTIMISERS

# Number of MNIST's training pictures, which the paper's first epoch goes through.
PAPERS_EPOCH = 60_000
# Maximum number of nets in a stack: with more, their maps leave the CPU's cache; with fewer, the
# overhead of calls dominates.
_MOST_NETS = 8
# As the paper's code trains before a transfer.
PRETRAIN_OPT, PRETRAIN_LR = "sgd", 1e-2


@dataclass(frozen=True)
class Task:
    """One study of runs that are compared with each other.

    Attributes:
        folder: its name within the reproduction's folder.
        opt: sgd or adam.
        target: the set for training and evaluation.
        source: the set that the nets were trained on before; None for new nets.
    """

    folder: str
    opt: str
    target: DigitSet
    source: DigitSet | None = None


@dataclass(frozen=True)
class Unit:
    """A stack: every seed with every rate."""

    task: Task
    activation: str
    seeds: tuple[int, ...]
    lrs: tuple[float, ...]

    @property
    def nets(self) -> list[tuple[float, int]]:
        """(rate, seed) of each net, seed by seed."""
        return [(lr, seed) for seed in self.seeds for lr in self.lrs]


@dataclass(frozen=True)
class Outcome:
    """The result of a unit.

    Attributes:
        orders: for each seed, the digests of its epochs' batches.
        heads: for each seed, the digest of its initial weights.
        pictures: number of pictures that each net was trained on, repetitions included.
        lost: seeds whose training before a transfer ended with NaN or infinite values.
    """

    unit: Unit
    curves: StackCurves
    orders: dict[int, list[dict[str, str]]]
    heads: dict[int, str]
    pictures: int
    lost: frozenset[int]


def steps_per_epoch(config: ReproduceConfig, digits: DigitSet) -> int:
    """Return the number of steps in an epoch.

    For a whole set it is that of one pass; for the small offline sets, that of an epoch of MNIST.
    """
    return -(-(len(digits.train) if digits.whole else PAPERS_EPOCH) // config.batch_size)


def plan_units(
    config: ReproduceConfig, tasks: Sequence[Task], done: Collection[tuple[str, str, float, int]]
) -> list[Unit]:
    """Plan what is left to train, the activations of a task and its seeds one after the other.

    Args:
        config: the configuration.
        tasks: the studies.
        done: (folder, activation, rate, seed) of runs that have ended.
    """
    units = []
    for task in tasks:
        stacks: dict[tuple[int, ...], list[Unit]] = defaultdict(list)
        for activation in config.activations:
            missing: dict[tuple[float, ...], list[int]] = defaultdict(list)
            for seed in config.seeds:
                rates = tuple(
                    lr for lr in config.lrs if (task.folder, activation, lr, seed) not in done
                )
                if rates:
                    missing[rates].append(seed)
            for rates, seeds in missing.items():
                at_once = max(1, _MOST_NETS // len(rates))
                for start in range(0, len(seeds), at_once):
                    chosen = tuple(seeds[start : start + at_once])
                    stacks[chosen].append(Unit(task, activation, chosen, rates))
        units += [unit for seeds in sorted(stacks) for unit in stacks[seeds]]
    return units


def net_steps(config: ReproduceConfig, unit: Unit) -> int:
    """Return the number of training steps of single nets in ``unit``.

    Those before a transfer are included.
    """
    steps = config.epochs * steps_per_epoch(config, unit.task.target) * len(unit.nets)
    source = unit.task.source
    return (
        steps
        if source is None
        else steps + config.pretrain_epochs * steps_per_epoch(config, source) * len(unit.seeds)
    )


def train_unit(
    config: ReproduceConfig,
    unit: Unit,
    device: torch.device,
    *,
    stopped: Callable[[], bool],
    advanced: Callable[[int], None],
) -> Outcome | None:
    """Train every net of ``unit``; return None if stopped.

    Args:
        config: the configuration.
        unit: the nets to train.
        device: where to train.
        stopped: returns True to stop; called before each step.
        advanced: called with the number of steps of single nets since its last call.
    """
    target, source = unit.task.target, unit.task.source
    weights = {seed: initial_weights(seed, target.channels) for seed in unit.seeds}
    heads = {seed: _digest(weights[seed].values()) for seed in unit.seeds}
    lost: frozenset[int] = frozenset()
    if source is not None:
        stack = Stack(unit.activation, [weights[seed] for seed in unit.seeds], device)
        trained = train_stack(
            stack,
            OPTIMISERS[PRETRAIN_OPT](stack.parameters, torch.full((stack.nets,), PRETRAIN_LR)),
            source.train,
            source.test,
            [_order(config, source, seed, config.pretrain_epochs) for seed in unit.seeds],
            seeds=unit.seeds,
            evaluate_at=(),
            stopped=stopped,
            advanced=lambda steps: advanced(steps * len(unit.seeds)),
        )
        if trained is None:
            return None
        weights = {seed: stack.weights_of(number) for number, seed in enumerate(unit.seeds)}
        lost = frozenset(
            seed
            for seed, step in zip(unit.seeds, trained.broken.tolist(), strict=True)
            if step >= 0
        )
    stack = Stack(unit.activation, [weights[seed] for _, seed in unit.nets], device)
    orders = [_order(config, target, seed, config.epochs) for seed in unit.seeds]
    curves = train_stack(
        stack,
        OPTIMISERS[unit.task.opt](stack.parameters, torch.tensor([lr for lr, _ in unit.nets])),
        target.train,
        target.test,
        orders,
        seeds=unit.seeds,
        evaluate_at=evaluation_steps(config, target),
        stopped=stopped,
        advanced=lambda steps: advanced(steps * stack.nets),
    )
    if curves is None:
        return None
    digests = {
        seed: [
            {"order": _digest(epoch), "first_batch": _digest([target.train.batch(epoch[0])])}
            for epoch in order
        ]
        for seed, order in zip(unit.seeds, orders, strict=True)
    }
    return Outcome(
        unit,
        curves,
        digests,
        heads,
        sum(len(batch) for epoch in orders[0] for batch in epoch),
        lost,
    )


def evaluation_steps(config: ReproduceConfig, digits: DigitSet) -> set[int]:
    """Return the steps to evaluate at: 0, at regular intervals, and at each epoch's end."""
    epoch = steps_per_epoch(config, digits)
    every = config.eval_every or -(-epoch // 10)
    total = config.epochs * epoch
    return {0, *range(every, total + 1, every), *range(epoch, total + 1, epoch)}


def _order(config: ReproduceConfig, digits: DigitSet, seed: int, epochs: int) -> list[list[Tensor]]:
    steps = None if digits.whole else steps_per_epoch(config, digits)
    return batch_order(len(digits.train), config.batch_size, epochs=epochs, steps=steps, seed=seed)


def _digest(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
