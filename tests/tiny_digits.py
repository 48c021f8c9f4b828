"""A few pictures that can be learnt in a few steps, in the files that torchvision reads MNIST from."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAIN, TEST = 96, 40


def write_mnist(root: Path, kind: str = "MNIST", *, train: int = TRAIN, test: int = TEST) -> Path:
    """``root/MNIST/raw/*``: stripes, the label says how many."""
    folder = root / kind / "raw"
    folder.mkdir(parents=True)
    stream = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        waves = np.sin(np.arange(28) * (0.15 + 0.12 * labels[:, None])) * 100 + 100
        pixels = waves[:, :, None] + stream.integers(0, 50, (count, 28, 28))
        _write(folder / f"{name}-images-idx3-ubyte", pixels.astype(np.uint8))
        _write(folder / f"{name}-labels-idx1-ubyte", labels.astype(np.uint8))
    return root


def _write(path: Path, values: NDArray[np.uint8]) -> None:
    path.write_bytes(
        struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
    )
