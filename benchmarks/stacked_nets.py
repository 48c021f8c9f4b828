"""What stacking saves: a training step of eight of the paper's small nets at once, against torch's modules one after the other.

    make bench            (or: python benchmarks/stacked_nets.py --rounds 9)

Both take the same steps on the same batches, in turns, in one process with one thread, as ``reproduce`` has one on each
processor. The modules run in the faster of torch's two layouts, channels side by side.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from tables import Rows, machine, markdown, spread
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.paper.nets import convolution
from arelu_tl.paper.nets.fit import make_noise, net_losses
from arelu_tl.paper.nets.net import BLOCKS, Stack, initial_weights
from arelu_tl.paper.nets.optimisers import OPTIMISERS

NETS, BATCH = 8, 128
ACTIVATIONS = ("relu", "arelu", "gelu", "pau")


def stacked(name: str, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A step of all nets together."""
    stack = Stack(name, [initial_weights(seed, 1) for seed in range(NETS)], images.device)
    optimiser = OPTIMISERS["sgd"](stack.parameters, torch.full((NETS,), 1e-3))

    def step() -> None:
        logits = stack(images[None], make_noise([0], 0, NETS, images.device))
        losses = net_losses(logits, labels.expand(NETS, -1))
        gradients = torch.autograd.grad(losses.sum(), list(stack.parameters.values()))
        optimiser.step(dict(zip(stack.parameters, gradients, strict=True)))

    return step


def one_by_one(name: str, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A step of each net."""
    nets = []
    for _ in range(NETS):
        layers: list[nn.Module] = []
        before = 1
        for after, kernel in BLOCKS:
            layers += [nn.Conv2d(before, after, kernel), nn.MaxPool2d(2), CATALOGUE[name].make()]
            before = after
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, 10)).to(
            memory_format=torch.channels_last
        )
        nets.append((net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)))
    seen = images.permute(0, 3, 1, 2)

    def step() -> None:
        for net, optimiser in nets:
            optimiser.zero_grad()
            F.cross_entropy(net(seen), labels).backward()
            optimiser.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def rows(rounds: int = 7) -> Rows:
    """A row for each activation: one by one over stacked."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images, labels = (
        torch.rand((BATCH, 28, 28, 1), generator=generator),
        torch.randint(0, 10, (BATCH,), generator=generator),
    )
    told = []
    for name in ACTIVATIONS:
        ways = stacked(name, images, labels), one_by_one(name, images, labels)
        measured = [[seconds(way) for way in ways] for _ in range(rounds + 1)][1:]
        ours = sorted(1e3 * each[0] / NETS for each in measured)
        row = {
            "activation": name,
            "nets": NETS,
            "stacked, ms a net": round(ours[len(ours) // 2], 2),
        }
        told.append({**row, **spread([theirs / mine for mine, theirs in measured])})
    torch.set_num_threads(before)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"convolution: {convolution.kernel_state()}\n")
    print(markdown(rows(given.rounds)))


if __name__ == "__main__":
    main()
