"""What AReLU costs: a training step, AReLU against ReLU, both models stepped in turns in one process.

    make bench            (or: python benchmarks/training_step.py --rounds 9)

Prints a Markdown table of the ratio's median with its least and greatest value, and of the
bytes kept for the backward pass, measured by autograd's saved-tensor hooks.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import timm
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.surgery import convert
from arelu_tl.training import make_optimizer

CASES = [("resnet18", 160, 16), ("resnet50", 128, 8), ("tf_efficientnet_lite0", 160, 16)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    started = time.perf_counter()
    F.cross_entropy(model(pictures), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if pictures.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def saved_bytes(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> int:
    """Distinct memory that one forward pass keeps for its backward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(pictures), labels)
    loss.backward()
    model.zero_grad(set_to_none=True)
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, timm {timm.__version__}, {where}, {rounds} rounds\n")
    print("| backbone | input | batch | step, AReLU / ReLU | least .. greatest | kept for backward, AReLU / ReLU |")
    print("|---|---|---|---|---|---|")
    for name, size, batch in CASES:
        torch.manual_seed(0)
        models = [timm.create_model(name, num_classes=10) for _ in range(2)]
        convert(models[1])
        pictures, labels = torch.randn(batch, 3, size, size, device=device), torch.randint(0, 10, (batch,), device=device)
        models = [m.to(device).train() for m in models]
        optimizers = [make_optimizer(m, [], opt="adamw", lr=1e-5) for m in models]
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, pictures, labels)
        ratios = []
        for _ in range(rounds):
            relu, arelu = (step(m, o, pictures, labels) for m, o in zip(models, optimizers, strict=True))
            ratios.append(arelu / relu)
        memory = [saved_bytes(m, pictures, labels) for m in models]
        print(
            f"| {name} | {size} | {batch} | {statistics.median(ratios):.2f} | {min(ratios):.2f} .. {max(ratios):.2f} | "
            f"{memory[1] / memory[0]:.2f} |"
        )


if __name__ == "__main__":
    main()
