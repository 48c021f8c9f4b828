"""What calibration is for, on real ImageNet weights and real photographs: the net keeps what it knows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from arelu_tl.backbone.loading import load_backbone
from arelu_tl.data.loader import eval_transform
from arelu_tl.surgery.calibrate import Drift, calibration_batches, measure_outputs, relative_drift
from arelu_tl.surgery.convert import DRIFT_BUDGET, convert

PHOTOGRAPHS = (
    skimage.data.chelsea, skimage.data.coffee, skimage.data.astronaut, skimage.data.rocket,
    lambda: load_sample_images().images[0], lambda: load_sample_images().images[1],
)  # fmt: skip


def crops(each: int) -> list[Image.Image]:
    """``each`` random crops, of 60 to 100% of its side, of every photograph."""
    stream = np.random.default_rng(0)
    cut = []
    for photograph in PHOTOGRAPHS:
        pixels = photograph()
        height, width = pixels.shape[:2]
        for _ in range(each):
            side = int(min(height, width) * stream.uniform(0.6, 1))
            top, left = stream.integers(0, height - side + 1), stream.integers(0, width - side + 1)
            cut.append(Image.fromarray(pixels[top : top + side, left : left + side]))
    return cut


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    return load_backbone("tf_efficientnet_lite0", img_size=128).model


@pytest.fixture(scope="module")
def pictures() -> tuple[list[Tensor], list[Tensor]]:
    """(batches to calibrate on, batches of other crops to judge by)."""
    transform = eval_transform(load_backbone("tf_efficientnet_lite0", img_size=128).data_config)
    tensors = [transform(crop) for crop in crops(4)]
    return calibration_batches(tensors[0::2]), calibration_batches(tensors[1::2])


def drift_of(
    backbone: nn.Module, pictures: tuple[list[Tensor], list[Tensor]], **settings: object
) -> Drift:
    """Drift on the second part of the pictures of a surgery calibrated on the first."""
    model = copy.deepcopy(backbone)
    convert(model, calibration=pictures[0], **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        return relative_drift(
            measure_outputs(backbone, pictures[1]), measure_outputs(model, pictures[1])
        )


@pytest.mark.slow
def test_calibrated_keeps_the_pretrained_top1_on_photographs_and_paper_ruins_it(
    backbone: nn.Module, pictures: tuple[list[Tensor], list[Tensor]]
) -> None:
    calibrated = drift_of(backbone, pictures)
    careful = drift_of(backbone, pictures, drift_budget=0.25)
    papers = drift_of(backbone, pictures, init="paper")
    assert calibrated.relative is not None
    assert calibrated.relative < 1.25 * DRIFT_BUDGET
    assert calibrated.top1_agreement >= 0.5
    assert careful.top1_agreement >= 0.8
    assert papers.relative is None or papers.relative > 10
    assert papers.top1_agreement <= 0.1


@pytest.mark.slow
def test_correction_undoes_most_of_the_drift_and_reestimation_does_not(
    backbone: nn.Module, pictures: tuple[list[Tensor], list[Tensor]]
) -> None:
    """The leaks are the same for all three; what differs is what becomes of BatchNorm."""
    least = {
        b: drift_of(backbone, pictures, alpha=0.1, drift_budget=0, batchnorm=b)
        for b in ("corrected", "reestimated", "kept")
    }
    assert least["corrected"].top1_agreement > max(
        least["reestimated"].top1_agreement, least["kept"].top1_agreement
    )
