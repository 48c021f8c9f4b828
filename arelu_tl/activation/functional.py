"""AReLU as one autograd function of the input map and its two parameters.

Three bodies compute its map, with bitwise equal forward results: a one-pass kernel in C on the CPU
(``fused``), one in Triton on a GPU, and ATen's operators everywhere else (``portable``). The
transformations of the parameters themselves, on one or C numbers, are part of the function too, so
that a site is one node of autograd's graph.

A derivative that is itself to be differentiated (``create_graph=True``) is computed by ATen's
operators, which torch can differentiate any number of times. The same holds for torch.func,
forward-mode differentiation, tracers and exporters.

Under torch.compile, ATen's operators are used as well, not the kernel behind ``operators``:
inductor fuses them with the preceding normalisation into one pass, which is worth more than the
kernel. (A training step of three convolutions and two BatchNorms on one core takes 0.95 to 1.02
times as long as with ReLU; with the kernel, 1.35 to 1.49 times.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from arelu_tl.activation import portable
from arelu_tl.activation.bodies import body_for
from arelu_tl.activation.layout import (
    accumulation_dtype,
    as_stored,
    check_parameters,
    over_channels,
)

__all__ = ["ALPHA_MAX", "ALPHA_MIN", "arelu"]

ALPHA_MIN = 0.01
ALPHA_MAX = 0.99


def _bounds(dtype: torch.dtype) -> tuple[float, float, float, float]:
    ends = torch.tensor((ALPHA_MIN, ALPHA_MAX), dtype=dtype)
    beyond = torch.nextafter(ends, torch.tensor((-1.0, 2.0), dtype=dtype))
    low, high, below, above = *ends.tolist(), *beyond.tolist()
    return low, high, below, above


# 0.01 and 0.99 as rounded to each dtype, so that an alpha set to a bound counts as inside, and the
# next numbers beyond.
_BOUNDS = {
    dtype: _bounds(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}

_hardtanh_backward: Callable[..., Tensor] = torch.ops.aten.hardtanh_backward.default
_sigmoid_backward: Callable[..., Tensor] = torch.ops.aten.sigmoid_backward.default
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def _in(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in ``dtype``.

    No call is made if it already is, because on a small map the calls dominate a site's time.
    """
    return x if x.dtype is dtype else x.to(dtype)


class _AReLU(torch.autograd.Function):
    """Autograd function behind ``arelu``; dy/dx(0) = 0, as in the paper's code.

    With s = sigmoid(beta): dy/dalpha sums scale * grad * x over x < 0 while alpha is within its
    bounds or on one. (torch's own clamp is certain to give no gradient on the bounds since 2.15, so
    an alpha put there by projection or initialisation would never leave.) dy/dbeta sums scale * s *
    (1 - s) * grad * x over x > 0.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor | float, cap: float | None,
        channel_dim: int,
        inplace: bool, keeps_output: bool,
    ) -> Tensor:  # fmt: skip
        check_parameters(x, alpha, channel_dim)
        cap = None if cap is None else as_stored(cap, x.dtype)
        if inplace:
            ctx.mark_dirty(x)
        if x.is_meta:
            # Only the shape matters here, and computing it operator by operator in Python would
            # take most of surgery's time.
            y, positive = (
                x if inplace else torch.empty_like(x),
                torch.empty_like(alpha, dtype=accumulation_dtype(x.dtype)),
            )
            negative = positive
        else:
            positive, negative = _slopes_as_numbers(alpha, beta, scale, accumulation_dtype(x.dtype))
            y = body_for(x, alpha.numel(), channel_dim).forward(
                x, positive, negative, cap, channel_dim, inplace=inplace
            )
        # The map is strictly increasing below the cap, so the output alone can replace the input.
        # This lets an in-place site store no activation of its own (observed in In-Place ABN, arXiv
        # 1712.02616).
        ctx.save_for_backward(y if keeps_output else x, positive, negative, alpha, beta)
        ctx.options = scale, cap, channel_dim, keeps_output
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, positive, negative, alpha, beta = ctx.saved_tensors
        scale, cap, channel_dim, output = ctx.options
        summed = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The result will itself be differentiated, so it must be made by torch's operators,
            # from slopes that depend on alpha and beta. (A compiled backward pass cannot be
            # differentiated; torch raises an error.)
            positive, negative = _slopes(alpha, beta, scale, accumulation_dtype(kept.dtype))
            backward: Callable[..., tuple[Tensor, portable.Sums | None]] = (
                portable.differentiable_backward
            )
        else:
            backward = body_for(kept, positive.numel(), channel_dim).backward
        grad_x, sums = backward(
            grad, kept, positive, negative, cap, channel_dim, output=output, summed=summed
        )
        if sums is None:
            return grad_x, None, None, None, None, None, None, None
        wide = accumulation_dtype(alpha.dtype)
        above, below = (_in(total, wide) for total in sums)
        if output:  # the sums are of the output, which is the input times its slope
            above, below = above / _in(positive, wide), below / _in(negative, wide)
        _, _, under, over = _BOUNDS[alpha.dtype]
        on_alpha = _hardtanh_backward(_in(below * scale, alpha.dtype), alpha, under, over)
        on_beta = _in(_sigmoid_backward(above * scale, _in(beta, wide).sigmoid()), beta.dtype)
        return grad_x, on_alpha, on_beta, None, None, None, None, None


def _slopes_as_numbers(
    alpha: Tensor, beta: Tensor, scale: Tensor | float, working: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (positive, negative) without a graph."""
    # Parameters in half precision would round 1 + sigmoid(beta) to three digits.
    wide = accumulation_dtype(alpha.dtype)
    low, high, _, _ = _BOUNDS[alpha.dtype]
    positive = _in(beta, wide).sigmoid().add_(1).mul_(scale)
    negative = _in(alpha.clamp(low, high), wide).mul_(scale)
    return _in(positive, working), _in(negative, working)


