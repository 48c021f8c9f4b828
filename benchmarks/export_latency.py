"""What a folded AReLU net costs in onnxruntime beside the same net with its ReLUs: README's table.

    python benchmarks/export_latency.py [--seconds 40]

Both are exported as `export --format onnx` does it, opened in one process and run in turns; a ratio is the median of the
rounds' ratios. Weights are random: they do not change how long it takes. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections import Counter

import onnx
import onnxruntime
import timm
import torch
from torch import nn

import arelu_tl
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import fold
from arelu_tl.exporting.freeze import freeze
from arelu_tl.exporting.onnx_file import to_onnx
from arelu_tl.study.export_timing import BATCHES, onnx_runner, time_pair

SIZE = (3, 224, 224)


def exported(model: nn.Module) -> tuple[bytes, int]:
    """(ONNX content, products that AReLU left in it)."""
    frozen, sites = freeze(model)
    example = torch.zeros(2, *SIZE)
    module = capture(frozen, example)
    report = fold(module, site_products(module, sites))
    return to_onnx(module, example), len(report.kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="for each batch size")
    seconds = parser.parse_args().seconds
    print(f"onnxruntime {onnxruntime.__version__}, {platform.machine()}, {os.cpu_count()} threads, {SIZE[1]} x {SIZE[2]}\n")
    print("| backbone | batch | AReLU, ms | ReLU, ms | AReLU / ReLU | least .. greatest | products left | operators |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ("resnet18", "tf_efficientnet_lite0"):
        torch.manual_seed(0)
        plain = timm.create_model(name).eval()
        swapped = timm.create_model(name).eval()
        arelu_tl.convert(swapped, init="near-relu")
        (ours, left), (theirs, _) = exported(swapped), exported(plain)
        kinds = Counter(node.op_type for node in onnx.load_from_string(ours).graph.node)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        for batch in BATCHES:
            t = time_pair(onnx_runner(ours, SIZE), onnx_runner(theirs, SIZE), batch, seconds=seconds)
            print(
                f"| {name} | {batch} | {t.milliseconds:.1f} | {t.baseline_milliseconds:.1f} | {t.ratio:.2f} "
                f"| {t.least:.2f} .. {t.greatest:.2f} | {left} | {told} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
