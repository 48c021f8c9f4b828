"""Run folders with weights in them, of any architecture: what training would leave, all numbers different, without training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import timm
import torch
from run_folders import write_run
from torch import nn

import arelu_tl
from arelu_tl.activation.arelu import AReLU
from arelu_tl.records.card import ModelCard
from arelu_tl.records.weights import save_weights

DATA_CONFIG = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.5, 0.6, 0.7],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def disturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, statistics, alphas and betas as training might leave them, all different; some alphas at their limits."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, module in enumerate(
            m for m in model.modules() if isinstance(m, AReLU | nn.BatchNorm2d)
        ):
            if isinstance(module, AReLU):
                module.alpha.uniform_(0.01, 0.99, generator=stream)
                if number % 3 == 0:
                    module.alpha.fill_((-1.0, 0.01, 0.99, 2.0)[number // 3 % 4])
                module.beta.normal_(1.0, 1.0, generator=stream)
            else:
                module.running_mean.normal_(0, 0.2, generator=stream)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5, generator=stream)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1.5, generator=stream)
                module.bias.normal_(0, 0.2, generator=stream)
    return model.eval()


def write_trained_run(
    study: Path,
    name: str,
    *,
    arm: str = "arelu",
    size: int = 64,
    names: list[str] | None = None,
    data: Path | None = None,
    fixed: bool = False,
    model_args: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A run of timm's ``name`` in the folder ``study``.

    Args:
        size: of the pictures.
        names: of its classes; seven when None.
        fixed: build the net for this size, as some architectures want it.
        model_args: of ``timm.create_model``, beyond the architecture's defaults.
        data: ROOT/{train,val}/CLASS/* whose classes it has; no pictures when None.
        options: of ``arelu_tl.convert``.
    """
    names = names or [f"class {i}" for i in range(7)]
    if data is not None:
        names = sorted(p.name for p in (data / "train").iterdir())
    torch.manual_seed(0)
    model = timm.create_model(
        name, num_classes=len(names), **({"img_size": size} if fixed else {}), **(model_args or {})
    )
    sites: list[dict[str, Any]] = []
    if arm != "relu":
        sites = arelu_tl.convert(
            model, arm=arm, example_input=torch.zeros(2, 3, size, size), **options
        ).to_json()["sites"]
    disturb(model)
    run = write_run(study, arm, top1=[0.2, 0.5], model=name, data=data, img_size=size)
    card = ModelCard(
        backbone=name, architecture=name, img_size=size if fixed else None, arm=arm, classes=names, model_args=model_args or {},
        sites=sites,
        data_config={"input_size": [3, size, size], **DATA_CONFIG},
        step=10, top1=0.5, loss=0.5, weights="none", license="mit", version="0",
    )  # fmt: skip
    save_weights(run / "best.safetensors", model.state_dict(), card.to_json())
    if data is not None:
        with open(study / "split.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split"])
            for path in sorted(data.rglob("*.png")):
                writer.writerow(
                    [path.relative_to(data).as_posix(), path.parent.name, path.parent.parent.name]
                )
    return run
