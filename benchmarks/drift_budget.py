"""What a drift budget costs and gives: pretrained top-1 kept on photographs, and convergence on the demo's digits.

    python benchmarks/drift_budget.py          # the table in docs; a quarter of an hour on two cores
    python benchmarks/drift_budget.py --quick  # without the fine-tunes

Photographs: 48 crops of the six that scikit-image and scikit-learn ship, half to calibrate on and half to judge by. Digits:
`arelu-tl demo`'s, arm arelu at learning rate 1e-4, seed 0.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

from arelu_tl.backbone.loading import load_backbone
from arelu_tl.data.digits import DEMO_SETTINGS, write_digits
from arelu_tl.data.loader import eval_transform
from arelu_tl.experiment.finetune import finetune
from arelu_tl.records.config import check_config
from arelu_tl.surgery.calibrate import calibration_batches, measure_outputs, relative_drift
from arelu_tl.surgery.convert import convert

MODEL = "tf_efficientnet_lite0"
ROWS: dict[str, dict[str, Any]] = {
    "calibrated, budget 0.25": {"drift_budget": 0.25},
    "calibrated, budget 0.5": {"drift_budget": 0.5},
    "calibrated, budget 1 (default)": {},
    "calibrated, budget 2": {"drift_budget": 2.0},
    "calibrated, budget 0 (graded)": {"drift_budget": 0.0},
    "the same, BatchNorm reestimated": {"drift_budget": 0.0, "batchnorm": "reestimated"},
    "near-relu": {"init": "near-relu"},
    "paper": {"init": "paper"},
}


def photographs(each: int = 8) -> list[Image.Image]:
    """``each`` random crops, of 60 to 100% of its side, of every photograph."""
    shipped = [
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.astronaut(),
        skimage.data.rocket(),
    ]
    stream = np.random.default_rng(0)
    cut = []
    for pixels in [*shipped, *load_sample_images().images]:
        height, width = pixels.shape[:2]
        for _ in range(each):
            side = int(min(height, width) * stream.uniform(0.6, 1))
            top, left = stream.integers(0, height - side + 1), stream.integers(0, width - side + 1)
            cut.append(Image.fromarray(pixels[top : top + side, left : left + side]))
    return cut


def on_photographs(settings: dict[str, Any]) -> list[str]:
    """Drift and top-1 kept on crops that surgery was not calibrated on."""
    backbone = load_backbone(MODEL)
    transform = eval_transform(backbone.data_config)
    tensors = [transform(crop) for crop in photographs()]
    calibration, judging = calibration_batches(tensors[0::2]), calibration_batches(tensors[1::2])
    model = copy.deepcopy(backbone.model)
    convert(model, calibration=calibration, **settings)
    drift = relative_drift(
        measure_outputs(backbone.model, judging), measure_outputs(model, judging)
    )
    return [
        "overflow" if drift.relative is None else f"{drift.relative:.2f}",
        f"{drift.top1_agreement:.0%}",
    ]


def on_digits(place: Path, settings: dict[str, Any]) -> list[str]:
    """Drift and top-1 kept on the digits, area under the accuracy curve, and final accuracy."""
    digits = place / "digits"
    if not digits.exists():
        write_digits(digits)
    given = {
        **DEMO_SETTINGS,
        "data": digits,
        "lr": 1e-4,
        "epochs": 6,
        "baseline": False,
        "output": place / "runs",
        **settings,
    }
    (run,) = finetune(check_config(given)).runs
    drift = run.surgery["drift"] if run.surgery else {"relative": 0.0, "top1_agreement": 1.0}
    size = "overflow" if drift["relative"] is None else f"{drift['relative']:.2f}"
    return [
        size,
        f"{drift['top1_agreement']:.0%}",
        f"{run.summary['aulc']:.3f}",
        f"{run.summary['final_top1']:.3f}",
    ]


def main(*, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        print(
            "| surgery | photographs: drift | top-1 kept | digits: drift | top-1 kept | AULC | final |"
        )
        print("|---|---|---|---|---|---|---|")
        nothing = ["0.00", "100%"]
        rows = {"none (arm relu)": {"arm": "relu"}, **ROWS}
        for name, settings in rows.items():
            cells = nothing if settings.get("arm") == "relu" else on_photographs(settings)
            cells = cells + (["-"] * 4 if quick else on_digits(place, settings))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
