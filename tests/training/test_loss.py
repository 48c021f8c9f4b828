"""The loss that classes of different sizes are trained with."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from arelu_tl.training.step import training_loss

stream = torch.Generator().manual_seed(0)
LOGITS, LABELS = torch.randn(12, 3, generator=stream), torch.tensor([0] * 8 + [1] * 3 + [2])
WEIGHTS = (12 / (3 * 8), 12 / (3 * 3), 12 / (3 * 1))


def test_without_weights_it_is_plain_cross_entropy() -> None:
    assert torch.equal(
        training_loss(LOGITS, LABELS, smoothing=0.1),
        F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1),
    )
    assert torch.equal(
        training_loss(LOGITS, LABELS, class_weights=(1.0, 1.0, 1.0)),
        F.cross_entropy(LOGITS, LABELS),
    )


def test_with_them_every_class_counts_the_same() -> None:
    each = F.cross_entropy(LOGITS, LABELS, reduction="none")
    means = torch.stack([each[label == LABELS].mean() for label in range(3)])
    torch.testing.assert_close(training_loss(LOGITS, LABELS, class_weights=WEIGHTS), means.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_parts_of_a_batch_add_up_to_it(smoothing: float) -> None:
    parts = [
        training_loss(logits, labels, smoothing=smoothing, class_weights=WEIGHTS)
        * len(labels)
        / len(LABELS)
        for logits, labels in zip(LOGITS.split(5), LABELS.split(5), strict=True)
    ]
    torch.testing.assert_close(
        sum(parts), training_loss(LOGITS, LABELS, smoothing=smoothing, class_weights=WEIGHTS)
    )


def test_half_precision_weighs_in_full() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        told = training_loss(LOGITS.bfloat16(), LABELS, class_weights=WEIGHTS)
    assert told.dtype == torch.float32
