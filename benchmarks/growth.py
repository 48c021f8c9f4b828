"""How time and memory grow with the number of pictures, of classes and of sites.

    python benchmarks/growth.py [--quick]

Pictures are generated JPEGs of 48 x 48 pixels, so that what is measured is the bookkeeping and not the decoding of large ones; a
net of n sites is n blocks of convolution, BatchNorm and ReLU. Each row is measured in a process of its own, by its peak over what
importing took.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tables import Rows, markdown

PICTURES = (100, 1_000, 10_000, 100_000)
CLASSES = (10, 100, 1_000, 10_000)
SITES = (10, 100, 1_000)


def rows(quick: bool = False) -> Rows:
    """A row a size: seconds, per unit too, and the peak of memory over the imports'."""
    made: Rows = []
    for what, sizes in (("pictures", PICTURES), ("classes", CLASSES), ("sites", SITES)):
        for size in sizes[:2] if quick else sizes:
            code = f"import growth, json; print(json.dumps(growth.measure_{what}({size})))"
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(done.stderr)
            told = json.loads(done.stdout.splitlines()[-1])
            made.append(
                {
                    "growing": what,
                    "number": f"{size:,}",
                    "what": told["what"],
                    "seconds": round(told["seconds"], 2),
                }
                | {
                    "milliseconds each": round(1000 * told["seconds"] / size, 3),
                    "peak, MiB": round(told["peak"] / 2**20),
                }
            )
    return made


def measure_pictures(count: int) -> dict[str, Any]:
    """From the folder to the first batch of ten classes: list, decode, hash, split, shuffle."""
    return _first_batch(count, classes=10, what="scan and gate, split, first batch")


def measure_classes(count: int) -> dict[str, Any]:
    """The same with four pictures a class."""
    return _first_batch(4 * count, classes=count, what="the same, 4 pictures each")


def _first_batch(count: int, *, classes: int, what: str) -> dict[str, Any]:
    from arelu_tl.data.folder import scan_folder
    from arelu_tl.data.loader import eval_view, make_train_batches

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        _write(root, count, classes)
        view = eval_view(
            {
                "input_size": (3, 48, 48),
                "interpolation": "bicubic",
                "mean": (0.5,) * 3,
                "std": (0.5,) * 3,
            }
        )
        before, began = _peak(), time.perf_counter()
        folder = scan_folder(root)
        folder.fingerprint()
        batches = make_train_batches(root, folder.splits["train"], view, batch_size=32, seed=0)
        next(batches.epoch())
        batches.order_digest(0)
        return {"what": what, "seconds": time.perf_counter() - began, "peak": _peak() - before}


def _write(root: Path, count: int, classes: int) -> None:
    stream = np.random.default_rng(0)
    for label in range(classes):
        (root / f"class {label}").mkdir()
    for number in range(count):
        # Pictures that are no copies of one another, by their looks either.
        buffer = io.BytesIO()
        Image.fromarray(stream.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 48)).save(
            buffer, "JPEG"
        )
        (root / f"class {number % classes}" / f"{number}.jpg").write_bytes(buffer.getvalue())


def measure_sites(count: int) -> dict[str, Any]:
    """Surgery with calibration on 32 pictures: find every site, plan, replace, correct BatchNorm, verify."""
    import torch
    from torch import nn

    from arelu_tl.surgery.convert import convert

    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(count)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    ).eval()
    pictures = [torch.randn(32, 3, 16, 16)]
    before, began = _peak(), time.perf_counter()
    report = convert(
        model,
        init="calibrated",
        drift_budget=0.0,
        example_input=pictures[0][:1],
        calibration=pictures,
    )
    seconds = time.perf_counter() - began
    assert len(report.sites) == count
    return {"what": "surgery and calibration", "seconds": seconds, "peak": _peak() - before}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smaller sizes only")
    print(markdown(rows(parser.parse_args().quick)))


if __name__ == "__main__":
    main()
