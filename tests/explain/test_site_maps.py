"""Tensors of sites as maps, whatever their layout, and the numbers told of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arelu_tl.explain.features.maps import as_maps, cut_out, map_size, measure, most_active
from arelu_tl.surgery.watch import Passage

MAPS = torch.arange(5 * 6 * 4, dtype=torch.float32).view(5, 6, 4)
TOKENS = MAPS.flatten(1)
CLASS = torch.full((5, 1), -1.0)


@pytest.mark.parametrize(
    ("x", "channel_dim", "prefix"),
    [
        (MAPS[None], 1, 0),
        (MAPS.permute(1, 2, 0)[None], 3, 0),
        (MAPS.permute(1, 2, 0)[None], -1, 0),
        (TOKENS.T[None], -1, 0),
        (TOKENS[None], 1, 0),
        (torch.cat([CLASS, TOKENS], 1).T[None], 2, 1),
        (TOKENS.T[None], -1, 1),  # a class token that joins in later layers only
    ],
    ids=[
        "NCHW",
        "NHWC",
        "channels last",
        "tokens",
        "channels of tokens",
        "class token",
        "no class token yet",
    ],
)
def test_every_layout_gives_the_same_maps(x: Tensor, channel_dim: int, prefix: int) -> None:
    size = map_size(x.shape, channel_dim, (96, 64), prefix)
    assert size == (6, 4)
    assert torch.equal(as_maps(x, channel_dim, size), MAPS)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 16), st.integers(0, 2))
def test_tokens_of_any_grid(height: int, width: int, patch: int, prefix: int) -> None:
    shape, picture = (1, prefix + height * width, 8), (height * patch, width * patch)
    size = map_size(shape, 2, picture, prefix)
    assert size == ((height, width) if height * width > 1 else None)


@pytest.mark.parametrize(
    ("shape", "channel_dim", "prefix"),
    [
        ((1, 8), 1, 0),
        ((1, 8, 1, 1), 1, 0),
        ((4, 8, 7, 7), 1, 0),  # windows of one picture
        ((1, 7, 8), -1, 0),
        ((1, 1, 8), -1, 1),
        ((1, 2, 8, 7, 7), 1, 0),
    ],
    ids=["vector", "one place", "windows", "no grid", "class token alone", "five dimensions"],
)
def test_what_is_no_map(shape: tuple[int, ...], channel_dim: int, prefix: int) -> None:
    assert map_size(shape, channel_dim, (64, 64), prefix) is None


def test_the_most_active_channels_count_both_arms_alike() -> None:
    shape = torch.linspace(-1, 1, 16).view(1, 4, 4)
    first = torch.cat([0 * shape + 100, 3 * shape, 1 * shape, 2 * shape])
    assert most_active([first], 3) == [1, 3, 2]  # the first is large, and nothing to be seen
    second = 1000 * torch.cat([0 * shape, 0 * shape, 3 * shape, 0 * shape])
    assert most_active([first, second], 2) == [2, 1]
    assert most_active([torch.zeros(2, 3, 3)], 4) == [0, 1]


def test_the_numbers_of_a_site() -> None:
    before = torch.tensor([[-2.0, -1.0, 0.0, 3.0, 8.0]])
    told = measure(Passage(before, before.clamp(0, 6), torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.75]])))
    assert told.negative_share == pytest.approx(0.4)
    assert told.zero_share == pytest.approx(0.6)
    assert told.attention == pytest.approx(2.75 / 5)
    assert told.attention_negative == 0
    assert told.attention_positive == pytest.approx(2.75 / 3)
    assert told.energy_before == pytest.approx(78 / 5)
    assert told.energy_after == pytest.approx(45 / 5)
    positive = torch.ones(1, 3)
    told = measure(Passage(positive, positive * math.inf, positive))
    assert told.attention_negative is None
    assert told.energy_after is None
    assert measure(Passage(positive, positive, None)).attention is None


def test_the_maps_of_chosen_channels() -> None:
    x = MAPS.permute(1, 2, 0)[None]
    maps = cut_out(Passage(x, x * 2, x * 3), [4, 1], 3, (6, 4))
    np.testing.assert_array_equal(maps.before, MAPS[[4, 1]])
    np.testing.assert_array_equal(maps.after, 2 * MAPS[[4, 1]])
    np.testing.assert_array_equal(maps.attention, 3 * MAPS[[4, 1]])
    np.testing.assert_array_equal(maps.mean_attention, 3 * MAPS.mean(0))
    assert cut_out(Passage(x, x, None), [0], 3, (6, 4)).attention is None
