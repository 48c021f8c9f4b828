"""Prove that an exported model answers as the trained one does; nothing is exported without it.

The reference is the trained model in float64. Its float32 answers are rounded, on each processor
in a different way, and the export is not to blame for that difference. Two comparisons are made.

In float32, a candidate's error may be ``MULTIPLE`` times the float32 error of the trained model
itself on the same pictures, in the worst of three forms. It may always be ``FLOOR`` of the largest
logit. The factor is derived as follows. A sum of K products in one accumulator has an error of
about sqrt(K) roundings; in c parallel accumulators, of sqrt(K / c). From a plain loop to the widest
registers (4 registers of 16 numbers) c goes from 1 to 64: a factor of 8. A fused multiply-add saves
one of two roundings, folded weights are rounded once more, and Winograd convolutions add more
roundings than they save: another factor of 2. (``tests/exporting/rounding.py`` has the
measurements, over 6 families and several rounding conditions.)

That comparison misses small changes: a small slope of a site may be wrong by a percent without
moving any logit by ``FLOOR``. So a torch candidate is also run in float64. The only error left is
then the rounding of its weights when they were stored, which hardly depends on the processor. It
may be ``STORED_MULTIPLE`` times the error of the trained model when each of its numbers is moved
by up to half a unit in the last place.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from arelu_tl.errors import ArtefactError

MULTIPLE = 16.0
FLOOR = 1e-4
STORED_MULTIPLE = 4.0
# A share of the largest logit: for float64's own rounding, and for constants that a runtime takes
# in float32.
STORED_FLOOR = 2.0**-24

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Proof:
    """The result of comparing one candidate with its reference.

    Attributes:
        runtime: what computed the answers.
        inputs: number of pictures compared, in all batches.
        difference: largest absolute error of an answer.
        share: largest ratio of an error to its limit, in float32 or float64.
        own: largest error of the trained model itself in float32.
        stored: largest absolute error in float64 with the stored weights; None where the candidate
            cannot be run in float64.
        answers: logits or probabilities.
        of: whose answers are the reference.
    """

    runtime: str
    inputs: int
    difference: float
    share: float
    own: float
    stored: float | None = None
    answers: str = "logits"
    of: str = "the trained model's in float64"


@dataclass(frozen=True)
class Yardstick:
    """The reference for candidates, with an entry per batch in each list.

    Attributes:
        batches: (B, C, H, W) each.
        answers: the trained model's, float64 (B, classes) each.
        own: what float32 costs the trained model: its largest error on any batch, in proportion to
            the largest logit of each.
        stored: the trained model's largest error when its weights are rounded once more.
    """

    batches: list[Tensor]
    answers: list[Tensor]
    own: list[float]
    stored: list[float]


def measure(model: nn.Module, batches: Sequence[Tensor]) -> Yardstick:
    """Evaluate the trained ``model``, in eval mode, on ``batches``, (B, C, H, W) each.

    Raises:
        ArtefactError: it does not run in float64, or an answer is NaN or infinite.
    """
    batches = list(batches)
    exact = [in_float64(model)(batch) for batch in batches]
    own = [0.0] * len(batches)
    for form in _forms(model):
        own = [
            max(cost, _apart(form(batch), y))
            for cost, batch, y in zip(own, batches, exact, strict=True)
        ]
    stored = [0.0] * len(batches)
    for seed in range(2):
        moved = in_float64(_rounded_once_more(model, seed))
        stored = [
            max(cost, _apart(moved(batch), y))
            for cost, batch, y in zip(stored, batches, exact, strict=True)
        ]
    largest = [float(y.abs().max()) for y in exact]
    if not all(map(math.isfinite, (*own, *stored, *largest))):
        raise ArtefactError(
            "the trained model does not answer with finite numbers; nothing was written"
        )
    # A batch of one picture may come out exact by luck, here and not on the next machine: what
    # counts is the worst of them all, in proportion to their logits.
    worst = max((cost / size for cost, size in zip(own, largest, strict=True) if size), default=0.0)
    own = [worst * size for size in largest]
    return Yardstick(batches, exact, own, stored)


def prove(runtime: str, yardstick: Yardstick, candidate: Answer) -> Proof:
    """Compare the answers of ``candidate`` with the trained model's.

    They are compared in float32 and, where ``candidate`` is a module, also in float64.

    Raises:
        ArtefactError: the error is over its limit, or another class is first (see ``hold``).
    """
    share = difference = 0.0
    exact = in_float64(candidate) if isinstance(candidate, nn.Module) else None
    stored = None if exact is None else 0.0
    for batch, expected, own, rounded in zip(
        yardstick.batches, yardstick.answers, yardstick.own, yardstick.stored, strict=True
    ):
        largest = float(expected.abs().max())
        answer = candidate(batch)
        allowed = max(MULTIPLE * own, FLOOR * largest)
        error = hold(runtime, answer, expected, allowed)
        difference, share = max(difference, error), max(share, _share(error, allowed))
        if exact is not None and stored is not None:
            allowed = max(STORED_MULTIPLE * rounded, STORED_FLOOR * largest)
            error = hold(f"{runtime}, computed in float64,", exact(batch), expected, allowed)
            stored, share = max(stored, error), max(share, _share(error, allowed))
    inputs = sum(map(len, yardstick.batches))
    return Proof(runtime, inputs, difference, share, max(yardstick.own, default=0.0), stored)


def hold(
    runtime: str, given: Tensor, expected: Tensor, allowed: float, *, answers: str = "logits"
) -> float:
    """Return the largest absolute error of ``given`` against ``expected``, both (B, classes).

    Raises:
        ArtefactError: the error is NaN or over ``allowed``; or another class is first, and
            ``expected`` has the two classes more than ``allowed`` apart.
    """
    if expected.shape != given.shape:
        raise ArtefactError(
            f"{runtime}: {answers} of shape {tuple(given.shape)} "
            f"where the trained model has {tuple(expected.shape)}"
        )
    error = _apart(given, expected)
    # `not <=` rather than `>`, so that NaN fails too.
    if not error <= allowed:
        raise ArtefactError(
            f"{runtime} does not answer as the trained model: {answers} differ by {error:.3g}, "
            f"allowed {allowed:.3g}; nothing was written"
        )
    first, named = expected.argmax(1, keepdim=True), given.argmax(1, keepdim=True)
    if bool((expected.gather(1, first) - expected.gather(1, named) > allowed).any()):
        raise ArtefactError(
            f"{runtime} names another first class than the trained model; nothing was written"
        )
    return error


def proof_batches(
    input_size: Sequence[int], pictures: Tensor | None, *, seed: int = 0
) -> list[Tensor]:
    """Make batches of 1, 2 and 7: random input, then ``pictures`` (N, C, H, W) if there are any."""
    stream = torch.Generator().manual_seed(seed)
    batches = [torch.randn(size, *input_size, generator=stream) for size in (1, 2, 7)]
    if pictures is not None and len(pictures):
        batches += [pictures[:1], pictures[1:3], pictures[3:10]]
    return [batch for batch in batches if len(batch)]


def _apart(given: Tensor, expected: Tensor) -> float:
    return float((given.double() - expected.double()).abs().max())


def _share(error: float, allowed: float) -> float:
    return error / allowed if allowed else 0.0


def _forms(model: nn.Module) -> Iterator[Answer]:
    """Yield ``model`` in three float32 forms that round differently.

    They are: contiguous, channels last, and without oneDNN.
    """
    for layout in (torch.contiguous_format, torch.channels_last):
        yield _laid_out(model, layout)

    def plain(batch: Tensor) -> Tensor:
        with _without_onednn():
            answer: Tensor = model(batch)
            return answer

    yield plain


def _laid_out(model: nn.Module, layout: torch.memory_format) -> Answer:
    form: nn.Module = copy.deepcopy(model).to(memory_format=layout)
    return lambda batch: form(batch.to(memory_format=layout))


@contextmanager
def _without_onednn() -> Iterator[None]:
    before = torch.backends.mkldnn.set_flags(  # type: ignore[no-untyped-call]
        _enabled=False, _fp32_precision=None
    )
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(  # type: ignore[no-untyped-call]
            _enabled=before[0], _fp32_precision=None
        )


def _rounded_once_more(model: nn.Module, seed: int) -> nn.Module:
    """Return ``model`` in float64 with each of its numbers rounded once more, at random.

    A number moves by up to half a unit in the last place of float32.
    """
    moved = copy.deepcopy(model).double()
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number in (*moved.parameters(), *moved.buffers()):
            if number.is_floating_point():
                number.mul_(
                    1
                    + (2 * torch.rand(number.shape, generator=stream, dtype=torch.float64) - 1)
                    * 2.0**-24
                )
    return moved


def in_float64(model: nn.Module) -> Answer:
    """Make a function that computes ``model``, with its weights as they are, in float64.

    It takes float32 pictures (B, C, H, W).
    """
    run: Answer = (
        _Float64(model).run if isinstance(model, fx.GraphModule) else copy.deepcopy(model).double()
    )

    def answer(batch: Tensor) -> Tensor:
        try:
            return run(batch.double())
        except RuntimeError as error:
            raise ArtefactError(
                f"this model does not run in float64: {' '.join(str(error).split())[:200]}"
            ) from error

    return answer


class _Float64(fx.Interpreter):
    """Runs a graph, captured in float32, in float64."""

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten._assert_tensor_metadata.default:
            return None
        args, kwargs = pytree.tree_map_only(torch.dtype, _widened, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # torch.export puts checks of the input's shape and of its dtype, float32, first: skip them.
        return (
            None if str(target).startswith("_guards") else super().call_module(target, args, kwargs)
        )


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else dtype
