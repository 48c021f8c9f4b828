"""The two-slope map that AReLU is once its parameters have become slopes, with a closed-form backward pass.

The parameters' own transformations (clamp, sigmoid) stay ordinary autograd operations on one or C numbers, so the
formula that is written by hand here is the only one that touches whole activation maps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arelu_tl.activation import fused

__all__ = ["ALPHA_MAX", "ALPHA_MIN", "arelu", "two_slope"]

ALPHA_MIN = 0.01
ALPHA_MAX = 0.99


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is summed in float32: a site's gradient is a sum over millions of elements."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _sum_of_products(a: Tensor, b: Tensor, channel_dim: int | None) -> Tensor:
    """Sum of ``a * b`` over everything (shape (1,)) or, given a dimension, over everything but that one (shape (C,))."""
    if channel_dim is None and a.is_contiguous() and b.is_contiguous() and a.dtype in (torch.float32, torch.float64):
        return torch.dot(a.view(-1), b.view(-1)).reshape(1)
    # Widened before they are multiplied: under a loss scale the products themselves leave float16's range.
    wide = _accumulation_dtype(a.dtype)
    product = a.to(wide) * b.to(wide)
    if channel_dim is None:
        return product.sum().reshape(1)
    return product.sum(dim=[d for d in range(product.dim()) if d != channel_dim % product.dim()])


def _over_channels(slope: Tensor, like: Tensor, channel_dim: int) -> Tensor:
    """Shape a (1,) or (C,) slope so that it multiplies dimension ``channel_dim`` of ``like``, in its dtype."""
    slope = slope.to(like.dtype)
    if slope.numel() == 1:
        return slope.reshape(())
    if not -like.dim() <= channel_dim < like.dim() or like.shape[channel_dim] != slope.numel():
        raise ValueError(
            f"{slope.numel()} parameters need that many channels in dimension {channel_dim}, not shape {tuple(like.shape)}"
        )
    shape = [1] * like.dim()
    shape[channel_dim] = -1
    return slope.reshape(shape)


class _TwoSlope(torch.autograd.Function):
    """y = min(cap, positive * x) for x >= 0 and negative * x for x < 0; dy/dx(0) = 0, as in the paper's code."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, positive: Tensor, negative: Tensor, cap: float | None, inplace: bool, channel_dim: int
    ) -> Tensor:
        ctx.cap = cap
        ctx.inplace = inplace
        ctx.channel_dim = channel_dim
        if inplace:
            ctx.mark_dirty(x)
        ctx.fused = fused.serves(x, positive, negative)
        if ctx.fused:
            ctx.slopes = slopes = float(positive), float(negative)
            y = fused.forward(x, *slopes, cap, inplace=inplace)
            ctx.save_for_backward(y if inplace else x, positive, negative)
            return y
        pos, neg = _over_channels(positive, x, channel_dim), _over_channels(negative, x, channel_dim)
        # Both slopes are positive and negative <= positive, so the larger product is the right branch, and each product
        # is rounded once: the result equals the paper's relu(x) * p - relu(-x) * n to the last bit.
        if inplace:
            suppressed = x * neg
            y = torch.maximum(x.mul_(pos), suppressed, out=x)
        else:
            y = torch.maximum(x * pos, x * neg)
        if cap is not None:
            y = y.clamp_(max=cap)
        # The map is strictly increasing below the cap, so the output alone can stand for the input: this is what lets
        # an in-place site keep no activation memory of its own (In-Place ABN's observation, arXiv 1712.02616).
        ctx.save_for_backward(y if inplace else x, positive, negative)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        kept, positive, negative = ctx.saved_tensors
        if ctx.fused:
            slopes: tuple[float, float] = ctx.slopes
            on_x, above, below = fused.backward(grad, kept, *slopes, ctx.cap, output=ctx.inplace)
            if ctx.inplace:  # the sums are of the output, which is the input times its slope
                above, below = above / slopes[0], below / slopes[1]
            return on_x, positive.new_tensor([above]), negative.new_tensor([below]), None, None, None
        pos, neg = _over_channels(positive, kept, ctx.channel_dim), _over_channels(negative, kept, ctx.channel_dim)
        over = ctx.channel_dim if positive.numel() > 1 or negative.numel() > 1 else None
        if ctx.cap is not None:
            reached = kept >= ctx.cap if ctx.inplace else kept * pos >= ctx.cap
            grad = grad.masked_fill(reached, 0)
        on_positive = torch.ops.aten.threshold_backward(grad, kept, 0)
        on_negative = torch.ops.aten.threshold_backward(grad, -kept, 0)
        grad_positive = grad_negative = grad_x = None
        if ctx.needs_input_grad[1]:
            grad_positive = _sum_of_products(on_positive, kept, over)
            if ctx.inplace:
                grad_positive = grad_positive / positive
            grad_positive = grad_positive.to(positive.dtype)
        if ctx.needs_input_grad[2]:
            grad_negative = _sum_of_products(on_negative, kept, over)
            if ctx.inplace:
                grad_negative = grad_negative / negative
            grad_negative = grad_negative.to(negative.dtype)
        if ctx.needs_input_grad[0]:
            grad_x = on_positive.mul_(pos).add_(on_negative.mul_(neg))
        return grad_x, grad_positive, grad_negative, None, None, None