def arelu(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    *,
    scale: Tensor | float = 1.0,
    cap: float | None = None,
    inplace: bool = False,
    channel_dim: int = 1,
) -> Tensor:
    """AReLU (arXiv 2006.13858, equation 3) times a constant, with an optional cap.

    y = min(cap, scale * (1 + sigmoid(beta)) * x) for x >= 0, scale * clamp(alpha, 0.01, 0.99) * x
    for x < 0.

    Args:
        x: pre-activation, any shape and floating dtype.
        alpha: slope of negative elements, shape (1,) or (C,); gets no gradient outside [0.01,
            0.99].
        beta: amplification of positive elements before the sigmoid, same shape as ``alpha``.
        scale: positive constant on both branches, without gradient. (AReLU is positively
            homogeneous, so neighbouring layers can absorb it.)
        cap: upper bound of the output (6.0 at a ReLU6 site), or None; the gradient at and above the
            bound is 0.
        inplace: overwrite ``x``; the backward pass then works from the output.
        channel_dim: dimension that (C,) parameters belong to.

    Returns:
        A tensor like ``x``.

    Raises:
        ValueError: the parameters have shape (C,) and ``x`` another number of channels, or they are
            on another device.
    """
    if _must_be_written_out():
        with _sizes_are_constants():
            y = _written_out(x.clone() if inplace else x, alpha, beta, scale, cap, channel_dim)
        return x.copy_(y) if inplace else y
    result: Tensor
    if torch.compiler.is_compiling():
        # The output is saved, which the next layer saves as well; saving the input would mean
        # writing a second map. For in-place sites, the compiler cannot look into an operation that
        # marks its input as overwritten, but it removes copies.
        result = _AReLU.apply(x, alpha, beta, scale, cap, channel_dim, False, True)
        return x.copy_(result) if inplace else result
    result = _AReLU.apply(x, alpha, beta, scale, cap, channel_dim, inplace, inplace)
    return result


def _must_be_written_out() -> bool:
    """Whether the caller can only use operators that are torch's own.

    An exporter and a tracer keep operators but not our gradient; torch.func and forward-mode
    differentiation decompose the operators.
    """
    return (
        torch.compiler.is_exporting()
        or _is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


@contextmanager
def _sizes_are_constants() -> Iterator[None]:
    """Suppress a tracer's warnings about reading the number of channels.

    It depends on the model's own parameters, so it is the same in every run.
    """
    if not _is_tracing():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def _slopes(
    alpha: Tensor, beta: Tensor, scale: Tensor | float, working: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (positive, negative), differentiable; an alpha on a bound still learns."""
    wide = accumulation_dtype(alpha.dtype)
    low, high, _, _ = _BOUNDS[alpha.dtype]
    clamped = alpha.detach().clamp(low, high)
    within = torch.where(alpha.detach() == clamped, alpha, clamped)
    positive, negative = (
        (slope * scale).to(working) for slope in (1 + beta.to(wide).sigmoid(), within.to(wide))
    )
    return positive, negative


def _written_out(
    x: Tensor, alpha: Tensor, beta: Tensor, scale: Tensor | float, cap: float | None,
    channel_dim: int
) -> Tensor:  # fmt: skip
    """Compute the same values and gradients by operators that are themselves differentiable."""
    check_parameters(x, alpha, channel_dim)
    working = accumulation_dtype(x.dtype)
    positive, negative = (
        over_channels(slope, x, channel_dim) for slope in _slopes(alpha, beta, scale, working)
    )
    wide_x = x.to(working)
    # The gradient at 0 is 0, as in the paper's code.
    y = torch.where(wide_x == 0, 0.0, torch.where(wide_x > 0, wide_x * positive, wide_x * negative))
    if cap is not None:
        bound = as_stored(cap, x.dtype)
        y = y.masked_fill(y >= bound, bound)
    return y.to(x.dtype)
