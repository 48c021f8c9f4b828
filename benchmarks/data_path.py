"""Pictures a second of the loader alone, against timm's: 500-pixel JPEGs, random crops, flips and jitter, both in turns.

    python benchmarks/data_path.py [--quick]

``off``: every picture is decoded and reduced whenever it is needed; ``cold``: the first epoch on an empty cache, which it fills;
``warm``: every later one. Each round is an epoch of each; the ratio is warm over timm.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from photographs import timm_loader, write_photographs
from tables import Rows, markdown, spread

from arelu_tl.data.folder import scan_folder
from arelu_tl.data.loader import make_train_batches, train_view
from arelu_tl.data.store import PictureStore
from arelu_tl.records.settings import AugmentSettings

BATCH = 32
SCALE = (0.35, 1.0)
IMAGENET = {"interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def rows(quick: bool = False) -> Rows:
    """A row for each input size and number of loader processes."""
    made: Rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        root = Path(place, "photographs")
        write_photographs(root, 4 * BATCH if quick else 10 * BATCH)
        for size in (128, 224):
            for workers in (0, 1, 2):
                made.append(_row(root, Path(place), size, workers, rounds=3 if quick else 7))
    return made


def _row(root: Path, place: Path, size: int, workers: int, rounds: int) -> dict[str, Any]:
    config = {**IMAGENET, "input_size": (3, size, size)}
    folder = scan_folder(root)
    samples, view = (
        folder.splits["train"],
        train_view(config, AugmentSettings(scale=SCALE, hflip=0.5, color_jitter=0.4)),
    )

    def ours(cache: PictureStore | None) -> Callable[[int], Iterator[Any]]:
        return make_train_batches(
            root, samples, view, batch_size=BATCH, seed=0, workers=workers, cache=cache
        ).epoch

    kept = _store(place, f"kept {size} {workers}")
    warm, off = ours(kept), ours(None)
    timm_epoch = timm_loader(root, config, scale=SCALE, batch_size=BATCH, workers=workers)
    # Starts the processes and fills the cache; what an epoch costs is measured from the second on.
    for epoch in (warm(0), off(0), timm_epoch()):
        _pictures_per_second(epoch)
    told: dict[str, list[float]] = {"timm": [], "off": [], "cold": [], "warm": []}
    for number in range(1, rounds + 1):
        told["timm"].append(_pictures_per_second(timm_epoch()))
        told["off"].append(_pictures_per_second(off(number)))
        told["warm"].append(_pictures_per_second(warm(number)))
        if number <= 2:
            told["cold"].append(
                _pictures_per_second(ours(_store(place, f"cold {size} {workers} {number}"))(0))
            )
    medians = {
        f"{name}, pictures/s": round(statistics.median(values)) for name, values in told.items()
    }
    ratio = spread([one / other for one, other in zip(told["warm"], told["timm"], strict=True)])
    return {
        "input": size,
        "processes": workers,
        **medians,
        "warm / timm": ratio.pop("median"),
        **ratio,
    }


def _store(place: Path, name: str) -> PictureStore:
    folder = place / name
    folder.mkdir()
    return PictureStore(folder, 10**10)


def _pictures_per_second(epoch: Iterator[Any]) -> float:
    began, pictures = time.perf_counter(), 0
    for batch, _ in epoch:
        pictures += len(batch)
    return pictures / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    print(f"{torch.get_num_threads()} threads, batches of {BATCH}\n")
    print(markdown(rows(quick)))


if __name__ == "__main__":
    main()
