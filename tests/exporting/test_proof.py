"""The proof lets through what is the same up to rounding, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.errors import ArtefactError
from arelu_tl.exporting.proof import FLOOR, MULTIPLE, Yardstick, measure, proof_batches, prove
from arelu_tl.models.freeze import freeze, put_site

LOGITS = torch.tensor([[3.0, 1.0, -2.0], [0.5, 9.0, 4.0]])
# Of the largest logit, where float32 itself costs next to nothing.
ALLOWED = 9 * FLOOR


def yardstick(answers: Tensor = LOGITS, own: float = 1e-7) -> Yardstick:
    return Yardstick([torch.zeros(len(answers), 1)], [answers.double()], [own], [own / 10])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda y: y + 1.1 * ALLOWED, "logits differ"),
        (lambda y: y * float("nan"), "logits differ by nan"),
        (lambda y: y.where(y < 9, float("inf")), "logits differ by inf"),
        (lambda y: y[:, :2], "shape"),
        (lambda y: y.flip(1), "logits differ"),
    ],
)
def test_another_answer_is_refused(change: Callable[[Tensor], Tensor], told: str) -> None:
    with pytest.raises(ArtefactError, match=told):
        prove("it", yardstick(), lambda _: change(LOGITS))


def test_rounding_is_let_through_and_measured() -> None:
    """On one processor 1e-5 of the largest logit was enough; on another a right export was off by 1.6e-5 of it."""
    proof = prove("it", yardstick(own=2e-6), lambda _: LOGITS * (1 + 1.6e-5))
    assert (proof.runtime, proof.inputs, proof.own, proof.stored) == ("it", 2, 2e-6, None)
    assert proof.difference == pytest.approx(9 * 1.6e-5, rel=0.01)
    assert proof.share == pytest.approx(1.6e-5 / FLOOR, rel=0.01)


def test_where_float32_costs_the_trained_model_more_an_export_may_differ_by_more() -> None:
    proof = prove("it", yardstick(own=1e-3), lambda _: LOGITS + 0.9 * MULTIPLE * 1e-3)
    assert proof.share == pytest.approx(0.9, rel=1e-3)
    with pytest.raises(ArtefactError, match="logits differ"):
        prove("it", yardstick(own=1e-3), lambda _: LOGITS + 1.1 * MULTIPLE * 1e-3)


def test_a_tie_may_fall_either_way_and_nothing_else() -> None:
    tied = torch.tensor([[1.0, 1.0 + 0.5 * FLOOR]])
    prove("it", yardstick(tied), lambda _: tied.flip(1))
    # Each logit is within what it may be off by, and yet the first class was ahead by more than that.
    apart = torch.tensor([[1.0, 1.0 + 1.5 * FLOOR]])
    with pytest.raises(ArtefactError, match="another first class"):
        prove("it", yardstick(apart), lambda _: apart + 0.9 * FLOOR * torch.tensor([[1.0, -1.0]]))


class Net(nn.Module):
    """A convolution, a site and a head.

    Args:
        alpha: of the site.
        spoilt: what its answers are multiplied by.
    """

    def __init__(self, alpha: float = 0.5, spoilt: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Conv2d(3, 8, 3), AReLU(alpha, cap=6.0), nn.Linear(8, 5)
        self.spoilt = spoilt

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.last(self.act(self.first(x)).mean((2, 3))) * self.spoilt
        return told


@pytest.mark.parametrize(
    "spoilt", [float("nan"), float("inf"), 1e39], ids=["nan", "inf", "beyond float32"]
)
def test_a_model_without_finite_answers_is_no_yardstick(spoilt: float) -> None:
    with (
        torch.inference_mode(),
        pytest.raises(ArtefactError, match="does not answer with finite numbers"),
    ):
        measure(Net(spoilt=spoilt).eval(), proof_batches((3, 8, 8), None))


def test_what_float32_costs_is_measured_in_float64() -> None:
    model = Net().eval()
    with torch.inference_mode():
        found = measure(model, batches := proof_batches((3, 8, 8), None))
        exact = [model.double()(batch.double()) for batch in batches]
    for answers, expected, own, stored in zip(
        found.answers, exact, found.own, found.stored, strict=True
    ):
        assert answers.dtype == torch.float64
        assert torch.allclose(answers, expected, rtol=0, atol=1e-13)
        for cost in (own, stored):
            assert 2**-28 < cost / float(expected.abs().max()) < 2**-20
    # No batch is held to less than the others because it came out exact by luck.
    shares = [own / float(y.abs().max()) for own, y in zip(found.own, exact, strict=True)]
    assert max(shares) == pytest.approx(min(shares), rel=1e-6)


def test_a_small_slope_off_by_a_percent_is_seen_in_float64_alone() -> None:
    model = Net(alpha=0.01).eval()
    frozen, (site,) = freeze(model)
    with torch.inference_mode():
        found = measure(model, proof_batches((3, 8, 8), None))
        right = prove("it", found, frozen)
        assert right.stored is not None
        assert right.stored < right.share
        put_site(frozen, replace(site, slopes=[1.01 * slope for slope in site.slopes]))
        prove("it, run in float32 alone,", found, lambda batch: frozen(batch))
        with pytest.raises(ArtefactError, match="it, computed in float64, does not answer"):
            prove("it", found, frozen)


def test_batches_of_one_two_and_seven_of_noise_and_of_pictures() -> None:
    batches = proof_batches((3, 8, 8), torch.zeros(10, 3, 8, 8))
    assert [len(batch) for batch in batches] == [1, 2, 7, 1, 2, 7]
    assert [len(batch) for batch in proof_batches((3, 8, 8), None)] == [1, 2, 7]
    assert [len(batch) for batch in proof_batches((3, 8, 8), torch.zeros(2, 3, 8, 8))] == [
        1,
        2,
        7,
        1,
        1,
    ]
