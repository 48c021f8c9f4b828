"""Element-wise, sign-based attention on top of any activation: the mechanism of which AReLU is the case over ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arelu_tl.activation.arelu import check_initial_values
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN
from arelu_tl.activation.layout import over_channels


def attention_map(x: Tensor, alpha: Tensor, beta: Tensor, *, channel_dim: int = 1) -> Tensor:
    """The attention Phi over the pre-activation ``x``, expanded to its full shape (arXiv 2006.13858, section 3).

        Phi = sigmoid(beta)               x >= 0
        Phi = clamp(alpha, 0.01, 0.99)    x <  0

    Args:
        x: pre-activations, any shape.
        alpha, beta: of one number, or (C,) for C channels in ``channel_dim``.

    Returns:
        a map of the shape and format of ``x``, differentiable in alpha and beta.
    """
    # Not clamp's own gradient: an alpha that stands on a bound has to be able to leave it, as AReLU's can.
    within = (alpha >= ALPHA_MIN) & (alpha <= ALPHA_MAX)
    bounded = torch.where(within, alpha, alpha.detach().clamp(ALPHA_MIN, ALPHA_MAX))
    low, high = (over_channels(p.to(x.dtype), x, channel_dim) for p in (bounded, beta.sigmoid()))
    return torch.where(x < 0, low, high)


def modulate(x: Tensor, attention: Tensor) -> Tensor:
    """The modulator Psi: the product, element by element, of the pre-activation and its attention.

    Shape:
        any and the same -> same.
    """
    return attention * x


class ELSA(nn.Module):
    """``activation(x) + L(x; alpha, beta)``, L the pre-activation modulated by its attention (arXiv 2006.13858, equation 2).

    Over ReLU it is AReLU: positives get 1 + sigmoid(beta), negatives clamp(alpha). At x = 0 alone their derivatives differ:
    here what the product gives, the activation's own plus sigmoid(beta); there 0, as the authors' code has it.

    Args:
        activation: any element-wise module that works out of place; None for L alone.
        alpha: initial attention of negative elements, in [0.01, 0.99].
        beta: initial attention of positive elements, before the sigmoid.
        num_parameters: 1 for one alpha and beta, C for one pair a channel.
        channel_dim: dimension of those channels.

    Shape:
        any -> same; C channels in ``channel_dim`` where ``num_parameters`` is C > 1.

    Raises:
        ConfigError: alpha out of its range, beta no number, ``num_parameters`` less than 1.
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
        """Phi, of the shape of ``x``."""
        return attention_map(x, self.alpha, self.beta, channel_dim=self.channel_dim)

    def forward(self, x: Tensor) -> Tensor:
        attended = modulate(x, self.attention(x))
        return attended if self.activation is None else self.activation(x) + attended
