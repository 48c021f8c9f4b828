"""The Triton kernels: interpreted against the portable body, built for a GPU that isn't there, and run where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from arelu_tl.activation import fused, gpu, portable
from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.functional import arelu
from arelu_tl.activation.layout import as_stored

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

_INTERPRETED = """
import itertools
import torch
from arelu_tl.activation import functional, gpu, portable
from arelu_tl.activation.layout import as_stored

torch.manual_seed(0)
whole, last = torch.contiguous_format, torch.channels_last
maps = [((2, 3, 30, 31), 1, whole), ((2, 3, 30, 31), 1, last), ((9,), 0, whole), ((70, 66), 1, whole), ((2, 0, 3, 3), 1, last)]
dtypes = [torch.float32, torch.float16, torch.bfloat16]
for number, ((shape, dim, layout), dtype) in enumerate(itertools.product(maps, dtypes)):
    for channels in {1, shape[dim] or 1}:
        # Every second map is capped, every third in place: in all, each with each.
        cap = as_stored(0.7, dtype) if number % 2 else None
        inplace = number % 3 == 0
        x, grad = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
        x[x.abs() < 0.1] = 0
        negative = torch.rand(channels) * 0.9 + 0.05
        positive = negative + torch.rand(channels) + 0.05
        one, other = (x.clone(memory_format=torch.preserve_format) for _ in range(2))
        y = gpu.forward(one, positive, negative, cap, dim, inplace=inplace)
        wanted = portable.forward(other, positive, negative, cap, dim, inplace=inplace)
        assert (y is one) == inplace
        # The interpreter cuts bfloat16 off where the GPU rounds it.
        near = {"rtol": 2**-7, "atol": 1e-30} if dtype == torch.bfloat16 else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(y, wanted, **near)
        kept = wanted if inplace else x
        options = {"output": inplace, "summed": True}
        on_x, sums = gpu.backward(grad, kept, positive, negative, cap, dim, **options)
        wanted_on_x, wanted_sums = portable.backward(grad, kept, positive, negative, cap, dim, **options)
        torch.testing.assert_close(on_x, wanted_on_x, **near)
        for mine, exact in zip(sums, wanted_sums):
            assert mine.shape == (channels,)
            torch.testing.assert_close(mine.double(), exact.double(), rtol=1e-5, atol=1e-4)

# A derivative of theirs is that of the map by torch's operators.
given = [torch.randn(4, 3, 5, 5, requires_grad=True), *(torch.rand(3).add(0.1).div(2).requires_grad_() for _ in range(2))]
found = []
for body in (gpu, portable):
    functional.body_for = lambda *_: body
    for inplace in (False, True):
        y = functional.arelu(given[0] * 1, *given[1:], cap=1.0, inplace=inplace)
        first = torch.autograd.grad(y.square().sum(), given, create_graph=True)
        found.append((*first, *torch.autograd.grad(sum(g.sin().sum() for g in first), given)))
for each in found[1:]:
    torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-4)
print("the same")
"""


@needs_triton
def test_interpreted_the_kernels_are_the_portable_map() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout == "the same\n", done.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("kernel", ["forward", "backward", "backward_side_by_side"])
def test_they_build_for_a_gpu_without_atomic_sums(kernel: str) -> None:
    """Sums added atomically would come out differently each time."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from arelu_tl.activation import triton_kernels

    function = getattr(triton_kernels, kernel)
    constants = {
        "SITE": True, "CAPPED": True, "OUTPUT": True, "LARGE": False, "BLOCK": 4096, "ROWS": 64, "WIDTH": 64,
    }  # fmt: skip
    kinds = dict.fromkeys(("x", "y", "grad", "kept", "grad_x"), "*fp16") | dict.fromkeys(
        ("partial", "positive", "negative"), "*fp32"
    )
    kinds |= dict.fromkeys(constants, "constexpr") | {"cap": "fp32"}
    source = ASTSource(
        fn=function,
        signature={name: kinds.get(name, "i32") for name in function.arg_names},
        constexprs={name: value for name, value in constants.items() if name in function.arg_names},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 8})
    assert built.asm["cubin"]
    assert "atom.global" not in built.asm["ptx"]
    assert "red.global" not in built.asm["ptx"]


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels, which no GPU has run yet."""
    monkeypatch.setenv("ARELU_TL_FUSED", "1")
    gpu._kernels.cache_clear()
    yield
    gpu._kernels.cache_clear()


@pytest.mark.parametrize("value", [None, "", "yes"])
def test_a_gpu_gets_the_portable_form_unless_the_kernels_are_asked_for(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is installed: nothing is built, and nothing runs on the device, to find out."""
    monkeypatch.delenv("ARELU_TL_FUSED", raising=False)
    if value is not None:
        monkeypatch.setenv("ARELU_TL_FUSED", value)
    told = "portable: the Triton kernels have run on no GPU yet, ARELU_TL_FUSED=1 asks for them"
    assert gpu._kernels.__wrapped__(torch.device("cuda")) == (None, told)


