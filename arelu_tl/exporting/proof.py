"""Proof that an exported model answers as the trained one does; without it nothing is exported.

The yardstick is the trained model in float64: its float32 answers are rounded, by each processor in another way, and what they
differ by is no fault of the export. Two things are held against it.

What a candidate answers in float32 may be off by ``MULTIPLE`` times what float32 costs the trained model itself on the same
pictures, in the worst of three forms, and by ``FLOOR`` of the largest logit in any case. Where the factor comes from: a sum of
K products kept in one running number is off by about sqrt(K) roundings; kept in c numbers side by side, by sqrt(K / c). From
a plain loop to the widest registers (16 numbers in each of 4) c goes from 1 to 64, which makes a factor of 8. A fused
multiply-add leaves out one rounding of two, weights that normalisations and gains were folded into are rounded once more, and
Winograd's convolutions add more than they save: another factor of 2. (Measured, over 6 families and the rounding conditions of
``tests/exporting/rounding.py``: see there.)

That is too coarse for what changes little: a site's slope, where it is small, may be off by a percent and move no logit by
``FLOOR``. So a candidate of torch's is run in float64 too. What is left then is that its weights were rounded once more when they
were stored, which hardly depends on the processor. It may differ by ``STORED_MULTIPLE`` times what it costs the trained model
to have each of its numbers moved by up to half a unit in the last place.
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
# Of the largest logit: what float64 itself, and constants that a runtime takes in float32, are allowed.
STORED_FLOOR = 2.0**-24

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Proof:
    """Attributes:
    runtime: what answered.
    inputs: pictures compared, in all batches.
    difference: largest absolute error of an answer.
    share: the largest error as a share of what was allowed there, whether in float32 or in float64.
    own: largest error of the trained model itself in float32.
    stored: largest absolute error where float64 computes with the weights as they were stored; None where that cannot be done.
    answers: logits or probabilities.
    of: whose answers these were compared with.
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
    """What candidates are held to, for each batch.

    Attributes:
        batches: (B, C, H, W) each.
        answers: float64 (B, classes), the trained model's.
        own: its largest error in float32.
        stored: its largest error when its weights are rounded once more.
    """

    batches: list[Tensor]
    answers: list[Tensor]
    own: list[float]
    stored: list[float]


def measure(model: nn.Module, batches: Sequence[Tensor]) -> Yardstick:
    """Evaluate the trained ``model``, in eval mode, on ``batches``, (B, C, H, W) each.

    Raises:
        ArtefactError: it does not run in float64, or does not answer with finite numbers.
    """
    batches = list(batches)
    exact = [in_float64(model)(batch) for batch in batches]
    own = [0.0] * len(batches)
    for form in _forms(model):
        own = [max(cost, _apart(form(batch), y)) for cost, batch, y in zip(own, batches, exact, strict=True)]
    stored = [0.0] * len(batches)
    for seed in range(2):
        moved = in_float64(_rounded_once_more(model, seed))
        stored = [max(cost, _apart(moved(batch), y)) for cost, batch, y in zip(stored, batches, exact, strict=True)]
    if not all(map(math.isfinite, (*own, *stored, *(float(y.abs().max()) for y in exact)))):
        raise ArtefactError("the trained model does not answer with finite numbers; nothing was written")
    return Yardstick(batches, exact, own, stored)


def prove(runtime: str, yardstick: Yardstick, candidate: Answer) -> Proof:
    """Hold what ``candidate`` answers, in float32 and, where it is a module, in float64, to the trained model's.

    Raises:
        ArtefactError: it is off by more than is allowed, or names another first class where the two differ by more than that.
    """
    share = difference = 0.0
    exact = in_float64(candidate) if isinstance(candidate, nn.Module) else None
    stored = None if exact is None else 0.0
    for batch, expected, own, rounded in zip(yardstick.batches, yardstick.answers, yardstick.own, yardstick.stored, strict=True):
        largest = float(expected.abs().max())
        told = candidate(batch)
        allowed = max(MULTIPLE * own, FLOOR * largest)
        error = hold(runtime, told, expected, allowed)
        difference, share = max(difference, error), max(share, _share(error, allowed))
        if exact is not None and stored is not None:
            allowed = max(STORED_MULTIPLE * rounded, STORED_FLOOR * largest)
            error = hold(f"{runtime}, computed in float64,", exact(batch), expected, allowed)
            stored, share = max(stored, error), max(share, _share(error, allowed))
    inputs = sum(map(len, yardstick.batches))
    return Proof(runtime, inputs, difference, share, max(yardstick.own, default=0.0), stored)


