"""Which of the bodies computes a map: one pass by a kernel where there is one for it, ATen's operators elsewhere."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from arelu_tl.activation import fused, gpu, portable


class Body(Protocol):
    """What the modules that compute the map have in common; see ``portable``."""

    def forward(
        self, x: Tensor, positive: Tensor, negative: Tensor, cap: float | None, channel_dim: int, *, inplace: bool
    ) -> Tensor: ...

    def backward(
        self, grad: Tensor, kept: Tensor, positive: Tensor, negative: Tensor, cap: float | None, channel_dim: int,
        *, output: bool, summed: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]: ...  # fmt: skip


def body_for(x: Tensor, channels: int, channel_dim: int) -> Body:
    """The body for ``x`` and (channels,) slopes."""
    if fused.serves(x, channels, channel_dim):
        return fused
    return gpu if gpu.serves(x, channels, channel_dim) else portable