def alpha_bounds(dtype: torch.dtype) -> tuple[float, float]:
    """0.01 and 0.99 as ``dtype`` can hold them, so that an alpha set to an end counts as inside."""
    return _BOUNDS[dtype]


_BOUNDS = {
    dtype: tuple(torch.tensor((ALPHA_MIN, ALPHA_MAX), dtype=dtype).tolist())
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def clamp_alpha(alpha: Tensor) -> Tensor:
    """``clamp(alpha, 0.01, 0.99)`` whose gradient is 1 within the bounds and at them, 0 beyond.

    torch's own clamp gives the bounds themselves no gradient (since 2.15 for certain), and alpha would never leave an end
    that projection or initialisation has put it on.
    """
    low, high = alpha_bounds(alpha.dtype)
    clamped = alpha.detach().clamp(low, high)
    return torch.where(alpha.detach() == clamped, alpha, clamped)


def two_slope(
    x: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    cap: float | None = None,
    inplace: bool = False,
    channel_dim: int = 1,
) -> Tensor:
    """``min(cap, positive * x)`` where x >= 0, ``negative * x`` where x < 0.

    Args:
        x: pre-activation, any shape that has dimension ``channel_dim`` where slopes are per channel.
        positive: slope on the positive side, shape (1,) or (C,); greater than 0.
        negative: slope on the negative side, same shape; greater than 0, at most ``positive``.
        cap: upper bound of the output (6.0 at a ReLU6 site); its gradient at and above the bound is 0.
        inplace: overwrite ``x``; the backward pass then works from the output.
        channel_dim: dimension that (C,) slopes belong to.

    Returns:
        A tensor like ``x``.
    """
    result: Tensor = _TwoSlope.apply(x, positive, negative, cap, inplace, channel_dim)
    return result


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
    """AReLU (arXiv 2006.13858, equation 3), times a constant, under an optional cap.

    y = min(cap, scale * (1 + sigmoid(beta)) * x) for x >= 0, scale * clamp(alpha, 0.01, 0.99) * x for x < 0.

    Args:
        x: pre-activation, any shape and floating dtype.
        alpha: suppression of negative elements, shape (1,) or (C,); without gradient outside [0.01, 0.99].
        beta: amplification of positive elements before the sigmoid, same shape as ``alpha``.
        scale: positive constant on both branches (AReLU is positively homogeneous, so it can be absorbed anywhere).
        cap: upper bound of the output, None for none.
        inplace: overwrite ``x``.
        channel_dim: dimension that (C,) parameters belong to.

    Returns:
        A tensor like ``x``.
    """
    # Parameters kept in half precision would round 1 + sigmoid(beta) to three digits.
    wide = _accumulation_dtype(alpha.dtype)
    negative = clamp_alpha(alpha).to(wide) * scale
    positive = (1 + beta.to(wide).sigmoid()) * scale
    return two_slope(x, positive, negative, cap=cap, inplace=inplace, channel_dim=channel_dim)
