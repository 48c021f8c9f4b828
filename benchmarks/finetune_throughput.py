"""Pictures a second of ``finetune``, from its second epoch on, against the pieces of timm's train.py, epoch by epoch in turns.

    python benchmarks/finetune_throughput.py [--quick] [--workers N]

Ours is a whole study of both arms, as the command line runs one. At each of its epochs' ends timm's loader (no prefetcher, as
train.py has it on the CPU), optimiser and loop train the unmodified backbone for an epoch on the same pictures, with the same
batches and threads, and the number of loader processes, 0, 1 or 2, that serves them best. Validation counts on neither side.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from photographs import CLASSES, timm_loader, write_photographs
from tables import Rows, markdown, spread
from timm.optim import create_optimizer_v2
from torch import nn

from arelu_tl.backbone.loading import load_backbone
from arelu_tl.experiment.devices import choose_workers
from arelu_tl.experiment.finetune import finetune
from arelu_tl.experiment.observer import Observer
from arelu_tl.records.config import FinetuneConfig

CASES = [("tf_efficientnet_lite0", 128), ("tf_efficientnet_lite0", 224), ("resnet18", 128)]
Epoch = Callable[[], Iterator[Any]]


def rows(quick: bool = False, workers: int | None = None) -> Rows:
    """A row for each model, input size and arm.

    Args:
        workers: of our loader; chosen as ``finetune`` does when None.
    """
    made: Rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        root = Path(place, "photographs")
        batch_size, batches, epochs = (16, 3, 3) if quick else (32, 4, 4)
        write_photographs(root, batch_size * batches)
        for model, size in CASES[:1] if quick else CASES:
            config = FinetuneConfig(
                data=root,
                output=Path(place, "runs"),
                model=model,
                pretrained=model == CASES[0][0],
                img_size=size,
                batch_size=batch_size,
                epochs=epochs,
                calibration_images=16,
                workers=workers,
            )
            made += _measure(config, batch_size * batches)
    return made


def _measure(config: FinetuneConfig, pictures: int) -> Rows:
    assert config.data is not None
    theirs = _Timm(config, config.data)
    watched = _Turns(theirs, pictures)
    finetune(config, observer=watched)
    ours = choose_workers(config.workers, torch.device("cpu"))
    told = []
    for arm, rates in watched.rates.items():
        ratio = spread([one / other for one, other in rates[1:]])
        speeds = {"ours, pictures/s": spread([one for one, _ in rates[1:]], 1)["median"]}
        speeds["timm, pictures/s"] = spread([other for _, other in rates[1:]], 1)["median"]
        case = {
            "model": config.model,
            "input": config.img_size,
            "arm": arm,
            "processes": f"{ours} / {theirs.workers}",
        }
        told.append({**case, **speeds, "ours / timm": ratio.pop("median"), **ratio})
    return told


class _Timm:
    """timm's train.py: its loader, optimiser and loop on the unmodified backbone."""

    def __init__(self, config: FinetuneConfig, root: Path) -> None:
        backbone = load_backbone(
            config.model, pretrained=config.pretrained, img_size=config.img_size
        )
        self.model = backbone.model.train()
        self.model.reset_classifier(CLASSES)
        self.optimizer = create_optimizer_v2(
            self.model, opt="adamw", lr=config.lr, weight_decay=config.weight_decay
        )
        self.loss = nn.CrossEntropyLoss()
        loaders: dict[int, Epoch] = {
            workers: timm_loader(
                root,
                backbone.data_config,
                scale=config.scale,
                batch_size=config.batch_size,
                workers=workers,
            )
            for workers in (0, 1, 2)
        }
        self.train(islice(loaders[0](), 1))
        seconds: dict[int, float] = {}
        for workers, epoch in loaders.items():
            epoch_batches = epoch()
            next(epoch_batches)  # starts the processes
            began = time.perf_counter()
            count = self.train(islice(epoch_batches, 2))
            seconds[workers] = (time.perf_counter() - began) / count
        self.workers = min(seconds, key=seconds.__getitem__)
        self.epoch = loaders[self.workers]

    def train(self, batches: Iterator[Any]) -> int:
        """Train on ``batches``; how many pictures they had."""
        pictures = 0
        for inputs, targets in batches:
            loss = self.loss(self.model(inputs), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()
            pictures += len(inputs)
        return pictures


class _Turns(Observer):
    """After each epoch of a study lets timm train one. ``rates``: {arm: [(our pictures a second, timm's) of each epoch]}."""

    def __init__(self, theirs: _Timm, pictures: int) -> None:
        self.rates: dict[str, list[tuple[float, float]]] = {}
        self._theirs, self._pictures = theirs, pictures
        self._before = 0.0

    def epoch_end(self, arm: str, row: dict[str, Any]) -> None:
        if arm not in self.rates:
            self.rates[arm], self._before = [], 0.0
        ours = self._pictures / (row["seconds"] - self._before)
        self._before = row["seconds"]
        began = time.perf_counter()
        pictures = self._theirs.train(self._theirs.epoch())
        self.rates[arm].append((ours, pictures / (time.perf_counter() - began)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads\n")
    print(markdown(rows(arguments.quick, arguments.workers)))


if __name__ == "__main__":
    main()
