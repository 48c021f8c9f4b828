"""Folders of photographs of 500 x 375 pixels, as people fine-tune on: crops of those that scikit-learn and scikit-image carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance
from timm.data import create_dataset, create_loader

CLASSES = 4
WIDTH, HEIGHT = 500, 375


def write_photographs(root: Path, train: int, val: int = CLASSES) -> None:
    """ROOT/{train,val}/CLASS/*.jpg, each a different crop of a photograph, brightened or darkened a little, quality 90."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    sources = [
        Image.fromarray(each)
        for each in (*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea())
    ]
    stream = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            source = sources[number % len(sources)]
            share = stream.uniform(0.7, 1.0)
            width = int(share * min(source.width, source.height * WIDTH / HEIGHT))
            height = int(width * HEIGHT / WIDTH)
            left, top = (
                int(stream.integers(0, room + 1))
                for room in (source.width - width, source.height - height)
            )
            crop = source.crop((left, top, left + width, top + height)).resize(
                (WIDTH, HEIGHT), Image.Resampling.LANCZOS
            )
            path = root / split / f"class{number % CLASSES}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            ImageEnhance.Brightness(crop).enhance(stream.uniform(0.8, 1.2)).save(path, quality=90)


def timm_loader(
    root: Path,
    data_config: dict[str, Any],
    *,
    scale: tuple[float, float],
    batch_size: int,
    workers: int,
) -> Callable[[], Iterator[Any]]:
    """An epoch of timm's training loader, as its train.py makes it on the CPU (no prefetcher); hflip and jitter as ours."""
    loader = create_loader(
        create_dataset("", root=str(root), split="train", is_training=True, batch_size=batch_size),
        input_size=tuple(data_config["input_size"]),
        batch_size=batch_size,
        is_training=True,
        use_prefetcher=False,
        scale=scale,
        hflip=0.5,
        color_jitter=0.4,
        interpolation=data_config["interpolation"],
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: iter(loader)
