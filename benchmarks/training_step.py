"""What AReLU costs in training: whole steps of ours, AReLU against ReLU, both models stepped in turns in one process.

    make bench            (or: python benchmarks/training_step.py --rounds 9)

With ``--parts`` what the parts of a step give on this machine instead, each against the step without it: channels side by side,
the optimiser in one pass, bfloat16.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import timm
import torch
from tables import Rows, machine, markdown, spread
from torch import nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.surgery.convert import convert
from arelu_tl.training.optimisation import make_optimizer
from arelu_tl.training.step import Batch, Step, StepSettings

CASES = [
    ("resnet18", 160, 16),
    ("resnet50", 128, 8),
    ("tf_efficientnet_lite0", 160, 16),
    ("regnetx_002", 160, 16),
]
PARTS: dict[str, tuple[dict[str, Any], bool]] = {
    "channels_last": ({"channels_last": True}, False),
    "fused": ({}, True),
    "bfloat16": ({"amp": torch.bfloat16}, False),
    "channels_last, bfloat16": ({"channels_last": True, "amp": torch.bfloat16}, False),
}


def net(name: str, *, arelu: bool, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=10)
    if arelu:
        convert(model)
    return model.to(device)


def batch_of(size: int, pictures: int) -> Batch:
    stream = torch.Generator().manual_seed(0)
    return torch.randn(pictures, 3, size, size, generator=stream), torch.randint(
        0, 10, (pictures,), generator=stream
    )


def stepper(model: nn.Module, device: torch.device, *, fused: bool = True, **settings: Any) -> Step:
    optimizer = make_optimizer(model, [], OptimizerSettings(opt="adamw", lr=1e-5))
    for group in optimizer.param_groups:
        group["fused"] = group["fused"] and fused
    step = Step(model, optimizer, StepSettings(**settings), device)
    step.train_mode()
    return step


def seconds(step: Step, batch: Batch, device: torch.device) -> float:
    started = time.perf_counter()
    step.gradients([batch], 0)
    step.update()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def saved_bytes(model: nn.Module, batch: Batch, device: torch.device) -> int:
    """Distinct memory that one forward pass keeps for its backward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    pictures, labels = (each.to(device) for each in batch)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(pictures), labels)
    loss.backward()
    model.zero_grad(set_to_none=True)
    return sum(kept.values())


def in_turns(
    steps: tuple[Step, Step], batch: Batch, device: torch.device, rounds: int
) -> list[float]:
    """Ratios of the first's seconds to the second's; the first round only warms up."""
    told = [[seconds(step, batch, device) for step in steps] for _ in range(rounds + 1)]
    return [ours / theirs for ours, theirs in told[1:]]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rows(rounds: int = 7) -> Rows:
    """A row for each backbone, every part of the step as training chooses it."""
    device, told = _device(), []
    for name, size, pictures in CASES:
        models = [net(name, arelu=arelu, device=device) for arelu in (True, False)]
        batch = batch_of(size, pictures)
        arelu, relu = (
            stepper(model, device, channels_last=device.type == "cpu") for model in models
        )
        ratios = in_turns((arelu, relu), batch, device, rounds)
        ours, theirs = (saved_bytes(model, batch, device) for model in models)
        row = {"backbone": name, "input": size, "batch": pictures}
        told.append(
            {**row, **spread(ratios), "kept for backward, AReLU / ReLU": round(ours / theirs, 2)}
        )
    return told


def part_rows(rounds: int = 5) -> Rows:
    """A row for each backbone, arm and part of the step: with the part against without any."""
    device, told = _device(), []
    for name, size, pictures in CASES:
        batch = batch_of(size, pictures)
        for arelu in (False, True):
            for part, (settings, fused) in PARTS.items():
                models = [net(name, arelu=arelu, device=device) for _ in range(2)]
                steps = (
                    stepper(models[0], device, fused=fused, **settings),
                    stepper(models[1], device, fused=False),
                )
                ratios = in_turns(steps, batch, device, rounds)
                told.append(
                    {
                        "backbone": name,
                        "arm": "arelu" if arelu else "relu",
                        "part": part,
                        **spread(ratios),
                    }
                )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", action="store_true", help="what the parts of a step give")
    given = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()), "\n")
    print(markdown(part_rows(given.rounds) if given.parts else rows(given.rounds)))


if __name__ == "__main__":
    main()
