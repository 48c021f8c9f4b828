"""Choose the implementation ("body") that computes a map.

It is a one-pass kernel where one exists, and ATen's operators otherwise.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from arelu_tl.activation import fused, gpu, portable


class Body(Protocol):
    """The common interface of the modules that compute the map; see ``portable``."""

    def forward(
        self,
        x: Tensor,
        positive: Tensor,
        negative: Tensor,
        cap: float | None,
        channel_dim: int,
        *,
        inplace: bool,
    ) -> Tensor: ...

    def backward(
        self, grad: Tensor, kept: Tensor, positive: Tensor, negative: Tensor, cap: float | None,
        channel_dim: int,
        *, output: bool, summed: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]: ...  # fmt: skip


def body_for(x: Tensor, channels: int, channel_dim: int) -> Body:
    """Return the body for the map ``x`` and slopes of shape (channels,)."""
    if fused.serves(x, channels, channel_dim):
        return fused
    return gpu if gpu.serves(x, channels, channel_dim) else portable
