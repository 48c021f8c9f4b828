"""The head's rate: cross-validated on features, the same wherever it is chosen."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.training.head_rate import HeadTraining, choose_head_rate, half_decade

CLASSES, WIDTH = 4, 24


def separable(scale: float = 1.0, count: int = 160, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=stream)
    features = centres[labels] + noise * torch.randn(count, WIDTH, generator=stream)
    return scale * features, labels


def training(opt: str = "adamw", steps: int = 40, head: nn.Module | None = None) -> HeadTraining:
    head = nn.Linear(WIDTH, CLASSES) if head is None else head
    return HeadTraining(head, OptimizerSettings(opt=opt), batch_size=16, steps=steps)


def test_the_rate_with_the_smallest_loss_wins_and_has_worse_neighbours() -> None:
    features, labels = separable()
    chosen = choose_head_rate(training(), features, labels, range(len(labels)), usual=1e-3)
    losses = dict(chosen.tried)
    assert losses[chosen.lr] == min(losses.values())
    rates = [lr for lr, _ in chosen.tried]
    assert rates == sorted(rates)
    assert rates[0] < chosen.lr < rates[-1]
    assert losses[chosen.lr] < 0.5 * math.log(CLASSES)
    assert (chosen.pictures, chosen.views, chosen.steps) == (160, 160, 40)


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e2])
def test_small_features_get_a_large_rate_and_large_ones_a_small(scale: float) -> None:
    features, labels = separable(scale)
    chosen = choose_head_rate(training("sgd"), features, labels, range(len(labels)), usual=1e-3)
    # A step of SGD on the logits goes with the square of the features: its best rate with 1 / scale ** 2.
    assert 0.01 < chosen.lr * scale**2 < 100
    assert dict(chosen.tried)[chosen.lr] < math.log(CLASSES)


def test_neither_the_heads_start_nor_the_generators_matter_and_both_stay() -> None:
    features, labels = separable()
    one, other = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)
    before = copy.deepcopy(one.state_dict())
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = choose_head_rate(training(head=one), features, labels, range(len(labels)), usual=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert (
        choose_head_rate(training(head=other), features, labels, range(len(labels)), usual=1e-3)
        == first
    )
    for key, value in one.state_dict().items():
        assert torch.equal(value, before[key])


def test_views_of_a_picture_are_held_out_together() -> None:
    """Rows that only name their picture: a head that has seen a view would know the others' label."""
    pictures = [n % 32 for n in range(128)]
    labels = torch.tensor([(n * 7 // 3) % CLASSES for n in pictures])
    features = 5 * torch.eye(32)[pictures]
    chosen = choose_head_rate(
        HeadTraining(nn.Linear(32, CLASSES), OptimizerSettings(), batch_size=16, steps=48),
        features,
        labels,
        pictures,
        usual=1e-3,
    )
    assert all(loss is None or loss >= math.log(CLASSES) - 1e-3 for _, loss in chosen.tried)


@pytest.mark.parametrize("each", [1, 2, 20])
def test_where_features_tell_nothing_the_usual_rate_stands_and_not_the_least(each: int) -> None:
    """Of what cannot be learnt, the head that learns least has the smallest loss: a rate that trains nothing."""
    labels = torch.arange(each * CLASSES) % CLASSES
    features = torch.eye(len(labels))
    head = training(head=nn.Linear(len(labels), CLASSES))
    chosen = choose_head_rate(head, features, labels, range(len(labels)), usual=0.005)
    assert min(loss for _, loss in chosen.tried) >= math.log(CLASSES) * 0.999
    assert chosen.lr == 0.005
    assert "0.005" in chosen.line()


@settings(deadline=None, max_examples=20)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    views=st.integers(1, 3),
)
def test_any_set_of_pictures_gets_a_rate(labels: list[int], views: int) -> None:
    pictures = [n for n in range(len(labels)) for _ in range(views)]
    rows = torch.tensor([labels[n] for n in pictures])
    features = torch.randn(len(pictures), WIDTH, generator=torch.Generator().manual_seed(0))
    chosen = choose_head_rate(training(steps=2), features, rows, pictures, usual=1e-3)
    assert 1e-7 <= chosen.lr <= 100
    assert chosen.lr == 1e-3 or chosen.lr in dict(chosen.tried)


def test_a_rate_at_which_it_breaks_is_not_chosen() -> None:
    features, labels = separable(1e3)
    chosen = choose_head_rate(training("sgd"), features, labels, range(len(labels)), usual=1e-3)
    assert chosen.lr < 1e-3
    assert dict(chosen.tried)[chosen.lr] is not None
    broken = torch.full_like(features, float("nan"))
    assert {
        loss
        for _, loss in choose_head_rate(training(), broken, labels, range(160), usual=1e-3).tried
    } == {None}


def test_rates_are_half_decades() -> None:
    assert [half_decade(n) for n in range(-8, 1)] == [
        1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0,
    ]  # fmt: skip
