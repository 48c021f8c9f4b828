"""The two-slope map by ATen's operators.

They exist for every device and dtype, and compilers can look into them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arelu_tl.activation.layout import accumulation_dtype, blocks_of, over_channels

_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_hardtanh_backward = torch.ops.aten.hardtanh_backward.grad_input
# Number of elements that ATen's operators process at a time: intermediate results stay in the
# cache, so that main memory is read and written about once. With smaller blocks, starting the
# operators and waiting for threads after each would dominate.
_BLOCK = 524_288

Sums = tuple[Tensor, Tensor]


def forward(
    x: Tensor,
    positive: Tensor,
    negative: Tensor,
    cap: float | None,
    channel_dim: int,
    *,
    inplace: bool,
) -> Tensor:
    """Compute ``min(cap, positive * x)`` where x >= 0, ``negative * x`` elsewhere.

    The result is written to ``x`` itself or to a tensor like it.

    Args:
        x: the map.
        positive, negative: slopes, shape (1,) or (C,), in the dtype of the computation.
        cap: upper bound of the output, or None.
        channel_dim: dimension of the channels.
        inplace: write to ``x``.
    """
    form = _in_blocks(x, positive.numel(), channel_dim)
    if form is None:
        y = _forward_of_all(x, positive, negative, cap, channel_dim)
        return x.copy_(y) if inplace else y
    y = x if inplace else torch.empty_like(x)
    pos, neg = (_slope_of_blocks(slope) for slope in (positive, negative))
    parts = _parts(form)
    one, two = (
        _scratch(x, form, parts),
        _scratch(x, form, parts) if x.dtype is not positive.dtype else None,
    )
    for source, target in zip(_cut(x, form, parts), _cut(y, form, parts), strict=True):
        suppressed = one if len(one) == len(source) else one[: len(source)]
        if two is None:
            # Both slopes are positive and negative <= positive, so the larger product is the right
            # branch. Each product is rounded once, so the result equals the paper's relu(x) * p -
            # relu(-x) * n bit for bit.
            torch.mul(source, neg, out=suppressed)
            amplified = torch.mul(source, pos, out=target)
            torch.maximum(amplified, suppressed, out=target)
            if cap is not None:
                target.clamp_(max=cap)
        else:
            amplified = two[: len(source)].copy_(source)
            torch.mul(amplified, neg, out=suppressed)
            torch.maximum(amplified.mul_(pos), suppressed, out=amplified)
            target.copy_(amplified if cap is None else amplified.clamp_(max=cap))
    return y


def backward(
    grad: Tensor, kept: Tensor, positive: Tensor, negative: Tensor, cap: float | None,
    channel_dim: int,
    *, output: bool, summed: bool,
) -> tuple[Tensor, Sums | None]:  # fmt: skip
    """Return (gradient of x, sums of grad * kept where kept > 0 and where kept < 0).

    The gradient is 0 where the cap was reached.

    Args:
        grad: gradient of the output, same shape as ``kept``.
        kept: the input, or the output if ``output`` is set.
        positive, negative, cap, channel_dim: as in ``forward``.
        output: whether ``kept`` is the output.
        summed: whether to return the sums, each (1,) or (C,).
    """
    form = _in_blocks(kept, positive.numel(), channel_dim)
    if form is None:
        return differentiable_backward(
            grad, kept, positive, negative, cap, channel_dim, output=output, summed=summed
        )
    if grad.stride() != kept.stride() or type(grad) is not Tensor:
        grad = torch.empty_like(kept).copy_(grad)
    grad_x = torch.empty_like(kept)
    pos, neg = (_slope_of_blocks(slope) for slope in (positive, negative))
    one_slope = negative.item() if negative.numel() == 1 else None
    parts = _parts(form)
    scratch = [_scratch(kept, form, parts) for _ in range(1 if kept.dtype is positive.dtype else 4)]
    above, below = [], []
    for upstream, at, target in zip(
        *(_cut(t, form, parts) for t in (grad, kept, grad_x)), strict=True
    ):
        first, *others = (t if len(t) == len(at) else t[: len(at)] for t in scratch)
        second, g, k = (
            (others[0], others[1].copy_(upstream), others[2].copy_(at))
            if others
            else (target, upstream, at)
        )
        if cap is not None:
            g = g.masked_fill(k >= cap if output else k * pos >= cap, 0)
        _threshold_backward(g, k, 0, grad_input=second)
        # The gradient where k < 0; it is 0 at 0 itself, as in the paper's code.
        _hardtanh_backward(g, k, -math.inf, 0, grad_input=first)
        if summed:
            above.append(_sum_of_products(second, k))
            below.append(_sum_of_products(first, k))
        # One of the two is 0, so the sum adds no rounding to that of the product.
        second.mul_(pos)
        if one_slope is None:
            second.add_(first.mul_(neg))
        else:
            second.add_(first, alpha=one_slope)
        if second is not target:
            target.copy_(second)
    if not summed:
        return grad_x, None
    if not above:
        return grad_x, (torch.zeros_like(positive), torch.zeros_like(negative))
    if len(above) == 1:
        return grad_x, (above[0], below[0])
    return grad_x, (torch.stack(above).double().sum(0), torch.stack(below).double().sum(0))


def _in_blocks(x: Tensor, channels: int, channel_dim: int) -> tuple[int, int, int] | None:
    """Return the form in which ``x`` is processed by blocks.

    None if it is processed as a whole: by a compiler, on a GPU, or with gaps.
    """
    if (
        torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or type(x) not in (Tensor, torch.nn.Parameter)
    ):
        return None
    return blocks_of(x, channels, channel_dim)


def _parts(form: tuple[int, int, int]) -> int:
    """Return how many entries of the leading dimension make a block."""
    outer, channels, inner = form
    return _BLOCK if channels == 1 else max(1, min(outer, _BLOCK // max(1, channels * inner)))


def _cut(x: Tensor, form: tuple[int, int, int], parts: int) -> tuple[Tensor, ...]:
    """Split ``x`` into blocks, flat or, with slopes per channel, as (outer, C, inner)."""
    if x.numel() == 0:
        return ()
    outer, channels, inner = form
    if channels > 1:
        whole = x.as_strided(form, (channels * inner, inner, 1), x.storage_offset())
        return torch.split(whole, parts) if outer > parts else (whole,)
    whole = x.view(-1) if x.is_contiguous() else x.as_strided((inner,), (1,), x.storage_offset())
    return torch.split(whole, parts) if inner > parts else (whole,)


def _scratch(x: Tensor, form: tuple[int, int, int], parts: int) -> Tensor:
    shape = (min(parts, x.numel()),) if form[1] == 1 else (parts, *form[1:])
    return torch.empty(shape, dtype=accumulation_dtype(x.dtype))


def _slope_of_blocks(slope: Tensor) -> Tensor:
    return slope.reshape(()) if slope.numel() == 1 else slope.view(-1, 1)


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a, b).view(1) if a.dim() == 1 else (a * b).sum((0, 2))


def _forward_of_all(
    x: Tensor, positive: Tensor, negative: Tensor, cap: float | None, channel_dim: int
) -> Tensor:
    wide = x.to(positive.dtype)
    y = torch.maximum(
        wide * over_channels(positive, x, channel_dim),
        wide * over_channels(negative, x, channel_dim),
    )
    return (y if cap is None else y.clamp(max=cap)).to(x.dtype)


def differentiable_backward(
    grad: Tensor, kept: Tensor, positive: Tensor, negative: Tensor, cap: float | None,
    channel_dim: int,
    *, output: bool, summed: bool,
) -> tuple[Tensor, Sums | None]:  # fmt: skip
    """Compute ``backward`` for the whole map by out-of-place operators.

    torch can differentiate it in each of the tensors.
    """
    g, k = grad.to(positive.dtype), kept.to(positive.dtype)
    pos, neg = (over_channels(slope, kept, channel_dim) for slope in (positive, negative))
    if cap is not None:
        g = g.masked_fill(k >= cap if output else k * pos >= cap, 0)
    grad_x = torch.where(k > 0, g * pos, (g * neg).masked_fill(k == 0, 0)).to(kept.dtype)
    if not summed:
        return grad_x, None
    # Widened before the multiplication: under a loss scale the products themselves exceed float16's
    # range.
    # No clamp: surgery on a net that traces this through a compiler would take it for a ReLU of the
    # net.
    product = g * k
    products = product.masked_fill(k <= 0, 0), product.masked_fill(k >= 0, 0)
    if positive.numel() == 1:
        above, below = (p.sum().reshape(1) for p in products)
    else:
        dims = [d for d in range(kept.dim()) if d != channel_dim % kept.dim()]
        above, below = (p.sum(dims) if dims else p for p in products)
    return grad_x, (above, below)
