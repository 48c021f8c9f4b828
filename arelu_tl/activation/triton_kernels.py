"""The two-slope map for Triton: one forward kernel, and one backward kernel per channel layout.

A map is (outer, channels, inner), with element (o, c, i) at (o * channels + c) * inner + i; see
``layout.blocks_of``. Everything is computed in float32. A backward kernel leaves one pair of sums
per block and adds nothing atomically: a second step adds the sums in a fixed order, so that a
training step gives the same bits each time.
"""

import triton
import triton.language as tl


# Triton writes constants in capitals, hence noqa: N803.
@triton.jit
def _acted(v, positive, negative, cap, CAPPED: tl.constexpr):  # noqa: N803
    y = tl.where(v >= 0, v * positive, v * negative)
    if CAPPED:
        y = tl.where(y > cap, cap, y)
    return y


@triton.jit
def _derived(
    grad, kept, positive, negative, cap,
    CAPPED: tl.constexpr, OUTPUT: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Return (gradient of x, product for the positive sum, product for the negative sum)."""
    if CAPPED:
        grad = tl.where((kept if OUTPUT else kept * positive) >= cap, 0.0, grad)
    grad_x = tl.where(kept == 0, 0.0, grad * tl.where(kept > 0, positive, negative))
    product = grad * kept
    return grad_x, tl.where(kept > 0, product, 0.0), tl.where(kept > 0, 0.0, product)


@triton.jit
def forward(
    x, y, positive, negative, n, channels, inner, cap,
    SITE: tl.constexpr, CAPPED: tl.constexpr,  # noqa: N803
    LARGE: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Compute the map; grid (blocks of the whole map).

    SITE: one slope per side for the whole map. LARGE: it has too many elements for 32 bits.
    """
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
    SITE: tl.constexpr, CAPPED: tl.constexpr, OUTPUT: tl.constexpr,  # noqa: N803
    LARGE: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Compute the gradients of maps whose channels have adjacent elements.

    Grid (blocks of a channel, channels); each: outer * inner.
    """
    part, channel = tl.program_id(0), tl.program_id(1)
    first = part.to(tl.int64) * BLOCK if LARGE else part * BLOCK
    element = first + tl.arange(0, BLOCK)
    inside = element < each
    # With the general formula, the compiler would not see that neighbours are adjacent, and would
    # not load several at a time.
    at = element if SITE else (element // inner * channels + channel) * inner + element % inner
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(kept + at, mask=inside, other=0.0).to(tl.float32)
    on_x, above, below = _derived(
        g, k, tl.load(positive + channel), tl.load(negative + channel), cap, CAPPED, OUTPUT
    )
    tl.store(grad_x + at, on_x.to(grad_x.dtype.element_ty), mask=inside)
    sums = partial + (channel * tl.num_programs(0) + part) * 2
    tl.store(sums, tl.sum(above, axis=0))
    tl.store(sums + 1, tl.sum(below, axis=0))


@triton.jit
def backward_side_by_side(
    grad, kept, grad_x, partial, positive, negative, rows, channels, cap,
    CAPPED: tl.constexpr, OUTPUT: tl.constexpr,  # noqa: N803
    LARGE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Compute the gradients of maps whose channels are adjacent (inner is 1).

    Grid (blocks of rows, blocks of channels).
    """
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
