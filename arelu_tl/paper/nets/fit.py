"""The training loop of a stack.

Every net is trained on its seed's batches, step by step, and evaluated at the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from arelu_tl.paper.digits import Pictures
from arelu_tl.paper.nets.activations import Noise
from arelu_tl.paper.nets.net import Stack
from arelu_tl.paper.nets.optimisers import StackedOptimiser

# Test pictures per batch: few enough for a stack's maps to stay in the CPU's cache.
_EVALUATED_AT_ONCE = 125


@dataclass(frozen=True)
class StackEvaluation:
    """The nets' results on the test pictures after ``step`` steps.

    Attributes:
        seconds: time of training and evaluation so far, of the whole stack.
        loss: (N,), in nats.
        correct: bool (N, n).
    """

    step: int
    epoch: float
    seconds: float
    loss: Tensor
    correct: Tensor


@dataclass(frozen=True)
class EpochMeans:
    """Means over the batches of an epoch, as seen in training: loss (N,) and accuracy (N,)."""

    epoch: int
    step: int
    seconds: float
    loss: Tensor
    top1: Tensor


@dataclass(frozen=True)
class StackCurves:
    """The learning curves of a stack.

    Attributes:
        broken: (N,), the step at which a net's loss was first NaN or infinite, in training or at an
            evaluation; -1 for never.
    """

    evaluations: list[StackEvaluation]
    epochs: list[EpochMeans]
    broken: Tensor
    seconds: float


def train_stack(
    stack: Stack,
    optimiser: StackedOptimiser,
    train: Pictures,
    test: Pictures,
    orders: Sequence[Sequence[Sequence[Tensor]]],
    *,
    seeds: Sequence[int],
    evaluate_at: Collection[int],
    stopped: Callable[[], bool] = lambda: False,
    advanced: Callable[[int], None] = lambda steps: None,
) -> StackCurves | None:
    """Train ``stack`` through ``orders``; its nets are in S equal blocks, one per seed.

    A net with NaN or infinite values is trained on, and does not affect the others.

    Args:
        stack: the nets.
        optimiser: their optimiser.
        train, test: the pictures.
        orders: for each of the S seeds its epochs' batches, as from ``batch_order``.
        seeds: S seeds of the random numbers that nets use in training.
        evaluate_at: steps after which to evaluate on the test pictures; 0 is before the first.
        stopped: called before each step; returns True to stop.
        advanced: called with the number of steps that every net has made since its last call.

    Returns:
        None if stopped.
    """
    device = next(iter(stack.parameters.values())).device
    evaluations, means = [], []
    broken = torch.full((stack.nets,), -1, device=device)
    began, step = time.monotonic(), 0
    epochs = list(zip(*orders, strict=True))

    def evaluated(epoch: float) -> None:
        results = evaluate_stack(stack, test)
        broken.copy_(_marked(broken, results[0], step))
        loss, correct = (each.cpu() for each in results)
        evaluations.append(StackEvaluation(step, epoch, time.monotonic() - began, loss, correct))

    if 0 in evaluate_at:
        evaluated(0.0)
    for number, of_seeds in enumerate(epochs):
        sums = torch.zeros(2, stack.nets, device=device)
        steps = list(zip(*of_seeds, strict=True))
        for within, batches in enumerate(steps, start=1):
            if stopped():
                return None
            images = torch.stack([train.batch(chosen) for chosen in batches]).to(device)
            labels = _to_each_net(
                torch.stack([train.labels[chosen] for chosen in batches]).to(device), stack.nets
            )
            logits = stack(images, make_noise(seeds, step, stack.nets, device))
            losses = net_losses(logits, labels)
            gradients = torch.autograd.grad(losses.sum(), list(stack.parameters.values()))
            optimiser.step(dict(zip(stack.parameters, gradients, strict=True)))
            step += 1
            losses = losses.detach()
            broken = _marked(broken, losses, step)
            sums += torch.stack([losses, (logits.detach().argmax(-1) == labels).float().mean(1)])
            advanced(1)
            if step in evaluate_at:
                evaluated(number + within / len(steps))
        loss, top1 = (sums / len(steps)).cpu()
        means.append(EpochMeans(number + 1, step, time.monotonic() - began, loss, top1))
    return StackCurves(evaluations, means, broken.cpu(), time.monotonic() - began)


@torch.no_grad()
def evaluate_stack(stack: Stack, test: Pictures) -> tuple[Tensor, Tensor]:
    """Evaluate all nets on ``test``.

    Returns:
        (mean loss (N,), whether each picture is classified correctly (N, n)).
    """
    device = next(iter(stack.parameters.values())).device
    losses, correct = torch.zeros(stack.nets, device=device), []
    for chosen in torch.split(torch.arange(len(test)), _EVALUATED_AT_ONCE):
        logits = stack(test.batch(chosen)[None].to(device))
        labels = test.labels[chosen].to(device).expand(stack.nets, -1)
        losses += net_losses(logits, labels) * len(chosen)
        correct.append(logits.argmax(-1) == labels)
    return losses / len(test), torch.cat(correct, 1)


def net_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy (N,) of each net, from logits (N, B, 10) and labels (N, B)."""
    return (
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        .view(labels.shape)
        .mean(1)
    )


def make_noise(seeds: Sequence[int], step: int, nets: int, device: torch.device) -> Noise:
    """Make the random numbers of one step.

    They are the same for all nets of a seed, whatever else is in the stack.
    """
    # No two pairs of seed and step may give the same number.
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + step) for seed in seeds]

    def noise(shape: tuple[int, ...]) -> Tensor:
        drawn = torch.stack(
            [torch.rand(shape[1:], generator=generator) for generator in generators]
        )
        return _to_each_net(drawn.to(device), nets)

    return noise


def _to_each_net(of_seeds: Tensor, nets: int) -> Tensor:
    """Expand (S, ...) to (N, ...)."""
    return of_seeds.repeat_interleave(nets // len(of_seeds), 0)


def _marked(broken: Tensor, losses: Tensor, step: int) -> Tensor:
    return torch.where((broken < 0) & ~losses.isfinite(), step, broken)
