"""The proof lets through what is the same, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arelu_tl.errors import ArtefactError
from arelu_tl.exporting.proof import proof_batches, prove

LOGITS = torch.tensor([[3.0, 1.0, -2.0], [0.5, 9.0, 4.0]])


def reference(batch: Tensor) -> Tensor:
    return LOGITS[: len(batch)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda y: y + 1e-3, "logits differ"),
        (lambda y: y * float("nan"), "logits differ"),
        (lambda y: y[:, :2], "shape"),
        (lambda y: y.flip(1), "logits differ"),
    ],
)
def test_another_answer_is_refused(change: Callable[[Tensor], Tensor], told: str) -> None:
    with pytest.raises(ArtefactError, match=told):
        prove("it", reference, lambda batch: change(reference(batch)), [torch.zeros(2, 1)])


def test_rounding_is_let_through_and_measured() -> None:
    proof = prove("it", reference, lambda batch: reference(batch) * (1 + 1e-6), [torch.zeros(2, 1), torch.zeros(1, 1)])
    assert (proof.runtime, proof.inputs) == ("it", 3)
    assert proof.difference == pytest.approx(9e-6, rel=0.1)
    assert 0 < proof.share < 0.1


def test_a_tie_may_fall_either_way() -> None:
    tied = torch.tensor([[1.0, 1.0 + 1e-6]])
    prove("it", lambda _: tied, lambda _: tied.flip(1), [torch.zeros(1, 1)])


def test_batches_of_one_two_and_seven_of_noise_and_of_pictures() -> None:
    batches = proof_batches((3, 8, 8), torch.zeros(10, 3, 8, 8))
    assert [len(batch) for batch in batches] == [1, 2, 7, 1, 2, 7]
    assert [len(batch) for batch in proof_batches((3, 8, 8), None)] == [1, 2, 7]
    assert [len(batch) for batch in proof_batches((3, 8, 8), torch.zeros(2, 3, 8, 8))] == [1, 2, 7, 1, 1]
