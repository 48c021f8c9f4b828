"""Rivals that torch lacks: the paper's APL, Combine, PAU and SLAF, which learn, and Maxout; CTU.

All are plain tensor operations, so that autograd, ``torch.func`` and any device support them. A
symbolic trace, which cannot see how many parameters there are, records each as one step. Parameters
may have a wider dtype than the maps; the result has the map's dtype.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.activation.layout import accumulation_dtype, over_channels
from arelu_tl.errors import ConfigError

# Fitted by the authors of PAU to a leaky ReLU of slope 0.01 on [-3, 3], with an error below 0.03.
_PAU_NUMERATOR = (
    0.02979246288526298, 0.6183773789612337, 2.3233520651936353, 3.052026602542499,
    1.4854800210559198, 0.251037168372098,
)  # fmt: skip
_PAU_DENOMINATOR = (-1.1420122633320064, 4.393228336652794, 0.8715444974667658, 0.34720651626640646)

# As in the code of CTU's authors: 1 - beta is at least this.
_LEAST_REST = 1e-6

_Device = torch.device | str | None


class Positive(nn.Module):
    """max(0, x) as a part of a rival: equal to ReLU in values and gradients, and NaN for NaN.

    It does not use torch's ReLU, which surgery would find: it lets no ReLU stay in a net.

    Shape:
        any -> same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return _positive(x)


def _positive(x: Tensor) -> Tensor:
    return torch.where(x <= 0, 0, x)


