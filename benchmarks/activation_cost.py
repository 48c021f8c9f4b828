"""What one activation costs: AReLU fused and portable, the official formula and PReLU against ReLU, in turns in one process.

    python benchmarks/activation_cost.py [--rounds 25]

Each runs forward and backward on a float32 map (32, 64, 56, 56) that the operator before it has just written, as in a net. A
ratio is a round's time over in-place ReLU's in the same round; the copy that stands for the operator before is in neither.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.activation import AReLU, fused

SHAPE = (32, 64, 56, 56)


class Official(nn.Module):
    """The formula of the authors' code."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.tensor([0.9])), nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = torch.clamp(self.alpha, min=0.01, max=0.99), 1 + torch.sigmoid(self.beta)
        return F.relu(x) * beta - F.relu(-x) * alpha


class _Portable(AReLU):
    """AReLU of ATen's operators, whether or not there is a kernel."""

    def forward(self, x: Tensor) -> Tensor:
        before, fused.serves = fused.serves, lambda *_: False  # type: ignore[assignment]
        try:
            return super().forward(x)
        finally:
            fused.serves = before


def seconds(module: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[float, float]:
    """(forward, forward and backward)."""
    leaf = x.detach().requires_grad_()
    written = leaf.clone()
    start = time.perf_counter()
    y = module(written)
    between = time.perf_counter()
    y.backward(grad)
    return between - start, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    x, grad = torch.randn(SHAPE), torch.randn(SHAPE)
    candidates: dict[str, nn.Module] = {
        "ReLU, in place": nn.ReLU(inplace=True),
        "ReLU": nn.ReLU(),
        "AReLU, in place": AReLU(inplace=True),
        "AReLU": AReLU(),
        "AReLU, portable, in place": _Portable(inplace=True),
        "AReLU, portable": _Portable(),
        "the official formula": Official(),
        "PReLU": nn.PReLU(),
    }
    print(f"torch {torch.__version__}, {platform.machine()}, AReLU: {fused.kernel_state()}, {rounds} rounds\n")
    print("| activation | threads | forward | forward + backward | least .. greatest |")
    print("|---|---|---|---|---|")
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
        for _ in range(rounds + 2):
            for name, module in candidates.items():
                taken[name].append(seconds(module, x, grad))
        for name, pairs in taken.items():
            base = taken["ReLU, in place"][2:]
            forward = [a / b for (a, _), (b, _) in zip(pairs[2:], base, strict=True)]
            both = [a / b for (_, a), (_, b) in zip(pairs[2:], base, strict=True)]
            print(
                f"| {name} | {threads} | {statistics.median(forward):.2f} | {statistics.median(both):.2f} "
                f"| {min(both):.2f} .. {max(both):.2f} |"
            )


if __name__ == "__main__":
    main()