@pytest.mark.usefixtures("asked_for")
def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert gpu._kernels.__wrapped__(torch.device("cuda")) == (
        None,
        "portable: Triton is not installed",
    )
    monkeypatch.setenv("ARELU_TL_FUSED", "0")
    assert gpu._kernels.__wrapped__(torch.device("cuda")) == (None, "portable: ARELU_TL_FUSED is 0")


@needs_triton
@pytest.mark.usefixtures("asked_for")
def test_where_it_does_not_build_it_says_why() -> None:
    """Here for want of a GPU, elsewhere for want of a compiler or for a GPU too old."""
    if torch.cuda.is_available():
        pytest.skip("it builds here")
    kernels, state = gpu._kernels.__wrapped__(torch.device("cpu"))
    assert kernels is None
    assert state.startswith("portable: Triton does not build for this GPU (")


def test_maps_elsewhere_are_not_theirs() -> None:
    assert not gpu.serves(torch.ones(3), 1, 0)
    assert not gpu.serves(torch.ones(3, device="meta"), 1, 0)


@pytest.mark.gpu
@pytest.mark.usefixtures("asked_for")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])
@pytest.mark.parametrize("channels", [1, 33])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cap", [None, 0.7])
def test_on_a_gpu_they_are_the_portable_map_and_give_the_same_bits_each_time(
    inplace: bool, channels: int, layout: torch.memory_format, dtype: torch.dtype, cap: float | None
) -> None:
    torch.manual_seed(0)
    x, grad = (
        torch.randn(5, 33, 40, 41).to(dtype).contiguous(memory_format=layout) for _ in range(2)
    )
    x[x.abs() < 0.1] = 0
    negative = torch.rand(channels) * 0.9 + 0.05
    slopes = negative + torch.rand(channels) + 0.05, negative
    cap = None if cap is None else as_stored(cap, dtype)
    on_gpu = [t.cuda() for t in (x, grad, *slopes)]
    assert gpu.serves(on_gpu[0], channels, 1), gpu.kernel_state(torch.device("cuda"))
    assert not fused.serves(on_gpu[0], channels, 1)
    given: list[Tensor] = on_gpu[2:]
    wanted = portable.forward(
        x.clone(memory_format=torch.preserve_format), *slopes, cap, 1, inplace=False
    )
    options = {"output": inplace, "summed": True}
    exact = portable.backward(grad, wanted if inplace else x, *slopes, cap, 1, **options)
    told = []
    for _ in range(2):
        y = gpu.forward(
            on_gpu[0].clone(memory_format=torch.preserve_format), *given, cap, 1, inplace=inplace
        )
        assert torch.equal(y.cpu(), wanted)
        on_x, sums = gpu.backward(on_gpu[1], y if inplace else on_gpu[0], *given, cap, 1, **options)
        assert torch.equal(on_x.cpu(), exact[0])
        assert sums is not None
        assert exact[1] is not None
        for mine, other in zip(sums, exact[1], strict=True):
            torch.testing.assert_close(mine.cpu().double(), other.double(), rtol=1e-4, atol=1e-2)
        told.append(torch.cat(sums))
    assert torch.equal(*told)


@pytest.mark.gpu
@pytest.mark.usefixtures("asked_for")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_training_step_on_a_gpu_waits_for_nothing() -> None:
    module, x = (
        AReLU(inplace=True).cuda(),
        torch.randn(4, 8, 9, 9, device="cuda", requires_grad=True),
    )
    module(x * 1).sum().backward()  # builds the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(x * 1).sum().backward()
        arelu(x, module.alpha, module.beta, cap=6.0).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
