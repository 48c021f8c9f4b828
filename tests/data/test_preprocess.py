"""The torch-free transform is timm's, to the last bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from arelu_tl.data.decode import UndecodableError
from arelu_tl.data.loader import eval_transform
from arelu_tl.data.preprocess import CROP_MODES, INTERPOLATIONS, Preprocessing
from arelu_tl.errors import ArtefactError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
GOOD: dict[str, Any] = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    **IMAGENET,
}


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


side = st.integers(1, 150)
model_side = st.integers(1, 70)


@settings(max_examples=400, deadline=None)
@given(
    picture=st.tuples(side, side),
    size=st.tuples(model_side, model_side) | model_side.map(lambda n: (n, n)),
    interpolation=st.sampled_from(list(INTERPOLATIONS)),
    crop_mode=st.sampled_from([*CROP_MODES, None]),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0, 1.3]) | st.floats(0.2, 1.5),
    mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
)
@example(
    picture=(31, 20),
    size=(24, 24),
    interpolation="bicubic",
    crop_mode="border",
    crop_pct=1.0,
    **IMAGENET,
)
@example(
    picture=(9, 13),
    size=(40, 24),
    interpolation="lanczos",
    crop_mode="center",
    crop_pct=1.3,
    **IMAGENET,
)
def test_equals_timms_evaluation_transform_bit_for_bit(
    picture: tuple[int, int],
    size: tuple[int, int],
    interpolation: str,
    crop_mode: str,
    crop_pct: float,
    mean: Any,
    std: Any,
) -> None:
    config = {
        "input_size": [3, *size],
        "interpolation": interpolation,
        "crop_mode": crop_mode,
        "crop_pct": crop_pct,
    }
    config |= {"mean": mean, "std": std}
    image = noise(*picture)
    try:
        theirs = eval_transform(config)(image).numpy()
    except (ValueError, ZeroDivisionError):
        return  # Pillow makes no picture of no pixels: timm has no answer to compare with
    ours = Preprocessing(config)(image)
    assert ours.dtype == np.float32
    assert ours.shape == (3, *size)
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


def test_every_value_of_a_channel_is_normalised_alike() -> None:
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))
    config = GOOD | {"input_size": [3, 16, 16], "crop_pct": 1.0}
    np.testing.assert_array_equal(Preprocessing(config)(ramp), eval_transform(config)(ramp).numpy())


def test_a_picture_of_one_column_does_not_stop_border_mode() -> None:
    """timm rounds its width to 0 and fails."""
    assert Preprocessing(GOOD | {"crop_mode": "border"})(noise(1, 300)).shape == (3, 32, 32)


def test_a_picture_that_would_fill_the_memory_is_no_picture() -> None:
    with pytest.raises(UndecodableError, match="too long and narrow"):
        Preprocessing(GOOD | {"input_size": [3, 224, 224]})(
            Image.new("RGB", (30_000, 1)).resize((3_000_000, 1))
        )


@pytest.mark.parametrize(
    "change",
    [
        {"interpolation": "random"},
        {"interpolation": ["bicubic"]},
        {"crop_mode": "fancy"},
        {"input_size": [1, 32, 32]},
        {"input_size": [3, 0, 32]},
        {"input_size": [3, 10**9, 10**9]},
        {"input_size": 32},
        {"crop_pct": 1e-6},
        {"crop_pct": -1.0},
        {"crop_pct": float("nan")},
        {"std": [0.2, 0.0, 0.2]},
        {"mean": [float("inf"), 0.0, 0.0]},
        {"mean": [0.5]},
        {"mean": None},
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match="preprocessing"):
        Preprocessing(GOOD | change)


@pytest.mark.parametrize("missing", ["input_size", "mean", "std", "interpolation"])
def test_a_missing_setting_is_named(missing: str) -> None:
    with pytest.raises(ArtefactError, match=missing):
        Preprocessing({key: value for key, value in GOOD.items() if key != missing})
