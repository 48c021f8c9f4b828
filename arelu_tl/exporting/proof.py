"""Proof that an exported model answers as the trained one does; without it nothing is exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arelu_tl.errors import ArtefactError

RTOL = 1e-4
ATOL = 1e-5

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Proof:
    """Attributes:
    runtime: what answered.
    inputs: pictures compared, in all batches.
    difference: largest absolute difference of an answer.
    share: that difference as a share of what was allowed there.
    answers: logits or probabilities.
    of: whose answers these were compared with.
    """

    runtime: str
    inputs: int
    difference: float
    share: float
    answers: str = "logits"
    of: str = "the trained model's"


def prove(
    runtime: str,
    reference: Answer,
    candidate: Answer,
    batches: Sequence[Tensor],
    *,
    answers: str = "logits",
    of: str = "the trained model's",
) -> Proof:
    """Compare what two models answer to ``batches``, (B, C, H, W) each unless they take something else.

    An answer may differ by 1e-4 of itself and by 1e-5 of the batch's largest (of 1, where that is smaller), and the first class
    must be the same unless two logits are closer to each other than that.

    Raises:
        ArtefactError: they differ by more.
    """
    inputs, difference, share = 0, 0.0, 0.0
    for batch in batches:
        expected, told = reference(batch).double(), candidate(batch).double()
        if expected.shape != told.shape:
            raise ArtefactError(
                f"{runtime}: {answers} of shape {tuple(told.shape)} where the trained model has {tuple(expected.shape)}"
            )
        allowed = RTOL * expected.abs() + ATOL * max(1.0, float(expected.abs().max()))
        apart = (told - expected).abs()
        # Written so that an undefined number is not let through.
        if not bool((apart <= allowed).all()):
            raise ArtefactError(
                f"{runtime} does not answer as the trained model: {answers} differ by {float(apart.max()):.3g}, "
                f"allowed {float(allowed.flatten()[int((apart / allowed).argmax())]):.3g}; nothing was written"
            )
        first, said = expected.argmax(1, keepdim=True), told.argmax(1, keepdim=True)
        margin = expected.gather(1, first) - expected.gather(1, said)
        if bool((margin > 2 * allowed.max()).any()):
            raise ArtefactError(f"{runtime} names another first class than the trained model; nothing was written")
        inputs += len(batch)
        difference = max(difference, float(apart.max()))
        share = max(share, float((apart / allowed).max()))
    return Proof(runtime, inputs, difference, share, answers, of)


def proof_batches(input_size: Sequence[int], pictures: Tensor | None, *, seed: int = 0) -> list[Tensor]:
    """Batches of 1, 2 and 7: random input, and ``pictures`` (N, C, H, W) where there are some."""
    stream = torch.Generator().manual_seed(seed)
    batches = [torch.randn(size, *input_size, generator=stream) for size in (1, 2, 7)]
    if pictures is not None and len(pictures):
        batches += [pictures[:1], pictures[1:3], pictures[3:10]]
    return [batch for batch in batches if len(batch)]
