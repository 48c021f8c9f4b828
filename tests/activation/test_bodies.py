"""The bodies of AReLU's map give one function: the same bits forward, gradients and sums as near to float64's."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import lacks_kernel, needs_kernel
from torch import Tensor

from arelu_tl.activation import fused, portable
from arelu_tl.activation.functional import arelu
from arelu_tl.activation.layout import accumulation_dtype, as_stored

kernel = needs_kernel(fused.kernel_state())

# Shape and the dimension of its channels; the large ones are of more than one piece, strip or block.
MAPS = st.sampled_from(
    [((0,), 0), ((1,), 0), ((7,), -1), ((4097,), 0), ((2, 3, 5, 7), 1), ((3, 8, 70, 70), 1), ((2, 3, 0, 4), 1), ((2, 9, 3), -1),
     ((300, 5), 1), ((4, 3, 2, 2), 0), ((5, 33, 1, 1), 1), ((2, 300, 9, 9), 1)]
)  # fmt: skip
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
Result = tuple[Tensor, Tensor, Tensor, Tensor]


def run(
    body: ModuleType,
    x: Tensor,
    grad: Tensor,
    slopes: tuple[Tensor, Tensor],
    cap: float | None,
    channel_dim: int,
    inplace: bool,
) -> Result:
    """(output, gradient of x, sum over the positive and over the negative elements)."""
    given_x = x.clone(memory_format=torch.preserve_format)
    y = body.forward(given_x, *slopes, cap, channel_dim, inplace=inplace)
    assert (y is given_x) == inplace
    assert y.stride() == x.stride() or y.numel() < 2
    kept = y if inplace else given_x
    on_x, sums = body.backward(grad, kept, *slopes, cap, channel_dim, output=inplace, summed=True)
    return y, on_x, sums[0], sums[1]


def in_float64(
    x: Tensor,
    grad: Tensor,
    slopes: tuple[Tensor, Tensor],
    cap: float | None,
    channel_dim: int,
    inplace: bool,
) -> Result:
    """The same by definition, from what is kept."""
    shape = [1] * x.dim()
    if slopes[0].numel() > 1:
        shape[channel_dim] = -1
    positive, negative = (s.double().reshape(shape) for s in slopes)
    number = slopes[0].dtype  # products are rounded to it, and then to the map's
    y = torch.where(x >= 0, x.double() * positive, x.double() * negative).to(number)
    y = (y if cap is None else y.clamp(max=cap)).to(x.dtype)
    kept = (y if inplace else x).double()
    reached = (
        torch.zeros_like(y, dtype=torch.bool)
        if cap is None
        else (kept if inplace else (kept * positive).to(number)) >= cap
    )
    g = grad.double().masked_fill(reached, 0)
    on_x = torch.where(kept > 0, g * positive, torch.where(kept < 0, g * negative, 0.0))
    dims = [d for d in range(x.dim()) if slopes[0].numel() == 1 or d != channel_dim % x.dim()]
    above, below = (
        (g * k).sum(dims).reshape(-1) if dims else g * k
        for k in (kept.clamp(min=0), kept.clamp(max=0))
    )
    return y, on_x, above, below


@st.composite
def problems(
    draw: st.DrawFn,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], float | None, int, bool]:
    (shape, channel_dim), dtype = draw(MAPS), draw(DTYPES)
    stream = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x, grad = (torch.randn(shape, generator=stream).to(dtype) for _ in range(2))
    x[x.abs() < 0.1] = draw(st.sampled_from([0.0, -0.0]))
    if x.dim() == 4 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last) if draw(st.booleans()) else grad
    channels = x.shape[channel_dim] if draw(st.booleans()) and x.numel() else 1
    number = accumulation_dtype(dtype)
    negative = torch.rand(channels, generator=stream).to(number) * 0.98 + 0.01
    positive = negative + torch.rand(channels, generator=stream).to(number) + 0.01
    cap = draw(st.sampled_from([None, 6.0, 0.7]))
    return (
        x,
        grad,
        (positive, negative),
        None if cap is None else as_stored(cap, dtype),
        channel_dim,
        draw(st.booleans()),
    )


def check(got: Result, wanted: Result, x: Tensor, grad: Tensor) -> None:
    assert got[0].dtype == got[1].dtype == x.dtype
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1].to(accumulation_dtype(x.dtype)).to(x.dtype))
    size = float((grad.double() * x.double()).abs().sum())
    for mine, exact in zip(got[2:], wanted[2:], strict=True):
        assert mine.shape == exact.shape
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=tolerance * (4 * size + 1))


@kernel
@settings(max_examples=200, deadline=None, database=None)
@given(problem=problems(), threads=st.integers(1, 3))
def test_the_fused_body_is_the_map_by_definition(problem: tuple, threads: int) -> None:
    x, grad, slopes, cap, channel_dim, inplace = problem
    if not fused.serves(x, slopes[0].numel(), channel_dim):
        assert x.dtype == torch.float16 or (slopes[0].numel() > 1 and channel_dim != 1)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = run(fused, x, grad, slopes, cap, channel_dim, inplace)
    finally:
        torch.set_num_threads(before)
    check(got, in_float64(x, grad, slopes, cap, channel_dim, inplace), x, grad)


@settings(max_examples=200, deadline=None, database=None)
@given(problem=problems(), block=st.sampled_from([64, 1000, 524_288]))
def test_the_portable_body_is_the_map_by_definition_whatever_its_blocks(
    problem: tuple, block: int
) -> None:
    x, grad, slopes, cap, channel_dim, inplace = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "_BLOCK", block)
        got = run(portable, x, grad, slopes, cap, channel_dim, inplace)
    check(got, in_float64(x, grad, slopes, cap, channel_dim, inplace), x, grad)


@settings(max_examples=100, deadline=None, database=None)
@given(problem=problems())
def test_the_portable_body_taken_whole_is_the_map_by_definition(problem: tuple) -> None:
    """As a compiler and a GPU have it."""
    x, grad, slopes, cap, channel_dim, inplace = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "blocks_of", lambda *_: None)
        got = run(portable, x, grad, slopes, cap, channel_dim, inplace)
    check(got, in_float64(x, grad, slopes, cap, channel_dim, inplace), x, grad)


@pytest.mark.parametrize("body", ["fused", "blocks", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_no_number_stays_none_and_infinities_stay(
    body: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if body == "fused" and lacks_kernel(fused.kernel_state()):
        pytest.skip(fused.kernel_state())
    if body == "whole":
        monkeypatch.setattr(portable, "blocks_of", lambda *_: None)
    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0], dtype=dtype)
    module = fused if body == "fused" else portable
    slopes = torch.tensor([1.5]), torch.tensor([0.2])
    y = module.forward(x, *slopes, None, 0, inplace=False)
    assert y[0].isnan()
    assert y[1:].tolist() == [math.inf, -math.inf, 0, 0]
    assert torch.signbit(y[3:]).tolist() == [True, False]
    grad = torch.tensor([1.0, math.nan, math.inf, 1.0, 1.0], dtype=dtype)
    kept = torch.tensor([1.0, 2.0, -3.0, 0.0, -0.0], dtype=dtype)
    on_x, _ = module.backward(grad, kept, *slopes, None, 0, output=False, summed=False)
    # A loss scale is found too large by what is not finite: nothing may hide it.
    assert [bool(v) for v in on_x.isfinite()] == [True, False, False, True, True]
    assert on_x[3:].tolist() == [0, 0]


@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("body", ["fused", "portable"])
def test_gradcheck_of_each_body_in_float64(
    body: str, channels: int, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if body == "portable":
        monkeypatch.setattr(fused, "serves", lambda *_: False)
    elif lacks_kernel(fused.kernel_state()):
        pytest.skip(fused.kernel_state())
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    x = (x + 0.1 * x.sign()).requires_grad_()
    alpha, beta = (
        torch.rand(channels, dtype=torch.float64).add(0.1).clamp(max=0.9).requires_grad_()
        for _ in range(2)
    )

    def function(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return arelu(x * 1, alpha, beta, scale=0.7, cap=50.0, inplace=inplace)

    assert torch.autograd.gradcheck(function, (x, alpha, beta))


def test_slopes_of_half_precision_maps_are_not_rounded_to_half_precision() -> None:
    """Or what a step changes in alpha would not be seen before it adds up to bfloat16's next number, 0.004 away."""
    x = -torch.arange(1.0, 65.0).bfloat16()
    one, other = (arelu(x, torch.tensor([a]), torch.tensor([2.0])) for a in (0.9, 0.901))
    assert not torch.equal(one, other)
    assert torch.equal(one, (x.float() * torch.tensor(0.9)).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
def test_a_cap_that_half_precision_rounds_down_still_stops_the_gradient(
    dtype: torch.dtype, inplace: bool
) -> None:
    cap = 0.7001 if dtype == torch.bfloat16 else 0.7003
    assert as_stored(cap, dtype) < cap
    x = torch.tensor([5.0, 0.1], dtype=dtype, requires_grad=True)
    arelu(
        x * 1, torch.tensor([0.9]), torch.tensor([2.0]), cap=cap, inplace=inplace
    ).sum().backward()
    assert x.grad is not None
    assert x.grad[0] == 0
    assert x.grad[1] > 1


@settings(max_examples=200, deadline=None, database=None)
@given(value=st.floats(1e-4, 6e4), dtype=DTYPES)
def test_a_number_as_stored_is_what_a_tensor_says(value: float, dtype: torch.dtype) -> None:
    assert as_stored(value, dtype) == torch.tensor(value, dtype=torch.float64).to(dtype).item()
