"""The fused kernel gives what the portable operators give: the same bits, and sums as near to float64's."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arelu_tl.activation import fused
from arelu_tl.activation.functional import two_slope

pytestmark = pytest.mark.skipif(fused.kernel_state().startswith("portable"), reason=fused.kernel_state())

SHAPES = st.sampled_from([(0,), (1,), (7,), (4096,), (4097,), (2, 3, 5, 7), (3, 8, 40, 40), (2, 3, 0, 4)])


def run(x: Tensor, grad: Tensor, slopes: tuple[float, float], cap: float | None, inplace: bool, portable: bool) -> list[Tensor]:
    """[output, gradient of x, of the positive slope, of the negative slope]."""
    positive, negative = (torch.tensor([s], requires_grad=True) for s in slopes)
    leaf = x.clone().requires_grad_()
    given = leaf.clone(memory_format=torch.preserve_format)
    with pytest.MonkeyPatch.context() as patch:
        if portable:
            patch.setattr(fused, "serves", lambda *_: False)
        y = two_slope(given, positive, negative, cap=cap, inplace=inplace)
        assert (y is given) == inplace
        y.backward(grad)
    gradients = [leaf.grad, positive.grad, negative.grad]
    return [y.detach(), *(g for g in gradients if g is not None)]


@settings(max_examples=150, deadline=None)
@given(
    shape=SHAPES,
    slopes=st.tuples(st.floats(0.5, 2.0, width=32), st.floats(0.015625, 0.46875, width=32)),
    cap=st.sampled_from([None, 6.0, 0.5]),
    inplace=st.booleans(),
    seed=st.integers(0, 99),
    channels_last=st.booleans(),
    other_layout=st.booleans(),
    threads=st.integers(1, 3),
)
def test_it_is_the_portable_map_to_the_bit(
    shape: tuple[int, ...], slopes: tuple[float, float], cap: float | None, inplace: bool, seed: int, channels_last: bool,
    other_layout: bool, threads: int,
) -> None:  # fmt: skip
    stream = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=stream) for _ in range(2))
    x[x.abs() < 0.1] = 0.0
    assert fused.serves(x, torch.ones(1), torch.ones(1))
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
        grad = grad if other_layout else grad.contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = (run(x, grad, slopes, cap, inplace, portable) for portable in (False, True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    size = float((grad.double() * x.double()).abs().sum())
    for a, b in zip(ours[2:], theirs[2:], strict=True):
        assert abs(float(a) - float(b)) <= 1e-5 * size / min(slopes) + 1e-6
    assert x.numel() == 0 or ours[0].stride() == x.stride()


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    """Resuming to the bit, and two arms beside each other, rest on it."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, 1_000_003)
    before = torch.get_num_threads()
    told = set()
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        told.add(fused.backward(grad, x, 1.5, 0.2, None, output=False)[1:])
    torch.set_num_threads(before)
    assert len(told) == 1
    above, below = told.pop()
    product = grad.double() * x.double()
    assert above == pytest.approx(product[x > 0].sum().item(), rel=1e-5)
    assert below == pytest.approx(product[x < 0].sum().item(), rel=1e-5)


def test_what_is_no_number_stays_none() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    ours, theirs = (run(x, torch.ones(4), (1.5, 0.2), None, False, portable) for portable in (False, True))
    assert torch.equal(ours[0].nan_to_num(7), theirs[0].nan_to_num(7))
    assert ours[0].isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("x", "slope"),
    [
        (torch.randn(4, dtype=torch.float64), torch.ones(1)),
        (torch.randn(4, dtype=torch.bfloat16), torch.ones(1)),
        (torch.randn(4, 4).t()[:, ::2], torch.ones(1)),
        (torch.randn(2, 3), torch.ones(3)),
        (torch.empty(4, device="meta"), torch.ones(1)),
    ],
)
def test_what_it_is_not_made_for_goes_the_portable_way(x: Tensor, slope: Tensor) -> None:
    assert not fused.serves(x, slope, slope)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Build anew, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fused, "_build", lru_cache(fused._build.__wrapped__))

    def state(**environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fused._build.cache_clear()
        return fused.kernel_state()

    return state


def test_without_a_compiler_it_says_so_and_goes_on(build: Callable[..., str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] || { echo 'no such thing' >&2; exit 1; }\n")
    broken.chmod(0o755)
    for compiler, told in {
        tmp_path / "none": f"portable: no C compiler ({tmp_path / 'none'})",
        broken: "portable: the C file does not build (no such thing)",
    }.items():
        assert build(CC=str(compiler)) == told
        assert two_slope(torch.tensor([2.0, -2.0]), torch.tensor([1.5]), torch.tensor([0.5])).tolist() == [3.0, -1.0]
    assert build(ARELU_TL_FUSED="0") == "portable: ARELU_TL_FUSED is 0"


def test_it_is_built_once_and_kept(build: Callable[..., str], tmp_path: Path) -> None:
    assert build().startswith("fused (")
    kept = tmp_path / "cache" / "arelu-tl"
    (first,) = kept.iterdir()
    stamp = first.stat().st_mtime_ns
    assert build().startswith("fused (")
    assert [(p, p.stat().st_mtime_ns) for p in kept.iterdir()] == [(first, stamp)]
