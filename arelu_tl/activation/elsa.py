"""Element-wise, sign-based attention (ELSA) on top of any activation.

AReLU is this mechanism on top of ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arelu_tl.activation.arelu import check_initial_values
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN
from arelu_tl.activation.layout import over_channels


def attention_map(x: Tensor, alpha: Tensor, beta: Tensor, *, channel_dim: int = 1) -> Tensor:
    """Compute the attention Phi of the pre-activation ``x``, full shape (arXiv 2006.13858, sec. 3).

        Phi = sigmoid(beta)               x >= 0
        Phi = clamp(alpha, 0.01, 0.99)    x <  0

    Args:
        x: pre-activations, any shape.
        alpha, beta: shape (1,), or (C,) for C channels in ``channel_dim``.
        channel_dim: dimension of the channels.

    Returns:
        A map with the shape and dtype of ``x``, differentiable in alpha and beta.
    """
    # Not clamp's own gradient: an alpha on a bound must be able to leave it, as AReLU's can.
    within = (alpha >= ALPHA_MIN) & (alpha <= ALPHA_MAX)
    bounded = torch.where(within, alpha, alpha.detach().clamp(ALPHA_MIN, ALPHA_MAX))
    low, high = (over_channels(p.to(x.dtype), x, channel_dim) for p in (bounded, beta.sigmoid()))
    return torch.where(x < 0, low, high)


def modulate(x: Tensor, attention: Tensor) -> Tensor:
    """Apply the modulator Psi: the element-wise product of the pre-activation and its attention.

    Shape:
        two of the same shape -> same.
    """
    return attention * x


class ELSA(nn.Module):
    """``activation(x) + L(x; alpha, beta)`` (arXiv 2006.13858, equation 2).

    L is the pre-activation modulated by its attention. Over ReLU it is AReLU: positives get 1 +
    sigmoid(beta), negatives clamp(alpha). Only the derivatives at x = 0 differ: here it is that of
    the sum, the activation's own plus sigmoid(beta); in AReLU it is 0, as in the authors' code.

    Args:
        activation: any element-wise module that works out of place; None for L alone.
        alpha: initial attention of negative elements, in [0.01, 0.99].
        beta: initial attention of positive elements, before the sigmoid.
        num_parameters: 1 for one alpha and beta, C for one pair per channel.
        channel_dim: dimension of those channels.

    Shape:
        any -> same; C channels in ``channel_dim`` if ``num_parameters`` is C > 1.

    Raises:
        ConfigError: alpha is out of its range, beta is NaN or infinite, or ``num_parameters`` is
            less than 1.
    """

    def __init__(
        self,
        activation: nn.Module | None = None,
        alpha: float = 0.90,
        beta: float = 2.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        check_initial_values(alpha, beta, num_parameters)
        self.activation = activation
        self.channel_dim = channel_dim
        self.alpha = nn.Parameter(torch.full((num_parameters,), float(alpha)))
        self.beta = nn.Parameter(torch.full((num_parameters,), float(beta)))

    def attention(self, x: Tensor) -> Tensor:
        """Return Phi, in the shape of ``x``."""
        return attention_map(x, self.alpha, self.beta, channel_dim=self.channel_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``activation(x) + L(x)``."""
        attended = modulate(x, self.attention(x))
        return attended if self.activation is None else self.activation(x) + attended
