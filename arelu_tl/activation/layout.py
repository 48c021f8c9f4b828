"""How a map lies in memory, in the three numbers that a loop over it needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: half precision in float32, for a site's gradient is a sum over millions of elements."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_parameters(x: Tensor, parameter: Tensor, channel_dim: int) -> None:
    """
    Raises:
        ValueError: a site's parameters, more than one, are not as many as ``x`` has channels, or lie on another device, whose
            memory a kernel cannot reach.
    """
    if parameter.device != x.device:
        raise ValueError(f"the input is on {x.device}, the parameters are on {parameter.device}: move one to the other")
    channels = parameter.numel()
    if channels > 1 and not (-x.dim() <= channel_dim < x.dim() and x.shape[channel_dim] == channels):
        raise ValueError(f"{channels} parameters need that many channels in dimension {channel_dim}, not shape {tuple(x.shape)}")


def blocks_of(x: Tensor, channels: int, channel_dim: int) -> tuple[int, int, int] | None:
    """(outer, C, inner) of a map without gaps, whose element (o, c, i) lies at (o * C + c) * inner + i.

    C is 1 where there is one slope a side for all: then the whole map is inner. None where it has no such form.
    """
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if channels == 1:
        return (1, 1, x.numel()) if x.is_contiguous() or last else None
    channel_dim %= x.dim()
    if x.is_contiguous():
        return math.prod(x.shape[:channel_dim]), channels, math.prod(x.shape[channel_dim + 1 :])
    return (x.numel() // channels, channels, 1) if last and channel_dim == 1 else None


def over_channels(slope: Tensor, like: Tensor, channel_dim: int) -> Tensor:
    """A (1,) or (C,) slope in the shape that multiplies dimension ``channel_dim`` of ``like``."""
    if slope.numel() == 1:
        return slope.reshape(())
    shape = [1] * like.dim()
    shape[channel_dim] = -1
    return slope.reshape(shape)


# Binary digits of a number, the leading one included.
_DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}


def as_stored(value: float, dtype: torch.dtype) -> float:
    """``value`` as a tensor of ``dtype`` holds it: what a bounded map is to be compared with."""
    fraction, exponent = math.frexp(value)
    digits = _DIGITS[dtype]
    return value if math.isinf(value) else math.ldexp(round(fraction * 2.0**digits), exponent - digits)
