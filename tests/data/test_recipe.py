"""What is made of a picture once: no larger than needed, as evaluation needs it to the bit, and never a damaged file's."""

from __future__ import annotations

import io
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data

from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.data.loader import eval_transform, eval_view, train_view
from arelu_tl.data.recipe import Evaluated, Recipe, Reduced, Whole, for_crops
from arelu_tl.records.settings import AugmentSettings

CONFIG = {
    "input_size": [3, 32, 24],
    "interpolation": "bicubic",
    "mean": [0.4] * 3,
    "std": [0.2] * 3,
    "crop_pct": 0.875,
}


def photograph(width: int = 300, height: int = 200) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((width, height))


def encode(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def made(recipe: Recipe, content: bytes) -> Image.Image:
    return recipe.reduce(recipe.open(content))


def distance(reduced: Image.Image, whole: Image.Image) -> float:
    """How far it is from the whole picture at that size, in units of the distance that a shift by one pixel makes."""
    expected = np.asarray(whole.resize(reduced.size, Image.Resampling.LANCZOS), float)
    shift = np.abs(expected[:, 1:] - expected[:, :-1]).mean()
    return float(np.abs(np.asarray(reduced, float) - expected).mean() / shift)


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(8, 150), st.sampled_from(["JPEG", "PNG"])
)
@settings(deadline=None, max_examples=60)
def test_a_reduced_picture_has_the_side_asked_for_and_its_old_shape(
    width: int, height: int, side: int, kind: str
) -> None:
    picture = made(Reduced(side), encode(photograph(width, height), kind))
    assert picture.mode == "RGB"
    assert min(picture.size) == min(side, width, height)
    shorter, longer = sorted((width, height))
    if shorter <= side:
        assert picture.size == (width, height)
    else:
        # A JPEG decoded at an eighth is rounded up to whole pixels first: one in `side` at most.
        assert max(picture.size) == pytest.approx(longer * side / shorter, abs=1 + longer / shorter)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [140, 90, 40, 20])
def test_a_reduced_picture_shows_the_same(kind: str, side: int) -> None:
    content = encode(photograph(), kind, quality=95)
    reduced = made(Reduced(side), content)
    assert reduced.size == (side * 3 // 2, side)
    assert distance(reduced, open_picture(content)) < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_photograph_stands_as_its_camera_was_held(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(photograph(), quality=95, exif=exif)
    reduced = made(Reduced(40), content)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert reduced.size == ((40, 60) if orientation > 4 else (60, 40))
    assert distance(reduced, upright) < 0.5


def test_a_large_jpeg_is_decoded_small() -> None:
    content = encode(photograph(900, 640))
    assert open_picture(content, at_least=80).size == (113, 80)
    assert open_picture(content, at_least=81).size == (225, 160)
    assert open_picture(content, at_least=640).size == open_picture(content).size == (900, 640)


JPEGS = {
    "baseline": encode(photograph(), quality=85),
    "progressive": encode(photograph(), quality=85, progressive=True),
    "grey": encode(photograph().convert("L")),
    "CMYK": encode(photograph().convert("CMYK")),
    "restart markers": encode(photograph(), restart_marker_blocks=4),
}


def is_refused(recipe: Recipe, content: bytes) -> bool:
    try:
        recipe.open(content)
    except UndecodableError:
        return True
    return False


@pytest.mark.parametrize("kind", JPEGS)
def test_damage_shows_however_small_a_jpeg_is_decoded(kind: str) -> None:
    content, draw = JPEGS[kind], random.Random(0)
    cut = [content[: draw.randrange(1, len(content) - 2)] for _ in range(40)]
    cut += [content[:-end] for end in (1, 2, 3, 10, 30)]
    spoilt = [bytearray(content) for _ in range(40)]
    for each in spoilt:
        each[draw.randrange(len(each))] = draw.randrange(256)
    verdicts = [
        [is_refused(recipe, bytes(each)) for each in cut + spoilt]
        for recipe in (Whole(), Reduced(25), Reduced(100))
    ]
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert sum(verdicts[0][:40]) == 40


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["center", "squash", "border"]),
    st.integers(8, 60),
)
@settings(deadline=None, max_examples=60)
def test_evaluation_sees_what_timm_makes_of_the_whole_picture(
    width: int, height: int, mode: str, side: int
) -> None:
    config = CONFIG | {"crop_mode": mode, "input_size": [3, side, 32]}
    view, content = eval_view(config), encode(photograph(width, height))
    try:
        expected = eval_transform(config)(open_picture(content))
    except (ValueError, ZeroDivisionError):
        return  # timm makes a picture of no pixels
    kept = made(view.recipe, content)
    assert kept.size == (32, side)
    assert torch.equal(view.transform(kept), expected)


@given(st.integers(8, 600), st.integers(8, 600), st.floats(0.01, 1))
def test_the_least_crop_of_a_square_still_fills_the_input(
    height: int, width: int, least: float
) -> None:
    side = for_crops({"input_size": [3, height, width]}, least).side
    assert math.sqrt(least) * side >= max(height, width) * (1 - 1e-12)
    assert math.sqrt(least) * (side - 1) < max(height, width)


def test_training_is_given_what_its_crops_need_and_without_augmentation_what_evaluation_is() -> (
    None
):
    config = CONFIG | {"input_size": [3, 64, 64]}
    assert train_view(config, AugmentSettings(scale=(0.25, 1.0))).recipe == Reduced(128)
    assert train_view(config, AugmentSettings(scale=(1.0, 1.0))).recipe == Reduced(64)
    assert (
        train_view(config, AugmentSettings(no_aug=True)).recipe.key == eval_view(config).recipe.key
    )


def test_a_key_tells_recipes_apart() -> None:
    changes = (
        {},
        {"crop_pct": 1.0},
        {"interpolation": "bilinear"},
        {"input_size": [3, 32, 32]},
        {"crop_mode": "squash"},
    )
    recipes = [
        Whole(),
        Reduced(64),
        Reduced(65),
        *(Evaluated(CONFIG | change) for change in changes),
    ]
    borders = [
        Evaluated(CONFIG | {"crop_mode": "border", "mean": mean}) for mean in ([0.1] * 3, [0.9] * 3)
    ]
    assert len({recipe.key for recipe in [*recipes, *borders]}) == len(recipes) + len(borders)


def test_a_key_is_of_the_pixels_not_of_what_is_done_with_them_later() -> None:
    assert (
        Evaluated(CONFIG).key
        == Evaluated(CONFIG | {"mean": [0.1] * 3, "input_size": (3, 32, 24)}).key
    )
