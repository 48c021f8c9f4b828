"""What a folded AReLU net costs in onnxruntime beside the same net with its ReLUs.

    python benchmarks/export_latency.py [--seconds 40]

Both are exported as `export --format onnx` does it, opened in one process and run in turns; a ratio is the median of the
rounds' ratios. Weights are random: they do not change how long it takes. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse

import timm
import torch
from tables import Rows, markdown
from torch import nn

import arelu_tl
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import fold
from arelu_tl.exporting.onnx_file import to_onnx
from arelu_tl.exporting.timing import BATCHES, onnx_runner, time_pair
from arelu_tl.models.freeze import freeze

SIZE = (3, 224, 224)


def exported(model: nn.Module) -> tuple[bytes, int]:
    """(ONNX content, products that AReLU left in it)."""
    frozen, sites = freeze(model)
    example = torch.zeros(2, *SIZE)
    module = capture(frozen, example)
    report = fold(module, site_products(module, sites))
    return to_onnx(module, example), len(report.kept)


def rows(seconds: float = 40.0) -> Rows:
    """A row a backbone and batch: milliseconds of both, and their ratio."""
    made: Rows = []
    for name in ("resnet18", "tf_efficientnet_lite0"):
        torch.manual_seed(0)
        plain = timm.create_model(name).eval()
        swapped = timm.create_model(name).eval()
        arelu_tl.convert(swapped, init="near-relu")
        (ours, left), (theirs, _) = exported(swapped), exported(plain)
        for batch in BATCHES:
            t = time_pair(
                onnx_runner(ours, SIZE), onnx_runner(theirs, SIZE), batch, seconds=seconds
            )
            made.append(
                {
                    "backbone": name,
                    "batch": batch,
                    "AReLU, ms": round(t.milliseconds, 1),
                    "ReLU, ms": round(t.baseline_milliseconds, 1),
                }
                | {
                    "AReLU / ReLU": round(t.ratio, 2),
                    "least": round(t.least, 2),
                    "greatest": round(t.greatest, 2),
                }
                | {"products left": left}
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="for each batch size")
    print(markdown(rows(parser.parse_args().seconds)))


if __name__ == "__main__":
    main()
