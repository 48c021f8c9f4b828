"""What one activation costs: AReLU fused and portable, the official formula and PReLU against ReLU, in turns in one process.

    python benchmarks/activation_cost.py [--rounds 25]

Each runs forward and backward on a float32 map (32, 64, 56, 56) that the operator before it has just written, as in a net, with
one thread and with as many as torch takes, and on the GPU where there is one. A ratio is a round's time over in-place ReLU's in
the same round; the copy that stands for the operator before is in neither. Maps kept are what the forward pass holds for the
backward pass beside the output, which the next layer keeps anyway: of in-place ReLU, nothing.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.activation import fused, gpu
from arelu_tl.activation.arelu import AReLU

SHAPE = (32, 64, 56, 56)
UNIT = "ReLU, in place"
# Rounds that nobody counts: kernels are built, memory is fetched.
_WARM_UP = 2


class Official(nn.Module):
    """The formula of the authors' code."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.tensor([0.9])), nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = torch.clamp(self.alpha, min=0.01, max=0.99), 1 + torch.sigmoid(self.beta)
        return F.relu(x) * beta - F.relu(-x) * alpha


@dataclass(frozen=True)
class Candidate:
    """A module to be timed, and whether the kernels are to be left aside."""

    module: nn.Module
    portable: bool = False


def candidates(device: torch.device) -> dict[str, Candidate]:
    """{name in the table: candidate}, the unit first."""
    channels = SHAPE[1]
    found = {
        UNIT: Candidate(nn.ReLU(inplace=True)),
        "ReLU": Candidate(nn.ReLU()),
        "AReLU, in place": Candidate(AReLU(inplace=True)),
        "AReLU": Candidate(AReLU()),
        "AReLU a channel, in place": Candidate(AReLU(num_parameters=channels, inplace=True)),
        "AReLU, portable, in place": Candidate(AReLU(inplace=True), portable=True),
        "AReLU, portable": Candidate(AReLU(), portable=True),
        "the official formula": Candidate(Official()),
        "PReLU": Candidate(nn.PReLU()),
    }
    for candidate in found.values():
        candidate.module.to(device)
    return found


@contextmanager
def without_kernels(yes: bool) -> Iterator[None]:
    """AReLU of ATen's operators, forward and backward, whether or not there is a kernel."""
    before = fused.serves, gpu.serves
    if yes:
        fused.serves = gpu.serves = lambda *_: False  # type: ignore[assignment]
    try:
        yield
    finally:
        fused.serves, gpu.serves = before


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(candidate: Candidate, x: Tensor, grad: Tensor) -> tuple[float, float]:
    """(forward, forward and backward)."""
    leaf = x.detach().requires_grad_()
    written = leaf.clone()
    with without_kernels(candidate.portable):
        start = now(x.device)
        y = candidate.module(written)
        between = now(x.device)
        y.backward(grad)
        end = now(x.device)
    return between - start, end - start


def kept(candidate: Candidate, x: Tensor) -> float:
    """Maps that the backward pass needs and that the output, which the next layer keeps anyway, is not."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    written = x.detach().requires_grad_().clone()
    with (
        without_kernels(candidate.portable),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        y = candidate.module(written)
    storages.pop(y.untyped_storage().data_ptr(), None)
    return sum(storages.values()) / (x.numel() * x.element_size())


def rows(rounds: int) -> list[dict[str, Any]]:
    """One a candidate and number of threads (or GPU): medians and spread of the ratios to in-place ReLU, and what is kept."""
    found = []
    before = torch.get_num_threads()
    for threads in sorted({1, before}):
        torch.set_num_threads(threads)
        found += _rows(torch.device("cpu"), f"{threads} thread{'s' * (threads > 1)}", rounds)
    torch.set_num_threads(before)
    if torch.cuda.is_available():
        found += _rows(torch.device("cuda"), torch.cuda.get_device_name(), rounds)
    return found


def _rows(device: torch.device, place: str, rounds: int) -> list[dict[str, Any]]:
    stream = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(SHAPE, generator=stream).to(device) for _ in range(2))
    tried = candidates(device)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in tried}
    for _ in range(rounds + _WARM_UP):
        for name, candidate in tried.items():
            taken[name].append(seconds(candidate, x, grad))
    found = []
    for name, candidate in tried.items():
        pairs = list(zip(taken[name][_WARM_UP:], taken[UNIT][_WARM_UP:], strict=True))
        row: dict[str, Any] = {"activation": name, "place": place}
        for part, key in enumerate(("forward", "forward_backward")):
            ratios = [ours[part] / unit[part] for ours, unit in pairs]
            row |= {
                key: statistics.median(ratios),
                f"{key}_least": min(ratios),
                f"{key}_greatest": max(ratios),
            }
        row["milliseconds"] = 1000 * statistics.median(both for _, both in taken[name][_WARM_UP:])
        row["maps_kept"] = kept(candidate, x)
        found.append(row)
    return found


def description() -> str:
    """The machine and what AReLU runs on it."""
    states = [f"AReLU on the processor: {fused.kernel_state()}"]
    if torch.cuda.is_available():
        states.append(f"on the GPU: {gpu.kernel_state(torch.device('cuda'))}")
    return f"torch {torch.__version__}, {platform.machine()}, {', '.join(states)}"


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| activation | on | forward | forward + backward | least .. greatest | median, ms | maps kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        spread = f"{row['forward_backward_least']:.2f} .. {row['forward_backward_greatest']:.2f}"
        lines.append(
            f"| {row['activation']} | {row['place']} | {row['forward']:.2f} | {row['forward_backward']:.2f} | {spread} "
            f"| {row['milliseconds']:.2f} | {row['maps_kept']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    print(f"{description()}, {rounds} rounds\n\n{markdown(rows(rounds))}")


if __name__ == "__main__":
    main()
