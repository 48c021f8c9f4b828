"""Preprocessing inside the graph, and fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from trained_runs import DATA_CONFIG, disturb

from arelu_tl.activation.arelu import AReLU
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.errors import ArtefactError, ConfigError
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import fold
from arelu_tl.exporting.onnx_file import answers, open_session, to_onnx, with_metadata
from arelu_tl.exporting.onnx_precision import quantize_dynamic, quantize_static, to_fp16
from arelu_tl.exporting.onnx_preprocessing import showing_input, with_preprocessing
from arelu_tl.models.freeze import freeze

SIZE = 24


def settings_of(**changes: Any) -> dict[str, Any]:
    return {**DATA_CONFIG, "input_size": [3, SIZE, SIZE], **changes}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        AReLU(0.3, 1.0, cap=6.0),
        nn.AvgPool2d(4),
    ]
    layers += [
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        AReLU(0.5),
        nn.Conv2d(16, 32, 1),
        AReLU(0.7),
    ]
    return disturb(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)))


@pytest.fixture(scope="module")
def core(trained: nn.Module) -> bytes:
    frozen, sites = freeze(trained)
    module = capture(frozen, torch.zeros(2, 3, SIZE, SIZE))
    fold(module, site_products(module, sites))
    return to_onnx(module, torch.zeros(2, 3, SIZE, SIZE))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["center", "squash"])
@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0]),
)
def test_pixels_in_the_graph_are_pillows_up_to_two_levels(
    core: bytes, interpolation: str, mode: str, height: int, width: int, crop_pct: float
) -> None:
    """Of a Pillow that filters rows first; of any Pillow where only one side changes, as the other is then left alone."""
    config = settings_of(interpolation=interpolation, crop_mode=mode, crop_pct=crop_pct)
    pixels = np.random.default_rng(height * 100 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    inside = open_session(showing_input(with_preprocessing(core, config)), threads=1)
    (normalised,) = inside.run(None, {"pictures": pixels[None]})
    mean, std = (np.array(config[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    made = np.rint(255 * (normalised * std + mean))
    scaled = int(SIZE / crop_pct)
    rows, columns = (
        (scaled, scaled)
        if mode == "squash"
        else (scaled * s // min(height, width) for s in (height, width))
    )
    filters = getattr(Image.Resampling, interpolation.upper())
    resized = (
        Image.fromarray(pixels).resize((columns, height), filters).resize((columns, rows), filters)
    )
    top, left = round((rows - SIZE) / 2), round((columns - SIZE) / 2)
    expected = np.asarray(resized.crop((left, top, left + SIZE, top + SIZE))).transpose(2, 0, 1)
    assert made.shape == (1, 3, SIZE, SIZE)
    # Between the two passes both round to whole levels, and a tie may go either way: one level, which the second pass multiplies
    # by up to the sum of its weights' absolute values (1 for bilinear, 1.4 for bicubic) before both round again.
    assert np.abs(made[0].astype(int) - expected).max() <= 2


def test_the_whole_takes_pictures_and_gives_probabilities(core: bytes, trained: nn.Module) -> None:
    whole = with_metadata(with_preprocessing(core, settings_of()), {"a": "b"})
    session = open_session(whole)
    (port,), (out,) = session.get_inputs(), session.get_outputs()
    assert (port.name, port.type, port.shape) == (
        "pictures",
        "tensor(uint8)",
        ["batch", "height", "width", 3],
    )
    assert (out.name, out.shape) == ("probabilities", ["batch", 5])
    pixels = np.full((2, 50, 70, 3), 128, np.uint8)  # one level everywhere: no resize can differ
    pixels[1] = 7
    (told,) = session.run(None, {"pictures": pixels})
    prepared = np.stack([Preprocessing(settings_of())(Image.fromarray(each)) for each in pixels])
    with torch.inference_mode():
        expected = trained(torch.from_numpy(prepared)).softmax(1).numpy()
    assert np.allclose(told, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"interpolation": "lanczos"}, {"crop_mode": "border"}, {"input_size": [3, 24, 32]}]
)
def test_preprocessing_without_a_form_in_onnx_is_refused(
    core: bytes, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="`with_preprocessing`"):
        with_preprocessing(core, settings_of(**changes))


def pictures(count: int = 4) -> Iterator[Tensor]:
    torch.manual_seed(2)
    return (torch.randn(4, 3, SIZE, SIZE) for _ in range(count))


@pytest.mark.parametrize(
    ("convert", "type_", "bound"),
    [
        (to_fp16, onnx.TensorProto.FLOAT16, 0.01),
        (quantize_dynamic, onnx.TensorProto.UINT8, 0.1),
        (lambda content: quantize_static(content, pictures()), onnx.TensorProto.INT8, 0.1),
    ],
    ids=["fp16", "dynamic", "static"],
)
def test_fewer_bits_are_smaller_and_near(
    core: bytes, convert: Any, type_: int, bound: float
) -> None:
    made = with_metadata(convert(core), {})
    weights = [t for t in onnx.load_from_string(made).graph.initializer if len(t.dims) > 1]
    assert any(t.data_type == type_ for t in weights)
    before, after = answers(core), answers(made)
    for batch in pictures(1):
        apart = (before(batch) - after(batch)).abs().max() / before(batch).abs().max()
        assert 0 < apart < bound


def test_what_cannot_be_converted_is_told_in_one_line() -> None:
    with pytest.raises(ArtefactError, match="no form in float16") as told:
        to_fp16(b"no model")
    assert "\n" not in str(told.value)
