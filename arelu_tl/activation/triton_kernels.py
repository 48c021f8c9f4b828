"""The two-slope map for Triton: one kernel forward, and one backward for each of the two ways in which channels can lie.

A map is (outer, channels, inner), element (o, c, i) at (o * channels + c) * inner + i; see ``layout.blocks_of``. Everything is
computed in float32. A backward kernel leaves one pair of sums a block, and nothing is added atomically: what sums them up goes
through them in a fixed order, so that a step gives the same bits each time.
"""

import triton
import triton.language as tl


@triton.jit
def _acted(v, positive, negative, cap, CAPPED: tl.constexpr):  # noqa: N803 (Triton's way to write constants)
    y = tl.where(v >= 0, v * positive, v * negative)
    if CAPPED:
        y = tl.where(y > cap, cap, y)
    return y


@triton.jit
def _derived(grad, kept, positive, negative, cap, CAPPED: tl.constexpr, OUTPUT: tl.constexpr):  # noqa: N803
    """(gradient of x, product for the positive sum, product for the negative sum)"""
    if CAPPED:
        grad = tl.where((kept if OUTPUT else kept * positive) >= cap, 0.0, grad)
    grad_x = tl.where(kept == 0, 0.0, grad * tl.where(kept > 0, positive, negative))
    product = grad * kept
    return grad_x, tl.where(kept > 0, product, 0.0), tl.where(kept > 0, 0.0, product)


@triton.jit
def forward(
    x, y, positive, negative, n, channels, inner, cap,
    SITE: tl.constexpr, CAPPED: tl.constexpr, LARGE: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Grid (blocks of the whole map). SITE: one slope a side for all of it. LARGE: it has too many elements for 32 bits."""
    block = tl.program_id(0)
    if LARGE:
        block = block.to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    channel = 0 if SITE else at // inner % channels
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    result = _acted(v, tl.load(positive + channel), tl.load(negative + channel), cap, CAPPED)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    grad, kept, grad_x, partial, positive, negative, each, channels, inner, cap,
    SITE: tl.constexpr, CAPPED: tl.constexpr, OUTPUT: tl.constexpr, LARGE: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Grid (blocks of a channel, channels), for channels of which elements lie side by side; each: outer * inner."""
    part, channel = tl.program_id(0), tl.program_id(1)
    first = part.to(tl.int64) * BLOCK if LARGE else part * BLOCK
    element = first + tl.arange(0, BLOCK)
    inside = element < each
    # Said in full, it would not be seen that neighbours are neighbours, which are loaded several at a time.
    at = element if SITE else (element // inner * channels + channel) * inner + element % inner
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(kept + at, mask=inside, other=0.0).to(tl.float32)
    on_x, above, below = _derived(g, k, tl.load(positive + channel), tl.load(negative + channel), cap, CAPPED, OUTPUT)
    tl.store(grad_x + at, on_x.to(grad_x.dtype.element_ty), mask=inside)
    sums = partial + (channel * tl.num_programs(0) + part) * 2
    tl.store(sums, tl.sum(above, axis=0))
    tl.store(sums + 1, tl.sum(below, axis=0))


@triton.jit
def backward_side_by_side(
    grad, kept, grad_x, partial, positive, negative, rows, channels, cap,
    CAPPED: tl.constexpr, OUTPUT: tl.constexpr, LARGE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Grid (blocks of rows, blocks of channels), for maps of which the channels lie side by side (inner is 1)."""
    part = tl.program_id(0)
    first = part.to(tl.int64) * ROWS if LARGE else part * ROWS
    row = first + tl.arange(0, ROWS)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    known = channel < channels
    at = row[:, None] * channels + channel[None, :]
    inside = (row < rows)[:, None] & known[None, :]
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(kept + at, mask=inside, other=0.0).to(tl.float32)
    pos = tl.load(positive + channel, mask=known, other=1.0)[None, :]
    neg = tl.load(negative + channel, mask=known, other=1.0)[None, :]
    on_x, above, below = _derived(g, k, pos, neg, cap, CAPPED, OUTPUT)
    tl.store(grad_x + at, on_x.to(grad_x.dtype.element_ty), mask=inside)
    sums = partial + (channel * tl.num_programs(0) + part) * 2
    tl.store(sums, tl.sum(above, axis=0), mask=known)
    tl.store(sums + 1, tl.sum(below, axis=0), mask=known)
