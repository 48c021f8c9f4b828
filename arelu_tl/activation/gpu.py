"""AReLU on a CUDA GPU in one pass over memory in each direction, by Triton where it is available.

The kernels have run in Triton's interpreter but not on a GPU, so they are used only with
``ARELU_TL_FUSED=1``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from contextlib import AbstractContextManager
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from arelu_tl.activation.layout import blocks_of

_FORMATS = (torch.float32, torch.float16, torch.bfloat16)
_FORWARD_BLOCK = 1024
# Elements per pair of sums.
_BACKWARD_BLOCK = 4096
_WARPS = 8
# Largest number of adjacent channels processed at a time.
_WIDTH = 64


def kernel_state(device: torch.device) -> str:
    """Describe how AReLU runs on ``device``: "fused (...)", or "portable: " and the reason."""
    return _kernels(device)[1]


def serves(x: Tensor, channels: int, channel_dim: int) -> bool:
    """Whether the kernels can process ``x``.

    They need a supported dtype and contiguous memory on a CUDA GPU, and ``x`` must not be traced.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cuda"
        and x.dtype in _FORMATS
        and channels <= 65_535  # the limit of the grid's second dimension
        and blocks_of(x, channels, channel_dim) is not None
        and _kernels(x.device)[0] is not None
    )


def forward(
    x: Tensor,
    positive: Tensor,
    negative: Tensor,
    cap: float | None,
    channel_dim: int,
    *,
    inplace: bool,
) -> Tensor:
    """See ``portable.forward``; nothing is read back from the GPU."""
    y = x if inplace else torch.empty_like(x)
    form = blocks_of(x, positive.numel(), channel_dim)
    assert form is not None  # checked by ``serves``
    if x.numel():
        _, channels, inner = form
        with _on(x):
            _loaded().forward[(_blocks(x.numel(), _FORWARD_BLOCK),)](
                x, y, positive, negative, x.numel(), channels, inner, cap or 0.0,
                SITE=channels == 1, CAPPED=cap is not None, LARGE=_large(x), BLOCK=_FORWARD_BLOCK,
                num_warps=4,
            )  # fmt: skip
    return y


def backward(
    grad: Tensor, kept: Tensor, positive: Tensor, negative: Tensor, cap: float | None,
    channel_dim: int,
    *, output: bool, summed: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:  # fmt: skip
    """See ``portable.backward``; sums are taken per block, then over the blocks, in float64."""
    if grad.stride() != kept.stride() or grad.dtype is not kept.dtype or type(grad) is not Tensor:
        grad = torch.empty_like(kept).copy_(grad)
    grad_x = torch.empty_like(kept)
    form = blocks_of(kept, positive.numel(), channel_dim)
    assert form is not None  # checked by ``serves``
    outer, channels, inner = form
    constants = {
        "CAPPED": cap is not None,
        "OUTPUT": output,
        "LARGE": _large(kept),
        "num_warps": _WARPS,
    }
    if channels > 1 and inner == 1:
        width = min(_WIDTH, 1 << (channels - 1).bit_length())
        rows = _BACKWARD_BLOCK // width
        grid = _blocks(outer, rows), _blocks(channels, width)
        constants |= {"ROWS": rows, "WIDTH": width}
    else:
        grid = _blocks(outer * inner, _BACKWARD_BLOCK), channels
        constants |= {"BLOCK": _BACKWARD_BLOCK, "SITE": channels == 1}
    partial = torch.empty((channels, grid[0], 2), dtype=torch.float32, device=kept.device)
    maps = grad, kept, grad_x, partial, positive, negative
    if kept.numel():
        with _on(kept):
            if channels > 1 and inner == 1:
                _loaded().backward_side_by_side[grid](
                    *maps, outer, channels, cap or 0.0, **constants
                )
            else:
                _loaded().backward[grid](
                    *maps, outer * inner, channels, inner, cap or 0.0, **constants
                )
    if not summed:
        return grad_x, None
    sums = partial.sum(1, dtype=torch.float64)
    return grad_x, (sums[:, 0], sums[:, 1])


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _large(x: Tensor) -> bool:
    """Whether positions in ``x``, plus one block, exceed 32 bits."""
    return x.numel() >= 2**31 - 2 * _BACKWARD_BLOCK * _WIDTH


def _on(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@lru_cache(maxsize=1)
def _loaded() -> ModuleType:
    from arelu_tl.activation import triton_kernels  # not available everywhere that torch is

    return triton_kernels


@lru_cache(maxsize=16)
def _kernels(device: torch.device) -> tuple[ModuleType | None, str]:
    """Return (the kernels, their description), or (None, the reason).

    Kernels are returned if they are requested and pass a test on a small map.
    """
    asked = os.environ.get("ARELU_TL_FUSED")
    if asked == "0":
        return None, "portable: ARELU_TL_FUSED is 0"
    if asked != "1":
        return (
            None,
            "portable: the Triton kernels have run on no GPU yet, ARELU_TL_FUSED=1 asks for them",
        )
    try:
        import triton
        from triton.errors import TritonError
    except ImportError:
        return None, "portable: Triton is not installed"
    try:
        tried, one = torch.ones(8, device=device), torch.ones(1, device=device)
        backward(
            tried,
            forward(tried, one, one, None, 0, inplace=False),
            one,
            one,
            None,
            0,
            output=False,
            summed=True,
        )
    except (TritonError, OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        return (
            None,
            f"portable: Triton does not build for this GPU ({' '.join(str(error).split())[:200]})",
        )
    return _loaded(), f"fused (Triton {triton.__version__})"
