"""A convolution with max pooling, for a stack of nets with their own weights: in C, or by ATen.

Convolutions of ten channels are too small for the libraries. And pooling leaves only a quarter of a
convolution's output with a gradient, which the libraries do not exploit.
``benchmarks/stacked_nets.py`` measures the gain of the C file.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from arelu_tl.activation import native

SOURCE = Path(__file__).with_name("conv_pool.c")
BODY = Path(__file__).with_name("conv_pool_body.h")
# (side of the image, channels in, channels out, kernel) that the C file supports.
_BLOCKS = ((28, 1, 10, 5), (28, 3, 10, 5), (12, 10, 20, 5), (4, 20, 40, 3))
# The same as the shapes of an image, of a net's weight and of its bias.
_SHAPES = {((side, side, ci), (k, k, ci, co), (co,)) for side, ci, co, k in _BLOCKS}


def kernel_state() -> str:
    """Describe how convolutions run on the CPU: "fused (...)", or "portable: " and the reason."""
    return _build()[1]


def conv_pool(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``max_pool2d(conv2d(x, weight, bias), 2)`` for each of N nets, channels last.

    Args:
        x: images (S, B, H, H, C); net n sees ``x[n // (N // S)]``, so that nets may share their
            images.
        weight: (N, K, K, C, D).
        bias: (N, D).

    Returns:
        (N, B, P, P, D) with P = (H - K + 1) // 2.
    """
    if _serves(x, weight, bias):
        result: Tensor = _ConvPool.apply(x, weight, bias)
        return result
    return conv_pool_portable(x, weight, bias)


def conv_pool_portable(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute ``conv_pool`` by ATen, net by net.

    This takes three fifths of the time of its grouped convolution (on one core of an AMD EPYC).
    """
    share = len(weight) // len(x)
    seen = x.permute(0, 1, 4, 2, 3)
    kernels = weight.permute(0, 4, 3, 1, 2)
    maps = [
        F.max_pool2d(F.conv2d(seen[n // share], kernels[n], bias[n]), 2) for n in range(len(weight))
    ]
    return torch.stack([each.permute(0, 2, 3, 1) for each in maps])


class _ConvPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        given = x, weight, bias
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        side = (x.shape[2] - weight.shape[1] + 1) // 2
        y = x.new_empty((len(weight), x.shape[1], side, side, weight.shape[4]))
        taken = torch.empty_like(y, dtype=torch.uint8)
        run = _library()[x.shape[4]][0]
        run(
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            y.data_ptr(),
            taken.data_ptr(),
            *_counts(x, weight),
        )
        ctx.save_for_backward(*given, taken)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, taken = ctx.saved_tensors
        # These may be differentiated again, which torch can do with its own operators.
        if torch.is_grad_enabled():
            asked = [
                t
                for t, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=True)
                if needed
            ]
            found = iter(
                torch.autograd.grad(
                    conv_pool_portable(x, weight, bias), asked, grads[0], create_graph=True
                )
            )
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        grad, x, weight = grads[0].contiguous(), x.contiguous(), weight.contiguous()
        # Shared images are data and need no gradient; ``_serves`` has checked this.
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = (
            torch.empty_like(weight),
            weight.new_empty((len(weight), weight.shape[4])),
        )
        run = _library()[x.shape[4]][1]
        run(
            grad.data_ptr(), taken.data_ptr(), x.data_ptr(), weight.data_ptr(),
            None if grad_x is None else grad_x.data_ptr(),
            grad_weight.data_ptr(), grad_bias.data_ptr(), *_counts(x, weight),
        )  # fmt: skip
        return grad_x, grad_weight, grad_bias


def _counts(x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    return len(weight), len(weight) // len(x), x.shape[1]


def _serves(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    # The C file relies on its fixed shapes: it would read beyond the end of a tensor of another
    # shape.
    return (
        (tuple(x.shape[2:]), tuple(weight.shape[1:]), tuple(bias.shape[1:])) in _SHAPES
        and len(weight) == len(bias)
        and x.device.type == "cpu"
        and x.dtype is weight.dtype is bias.dtype is torch.float32
        and (len(x) == len(weight) or not x.requires_grad)
        and _build()[0] is not None
    )


@lru_cache(maxsize=1)
def _library() -> dict[int, tuple[Any, Any]]:
    """Return {channels in: (forward, backward)}."""
    library = _build()[0]
    assert library is not None
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    found = {}
    for _, channels, *_ in _BLOCKS:
        forward = getattr(library, f"conv_pool_forward_{channels}")
        backward = getattr(library, f"conv_pool_backward_{channels}")
        forward.argtypes, backward.argtypes = [pointer] * 5 + [size] * 3, [pointer] * 7 + [size] * 3
        forward.restype = backward.restype = None
        found[channels] = (forward, backward)
    return found


@lru_cache(maxsize=1)
def _build() -> tuple[ctypes.CDLL | None, str]:
    return native.build(SOURCE, [BODY])