class APL(nn.Module):
    """Adaptive piecewise linear unit (Agostinelli et al., arXiv 1412.6830, equation 1).

        y = max(0, x) + sum_s a_s * max(0, b_s - x)

    It starts as in the AReLU authors' code: one hinge, a = 0.2, b = 0.5.

    Args:
        hinges: number of terms of the sum, with two parameters each.
        a, b: initial values of every term.
        device, dtype: of the parameters, as in torch.nn.

    Shape:
        any -> same.

    Raises:
        ConfigError: ``hinges`` is less than 1.
    """

    def __init__(
        self,
        hinges: int = 1,
        *,
        a: float = 0.2,
        b: float = 0.5,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if hinges < 1:
            raise ConfigError(f"APL has at least one hinge: {hinges}")
        self.a = nn.Parameter(torch.full((hinges,), a, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.full((hinges,), b, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return _apl(x, self.a, self.b)


@torch.fx.wrap
def _apl(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = _positive(x)
    for slope, hinge in zip(a.to(x.dtype).unbind(), b.to(x.dtype).unbind(), strict=True):
        y = y + slope * _positive(hinge - x)
    return y


class Combine(nn.Module):
    """Learned combination of the identity and ReLU (Manessi and Rozza, arXiv 1801.09403).

        y = p * x + (1 - p) * max(0, x)

    The weights add up to 1. It starts as ReLU, p = 0, like the AReLU authors' ``Mixture``.

    Args:
        p: initial share of the identity.
        device, dtype: of the parameter, as in torch.nn.

    Shape:
        any -> same.
    """

    def __init__(
        self, p: float = 0.0, *, device: _Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        p = self.p.to(x.dtype).reshape(())
        return p * x + (1 - p) * _positive(x)


class PAU(nn.Module):
    """Padé activation unit of degree 5 over 4, in its form without poles.

    Molina, Schramowski, Kersting, arXiv 1907.06732:

        y = (a0 + a1 x + ... + a5 x^5) / (1 + |b1 x| + ... + |b4 x^4|)

    It starts as its authors' fit to a leaky ReLU of slope 0.01. Beyond |x| = 1 both polynomials are
    divided by x^4, so that no power overflows and the quotient is exact wherever it is finite. A
    dtype narrower than float32 is computed in float32.

    Args:
        device, dtype: of the parameters, as in torch.nn.

    Shape:
        any -> same.
    """

    def __init__(self, *, device: _Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.numerator = nn.Parameter(torch.tensor(_PAU_NUMERATOR, device=device, dtype=dtype))
        self.denominator = nn.Parameter(torch.tensor(_PAU_DENOMINATOR, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return _pau(x, self.numerator, self.denominator)


@torch.fx.wrap
def _pau(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    wide = accumulation_dtype(x.dtype)
    z = x.to(wide)
    a, b = numerator.to(wide).unbind(), denominator.to(wide).abs().unbind()
    near = z.abs() <= 1
    # Each branch only sees arguments of at most 1, so that the branch not selected cannot make the
    # gradient NaN.
    small = torch.where(near, z, 0)
    inverse = 1 / torch.where(near, 1, z)
    near_y = _polynomial(a, small) / _polynomial((1, *b), small.abs())
    far_y = (a[5] * torch.where(near, 0, z) + _polynomial(a[4::-1], inverse)) / _polynomial(
        (*b[::-1], 1), inverse.abs()
    )
    return torch.where(near, near_y, far_y).to(x.dtype)


def _polynomial(coefficients: tuple[Tensor | float, ...], x: Tensor) -> Tensor:
    """Evaluate c0 + c1 x + c2 x^2 + ... by Horner's rule."""
    *rest, y = coefficients
    for c in reversed(rest):
        y = y * x + c
    assert isinstance(y, Tensor)  # because x or a coefficient is
    return y


class SLAF(nn.Module):
    """Self-learnable activation function, a polynomial (Goyal et al., arXiv 1906.09529, eq. 1).

        y = c_0 + c_1 x + ... + c_(k-1) x^(k-1)

    It starts as in the AReLU authors' code: k = 2 and all ones, the straight line 1 + x.

    Args:
        terms: k, the number of parameters.
        device, dtype: of the parameters, as in torch.nn.

    Shape:
        any -> same.

    Raises:
        ConfigError: ``terms`` is less than 1.
    """

    def __init__(
        self, terms: int = 2, *, device: _Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if terms < 1:
            raise ConfigError(f"SLAF has at least one term: {terms}")
        self.coefficients = nn.Parameter(torch.ones(terms, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return _slaf(x, self.coefficients)


@torch.fx.wrap
def _slaf(x: Tensor, coefficients: Tensor) -> Tensor:
    return _polynomial(coefficients.to(x.dtype).unbind(), x).expand_as(x)


class Maxout(nn.Module):
    """The maximum of each ``pool_size`` adjacent channels (Goodfellow et al., arXiv 1302.4389).

    If several are equal, the first counts. The AReLU authors' code pools one channel, which makes
    it the identity; so does the catalogue.

    Shape:
        (B, C, ...) -> (B, C / pool_size, ...).

    Raises:
        ConfigError: ``pool_size`` is less than 1, or does not divide C.
    """

    def __init__(self, pool_size: int = 1) -> None:
        super().__init__()
        if pool_size < 1:
            raise ConfigError(f"Maxout pools at least one channel: {pool_size}")
        self.pool_size = pool_size

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return _maxout(x, self.pool_size)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"pool_size={self.pool_size}"


@torch.fx.wrap
def _maxout(x: Tensor, pool_size: int) -> Tensor:
    if x.shape[1] % pool_size:
        raise ConfigError(f"Maxout cannot pool {x.shape[1]} channels by {pool_size}")
    grouped = x.reshape(x.shape[0], x.shape[1] // pool_size, pool_size, *x.shape[2:])
    return grouped.max(2).values


class _ChannelWise(nn.Module):
    """A rival with one set of parameters, or one for each channel, that begin as ``starts`` says.

    Args:
        num_parameters: 1, or the number of channels.
        channel_dim: dimension of the channels.
        device, dtype: of the parameters, as in torch.nn.
    """

    starts: ClassVar[dict[str, float]]

    def __init__(
        self,
        num_parameters: int = 1,
        *,
        channel_dim: int = 1,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_parameters, self.channel_dim = num_parameters, channel_dim
        for name, value in self.starts.items():
            start = torch.full((num_parameters,), value, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(start))


class GainOnly(_ChannelWise):
    """A ReLU whose gain is learned, the part of AReLU that is not a leak.

        y = (1 + sigmoid(beta)) / (1 + sigmoid(2)) * max(0, x)

    It starts as ReLU, beta = 2 as in the paper, with AReLU's gradient with respect to beta. Its
    arguments are those of ``CTU``.

    Shape:
        any -> same.
    """

    starts: ClassVar[dict[str, float]] = {"beta": 2.0}
    beta: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return _gain_only(x, self.beta, self.num_parameters, self.channel_dim)


@torch.fx.wrap
def _gain_only(x: Tensor, beta: Tensor, channels: int, channel_dim: int) -> Tensor:
    gain = (1 + torch.sigmoid(beta)) / (1 + 1 / (1 + math.exp(-GainOnly.starts["beta"])))
    return _positive(x) * over_channels(gain.to(x.dtype), x, channel_dim, channels)


class CTU(_ChannelWise):
    """Curvature tuning unit (Hu, Gamba and Balestriero, arXiv 2502.07783), trainable.

        y = c * x * sigmoid(x * beta / (1 - beta)) + (1 - c) * (1 - beta) * softplus(x / (1 - beta))

    A mean of SiLU and Softplus, both of which are ReLU for beta = 1. It starts as its authors
    start the trainable one: beta = 0.8, c = 0.5; both are learned through a sigmoid.

    Args:
        num_parameters: 1, or the number of channels.
        channel_dim: dimension of the channels.
        device, dtype: of the parameters, as in torch.nn.

    Shape:
        any -> same.
    """

    starts: ClassVar[dict[str, float]] = {"raw_beta": math.log(0.8 / 0.2), "raw_c": 0.0}
    raw_beta: nn.Parameter
    raw_c: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        return _ctu(x, self.raw_beta, self.raw_c, self.num_parameters, self.channel_dim)


@torch.fx.wrap
def _ctu(x: Tensor, raw_beta: Tensor, raw_c: Tensor, channels: int, channel_dim: int) -> Tensor:
    wide = accumulation_dtype(x.dtype)
    raw_beta = over_channels(raw_beta.to(wide), x, channel_dim, channels)
    raw_c = over_channels(raw_c.to(wide), x, channel_dim, channels)
    # sigmoid(-r) is 1 - sigmoid(r) without cancellation.
    rest = torch.sigmoid(-raw_beta).clamp(min=_LEAST_REST)
    c, z = torch.sigmoid(raw_c), x.to(wide)
    silu = z * torch.sigmoid(z * torch.sigmoid(raw_beta) / rest)
    # Beyond 40, log(1 + exp(z)) is z in any dtype.
    softplus = rest * F.softplus(z / rest, threshold=40)
    return (c * silu + (1 - c) * softplus).to(x.dtype)
