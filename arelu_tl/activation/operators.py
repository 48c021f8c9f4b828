"""The two-slope map as custom torch operators: ``torch.ops.arelu_tl.two_slope`` and its backward.

They run the best body for a map. Compilers and exporters treat them as one step with known shapes
and gradient. ``arelu`` itself does not use them: see ``functional``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arelu_tl.activation import portable
from arelu_tl.activation.bodies import body_for
from arelu_tl.activation.layout import accumulation_dtype, as_stored, check_parameters


@torch.library.custom_op("arelu_tl::two_slope", mutates_args=())
def two_slope(
    x: Tensor, positive: Tensor, negative: Tensor, cap: float | None = None, channel_dim: int = 1
) -> Tensor:
    """Compute ``min(cap, positive * x)`` where x >= 0, ``negative * x`` where x < 0.

    Args:
        x: any floating dtype, any shape (with dimension ``channel_dim`` if slopes are per channel).
        positive: slope on the positive side, shape (1,) or (C,); greater than 0.
        negative: slope on the negative side, same shape; at least 0, at most ``positive``.
        cap: upper bound of the output; the gradient at and above the bound is 0, as at x = 0.
        channel_dim: dimension that (C,) slopes belong to.

    Returns:
        A tensor like ``x``.
    """
    check_parameters(x, positive, channel_dim)
    body = body_for(x, positive.numel(), channel_dim)
    return body.forward(
        x, *_slopes(x, positive, negative), _cap(x, cap), channel_dim, inplace=False
    )


@two_slope.register_fake
def _(
    x: Tensor, positive: Tensor, negative: Tensor, cap: float | None = None, channel_dim: int = 1
) -> Tensor:
    check_parameters(x, positive, channel_dim)
    return torch.empty_like(x)


@torch.library.custom_op("arelu_tl::two_slope_backward", mutates_args=())
def two_slope_backward(
    grad: Tensor,
    x: Tensor,
    positive: Tensor,
    negative: Tensor,
    cap: float | None = None,
    channel_dim: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``two_slope`` for x, positive and negative, from its output's."""
    body = body_for(x, positive.numel(), channel_dim)
    grad_x, sums = body.backward(
        grad,
        x,
        *_slopes(x, positive, negative),
        _cap(x, cap),
        channel_dim,
        output=False,
        summed=True,
    )
    assert sums is not None
    return grad_x, sums[0].to(positive.dtype, copy=True), sums[1].to(negative.dtype, copy=True)


@two_slope_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    positive: Tensor,
    negative: Tensor,
    cap: float | None = None,
    channel_dim: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(positive), torch.empty_like(negative)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, positive, negative, ctx.cap, ctx.channel_dim = inputs
    ctx.save_for_backward(x, positive, negative)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, positive, negative = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return (
            *two_slope_backward(grad, x, positive, negative, ctx.cap, ctx.channel_dim),
            None,
            None,
        )
    # These may be differentiated again, which torch can do with its own operators.
    slopes, cap = _slopes(x, positive, negative), _cap(x, ctx.cap)
    grad_x, sums = portable.differentiable_backward(
        grad, x, *slopes, cap, ctx.channel_dim, output=False, summed=True
    )
    assert sums is not None
    return grad_x, sums[0].to(positive.dtype), sums[1].to(negative.dtype), None, None


two_slope.register_autograd(_gradients, setup_context=_keep)


def _slopes(x: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    working = accumulation_dtype(x.dtype)
    return positive.to(working).contiguous(), negative.to(working).contiguous()


def _cap(x: Tensor, cap: float | None) -> float | None:
    return None if cap is None else as_stored(cap, x.dtype)
