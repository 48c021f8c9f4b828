"""The C kernel: which maps it takes, sums that threads do not change, and how it comes to be built or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from kernels import needs_kernel
from torch import Tensor

from arelu_tl.activation import fused
from arelu_tl.activation.functional import arelu

pytestmark = needs_kernel(fused.kernel_state())


@pytest.mark.parametrize("channels", [1, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_sums_do_not_depend_on_the_number_of_threads(
    channels: int, layout: torch.memory_format
) -> None:
    """Resuming to the bit, and two arms beside each other, rest on it."""
    torch.manual_seed(0)
    x, grad = (t.contiguous(memory_format=layout) for t in torch.randn(2, 5, 7, 167, 171))
    slopes = torch.full((channels,), 1.5), torch.full((channels,), 0.2)
    before = torch.get_num_threads()
    told = set()
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        _, sums = fused.backward(grad, x, *slopes, None, 1, output=False, summed=True)
        assert sums is not None
        told.add(tuple(torch.cat(sums).tolist()))
    torch.set_num_threads(before)
    assert len(told) == 1
    product = grad.double() * x.double()
    dims = (0, 1, 2, 3) if channels == 1 else (0, 2, 3)
    above, below = (product.mul(side).sum(dims).reshape(-1) for side in (x > 0, x < 0))
    torch.testing.assert_close(
        torch.tensor(told.pop()).double(), torch.cat((above, below)), rtol=1e-5, atol=1e-2
    )


@pytest.mark.parametrize(
    ("x", "channels"),
    [
        (torch.randn(4, dtype=torch.float16), 1),
        (torch.randn(4, 4).t()[:, ::2], 1),
        (torch.randn(2, 3, 4).transpose(1, 2), 4),
        (torch.empty(4, device="meta"), 1),
    ],
)
def test_what_it_is_not_made_for_goes_the_portable_way(x: Tensor, channels: int) -> None:
    assert not fused.serves(x, channels, 1)
    arelu(x, torch.full((channels,), 0.5, device=x.device), torch.ones(channels, device=x.device))


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


def test_without_a_compiler_it_says_so_and_goes_on(
    build: Callable[..., str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] || { echo 'no such thing' >&2; exit 1; }\n"
    )
    broken.chmod(0o755)
    for compiler, told in {
        tmp_path / "none": f"portable: no C compiler ({tmp_path / 'none'})",
        broken: "portable: the C file does not build (no such thing)",
    }.items():
        assert build(CC=str(compiler)) == told
        assert arelu(torch.tensor([-2.0]), torch.tensor([0.5]), torch.tensor([0.0])).tolist() == [
            -1.0
        ]
    assert build(ARELU_TL_FUSED="0") == "portable: ARELU_TL_FUSED is 0"


def test_it_is_built_once_and_kept(build: Callable[..., str], tmp_path: Path) -> None:
    assert build().startswith("fused (")
    kept = tmp_path / "cache" / "arelu-tl"
    (first,) = kept.iterdir()
    stamp = first.stat().st_mtime_ns
    assert build().startswith("fused (")
    assert [(p, p.stat().st_mtime_ns) for p in kept.iterdir()] == [(first, stamp)]
