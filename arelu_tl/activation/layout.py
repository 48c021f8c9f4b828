"""Describe a map's memory layout by the three numbers that a loop over it needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in.

    Half precision is computed in float32, because a site's gradient is a sum over millions of
    elements.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_parameters(x: Tensor, parameter: Tensor, channel_dim: int) -> None:
    """Check that a site's parameters fit the map ``x``.

    Raises:
        ValueError: there is more than one parameter but not one per channel of ``x``, or they are
            on another device, whose memory a kernel cannot reach.
    """
    if parameter.device != x.device:
        raise ValueError(
            f"the input is on {x.device}, the parameters are on {parameter.device}: move one to "
            "the other"
        )
    channels = parameter.numel()
    if channels > 1 and not (
        -x.dim() <= channel_dim < x.dim() and x.shape[channel_dim] == channels
    ):
        raise ValueError(
            f"{channels} parameters need that many channels in dimension {channel_dim}, not shape "
            f"{tuple(x.shape)}"
        )


def blocks_of(x: Tensor, channels: int, channel_dim: int) -> tuple[int, int, int] | None:
    """Return (outer, C, inner) of a map without gaps, or None if it has no such form.

    Element (o, c, i) is at (o * C + c) * inner + i. With one slope per side for the whole map, C is
    1 and the whole map is inner.
    """
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if channels == 1:
        return (1, 1, x.numel()) if x.is_contiguous() or last else None
    channel_dim %= x.dim()
    if x.is_contiguous():
        return math.prod(x.shape[:channel_dim]), channels, math.prod(x.shape[channel_dim + 1 :])
    return (x.numel() // channels, channels, 1) if last and channel_dim == 1 else None


def over_channels(
    slope: Tensor, like: Tensor, channel_dim: int, channels: int | None = None
) -> Tensor:
    """Reshape a (1,) or (C,) slope so that it multiplies dimension ``channel_dim`` of ``like``.

    Args:
        channels: the slope's number of elements, where it is known: asking for it warns in a trace.
    """
    if (slope.numel() if channels is None else channels) == 1:
        return slope.reshape(())
    shape = [1] * like.dim()
    shape[channel_dim] = -1
    return slope.reshape(shape)


# Bits of the significand, including the leading one.
_DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}


def as_stored(value: float, dtype: torch.dtype) -> float:
    """Round ``value`` to ``dtype``, to compare it with the elements of a bounded map."""
    fraction, exponent = math.frexp(value)
    digits = _DIGITS[dtype]
    return (
        value if math.isinf(value) else math.ldexp(round(fraction * 2.0**digits), exponent - digits)
    )
