"""AReLU on the CPU in one pass over memory in each direction.

The kernel is a small C file, built on first use if there is a compiler. ATen needs several passes
forward and a dozen backward where ReLU needs one. Without a compiler everything still works, only
slower, and ``kernel_state`` gives the reason.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arelu_tl.activation import native
from arelu_tl.activation.layout import blocks_of

SOURCE = Path(__file__).with_name("two_slope.c")
BODY = Path(__file__).with_name("two_slope_body.h")
_FORMATS = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
# Below this many elements a second thread costs more than it saves.
_ONE_THREAD = 65_536


def kernel_state() -> str:
    """Describe how AReLU runs on the CPU: "fused (...)", or "portable: " and the reason."""
    return _build()[1]


def serves(x: Tensor, channels: int, channel_dim: int) -> bool:
    """Whether the kernel can process ``x``.

    It needs a supported dtype and contiguous CPU memory, and ``x`` must not be traced.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in _FORMATS
        and blocks_of(x, channels, channel_dim) is not None
        and _build()[0] is not None
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
    """Compute ``min(cap, positive * x)`` where x >= 0, ``negative * x`` elsewhere.

    The result is written to ``x`` itself or to a tensor like it.

    Args:
        x: the map.
        positive, negative: slopes, shape (1,) or (C,), contiguous, in the dtype of the computation.
        cap: upper bound of the output, or None.
        channel_dim: dimension of the channels.
        inplace: write to ``x``.
    """
    y = x if inplace else torch.empty_like(x)
    run, _ = _library()[x.dtype]
    run(
        x.data_ptr(), y.data_ptr(), *_form(x, positive, channel_dim),
        positive.data_ptr(), negative.data_ptr(), _cap(cap), _threads(x),
    )  # fmt: skip
    return y


def backward(
    grad: Tensor, kept: Tensor, positive: Tensor, negative: Tensor, cap: float | None,
    channel_dim: int,
    *, output: bool, summed: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:  # fmt: skip
    """Return (gradient of x, sums of grad * kept where kept > 0 and where kept < 0).

    The gradient is 0 where the cap was reached.

    Args:
        grad: gradient of the output, same shape as ``kept``.
        kept: the input, or the output if ``output`` is set.
        positive, negative, cap, channel_dim: as in ``forward``.
        output: whether ``kept`` is the output.
        summed: whether to return the sums, each (1,) or (C,) in float64; they cost nothing extra.
    """
    if grad.stride() != kept.stride() or grad.dtype is not kept.dtype or type(grad) is not Tensor:
        grad = torch.empty_like(kept).copy_(grad)
    grad_x = torch.empty_like(kept)
    form = _form(kept, positive, channel_dim)
    partial = torch.empty(_room(form), dtype=positive.dtype)
    sums = torch.empty((form[1], 2), dtype=torch.float64)
    _, run = _library()[kept.dtype]
    run(
        grad.data_ptr(), kept.data_ptr(), grad_x.data_ptr(), *form, positive.data_ptr(),
        negative.data_ptr(),
        _cap(cap), output, partial.data_ptr(), sums.data_ptr(), _threads(kept),
    )  # fmt: skip
    return grad_x, (sums[:, 0], sums[:, 1]) if summed else None


def _form(x: Tensor, slope: Tensor, channel_dim: int) -> tuple[int, int, int]:
    form = blocks_of(x, slope.numel(), channel_dim)
    assert form is not None  # checked by ``serves``
    return form


def _cap(cap: float | None) -> float:
    return math.inf if cap is None else cap


def _threads(x: Tensor) -> int:
    return 1 if x.numel() < _ONE_THREAD else torch.get_num_threads()


def _room(form: tuple[int, int, int]) -> int:
    """Return how many numbers a backward pass needs for its sums."""
    library = _build()[0]
    assert library is not None
    return int(library.two_slope_partial(*form))


@lru_cache(maxsize=1)
def _library() -> dict[torch.dtype, tuple[Any, Any]]:
    """Return {dtype: (forward, backward)}."""
    library = _build()[0]
    assert library is not None
    return {dtype: _passes(library, name) for dtype, name in _FORMATS.items()}


def _passes(library: ctypes.CDLL, name: str) -> tuple[Any, Any]:
    return getattr(library, f"two_slope_forward_{name}"), getattr(
        library, f"two_slope_backward_{name}"
    )


@lru_cache(maxsize=1)
def _build() -> tuple[ctypes.CDLL | None, str]:
    """Return (the library, its description), or (None, the reason)."""
    library, state = native.build(SOURCE, [BODY])
    return None if library is None else _declared(library), state


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    size, pointer, number, count = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_double, ctypes.c_int
    library.two_slope_partial.argtypes, library.two_slope_partial.restype = [size] * 3, size
    for name in _FORMATS.values():
        forward_pass, backward_pass = _passes(library, name)
        forward_pass.argtypes = [pointer] * 2 + [size] * 3 + [pointer] * 2 + [number, count]
        backward_pass.argtypes = (
            [pointer] * 3 + [size] * 3 + [pointer] * 2 + [number, count] + [pointer] * 2 + [count]
        )
        forward_pass.restype = backward_pass.restype = None
    return library