def hold(runtime: str, told: Tensor, expected: Tensor, allowed: float, *, answers: str = "logits") -> float:
    """The largest error of ``told``, (B, classes) as ``expected``.

    Raises:
        ArtefactError: it is more than ``allowed`` or no number, or another class comes first and that is no tie.
    """
    if expected.shape != told.shape:
        raise ArtefactError(
            f"{runtime}: {answers} of shape {tuple(told.shape)} where the trained model has {tuple(expected.shape)}"
        )
    error = _apart(told, expected)
    # Written so that NaN is not let through.
    if not error <= allowed:
        raise ArtefactError(
            f"{runtime} does not answer as the trained model: {answers} differ by {error:.3g}, allowed {allowed:.3g}; "
            "nothing was written"
        )
    first, said = expected.argmax(1, keepdim=True), told.argmax(1, keepdim=True)
    if bool((expected.gather(1, first) - expected.gather(1, said) > allowed).any()):
        raise ArtefactError(f"{runtime} names another first class than the trained model; nothing was written")
    return error


def proof_batches(input_size: Sequence[int], pictures: Tensor | None, *, seed: int = 0) -> list[Tensor]:
    """Batches of 1, 2 and 7: random input, and ``pictures`` (N, C, H, W) where there are some."""
    stream = torch.Generator().manual_seed(seed)
    batches = [torch.randn(size, *input_size, generator=stream) for size in (1, 2, 7)]
    if pictures is not None and len(pictures):
        batches += [pictures[:1], pictures[1:3], pictures[3:10]]
    return [batch for batch in batches if len(batch)]


def _apart(told: Tensor, expected: Tensor) -> float:
    return float((told.double() - expected.double()).abs().max())


def _share(error: float, allowed: float) -> float:
    return error / allowed if allowed else 0.0


def _forms(model: nn.Module) -> Iterator[Answer]:
    """``model`` in float32 in forms that round in different ways: laid out by channel, by place, and without oneDNN."""
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
    before = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0], _fp32_precision=None)  # type: ignore[no-untyped-call]


def _rounded_once_more(model: nn.Module, seed: int) -> nn.Module:
    """``model`` in float64, each of its numbers moved at random by up to half a unit in float32's last place."""
    moved = copy.deepcopy(model).double()
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number in (*moved.parameters(), *moved.buffers()):
            if number.is_floating_point():
                number.mul_(1 + (2 * torch.rand(number.shape, generator=stream, dtype=torch.float64) - 1) * 2.0**-24)
    return moved


def in_float64(model: nn.Module) -> Answer:
    """``model``, with its weights as they are, computing in float64: pictures (B, C, H, W), float32, to answers."""
    run: Answer = _Float64(model).run if isinstance(model, fx.GraphModule) else copy.deepcopy(model).double()

    def answer(batch: Tensor) -> Tensor:
        try:
            return run(batch.double())
        except RuntimeError as error:
            raise ArtefactError(f"this model does not run in float64: {' '.join(str(error).split())[:200]}") from error

    return answer


class _Float64(fx.Interpreter):
    """Runs a graph in float64 that was captured in float32."""

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten._assert_tensor_metadata.default:
            return None
        args, kwargs = pytree.tree_map_only(torch.dtype, _widened, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Checks of the input's form, float32 among it, which torch.export puts in front.
        return None if str(target).startswith("_guards") else super().call_module(target, args, kwargs)


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 else dtype
