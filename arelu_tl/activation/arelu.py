"""The AReLU module, and what training and records need to do with every AReLU of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.fx
from torch import Tensor, nn

from arelu_tl.activation import operators  # noqa: F401 (registers torch.ops.arelu_tl)
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN, arelu
from arelu_tl.errors import ConfigError

# A symbolic trace records it as one step, as it does torch's own functions.
torch.fx.wrap("arelu")


def check_initial_values(alpha: float, beta: float, num_parameters: int) -> None:
    """Check the initial values of an AReLU.

    Raises:
        ConfigError: alpha is outside [0.01, 0.99], beta is NaN or infinite, or ``num_parameters``
            is less than 1.
    """
    if not ALPHA_MIN <= alpha <= ALPHA_MAX:
        raise ConfigError(
            f"alpha must lie in [{ALPHA_MIN}, {ALPHA_MAX}], outside which it has no gradient: "
            f"{alpha}"
        )
    if not math.isfinite(beta):
        raise ConfigError(f"beta must be a number: {beta}")
    if num_parameters < 1:
        raise ConfigError(f"num_parameters must be 1 or the number of channels: {num_parameters}")


class AReLU(nn.Module):
    """Attention-based rectified linear unit (Chen, Li, Xu, arXiv 2006.13858, equation 3).

        y = scale * (1 + sigmoid(beta)) * x          x >= 0, at most ``cap``
        y = scale * clamp(alpha, 0.01, 0.99) * x     x <  0

    With the defaults it is the paper's AReLU, bit for bit equal to the authors' code, gradients
    included.

    Args:
        alpha: initial slope of negative elements, in [0.01, 0.99].
        beta: initial amplification of positive elements, before the sigmoid; 2.0 amplifies by 1.88.
        num_parameters: 1 for one alpha and beta (the paper's layer-wise form), C for one pair per
            channel.
        channel_dim: dimension of those channels: 1 as in torch.nn, -1 for channels last as in
            transformers.
        scale: constant factor on both branches, greater than 0; kept as a buffer, never trained.
        cap: upper bound of the output (6.0 in place of a ReLU6), or None.
        device, dtype: of the parameters, as in torch.nn; torch's defaults if None.
        inplace: overwrite the input, as ``nn.ReLU(inplace=True)`` does, also for its other holders,
            and save only the output for the backward pass.
        keep_input: with ``inplace``, save a copy of the input for the backward pass nevertheless,
            which costs the memory of one map.

    Shape:
        any -> same; C channels in dimension ``channel_dim`` if ``num_parameters`` is C > 1. The
        dtype follows the input.

    Raises:
        ConfigError: a value is out of its range.
    """

    scale: Tensor

    def __init__(
        self,
        alpha: float = 0.90,
        beta: float = 2.0,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        scale: float = 1.0,
        cap: float | None = None,
        inplace: bool = False,
        keep_input: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_initial_values(alpha, beta, num_parameters)
        if not 0 < scale < math.inf:
            raise ConfigError(f"scale must be greater than 0: {scale}")
        if cap is not None and not cap > 0:
            raise ConfigError(f"cap must be greater than 0: {cap}")
        self.num_parameters = num_parameters
        self.channel_dim = channel_dim
        self.cap = cap
        self.inplace = inplace
        self.keep_input = keep_input
        self.alpha = nn.Parameter(
            torch.full((num_parameters,), float(alpha), device=device, dtype=dtype)
        )
        self.beta = nn.Parameter(
            torch.full((num_parameters,), float(beta), device=device, dtype=dtype)
        )
        self.register_buffer("scale", torch.tensor(float(scale), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to ``x``."""
        if self.inplace and self.keep_input:
            # Later readers of x get the result, as they did with the ReLU, so the net computes the
            # same function with and without ``keep_input``.
            return x.copy_(
                arelu(
                    x.clone(),
                    self.alpha,
                    self.beta,
                    scale=self.scale,
                    cap=self.cap,
                    channel_dim=self.channel_dim,
                )
            )
        return arelu(
            x,
            self.alpha,
            self.beta,
            scale=self.scale,
            cap=self.cap,
            inplace=self.inplace,
            channel_dim=self.channel_dim,
        )

    @torch.no_grad()
    def project_(self) -> None:
        """Clip alpha into [0.01, 0.99] in place.

        Call it after every optimiser step: outside the clamp alpha's gradient is 0, so it would
        never come back.
        """
        self.alpha.clamp_(ALPHA_MIN, ALPHA_MAX)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        parts = [f"num_parameters={self.num_parameters}"]
        if self.num_parameters > 1 and self.channel_dim != 1:
            parts.append(f"channel_dim={self.channel_dim}")
        if self.scale.device.type != "meta":
            parts.append(f"scale={self.scale.item():.6g}")
        if self.cap is not None:
            parts.append(f"cap={self.cap:g}")
        if self.inplace:
            parts.append("inplace=True, keep_input=True" if self.keep_input else "inplace=True")
        return ", ".join(parts)


def named_arelus(model: nn.Module) -> Iterator[tuple[str, AReLU]]:
    """Yield each AReLU of ``model`` once, with its first qualified name."""
    for name, module in model.named_modules():
        if isinstance(module, AReLU):
            yield name, module


@torch.no_grad()
def project(alphas: Sequence[Tensor]) -> None:
    """Clip every alpha into [0.01, 0.99] in place.

    All are clipped together, in one kernel launch instead of one per site.
    """
    if alphas:
        torch._foreach_clamp_min_(list(alphas), ALPHA_MIN)
        torch._foreach_clamp_max_(list(alphas), ALPHA_MAX)


def site_values(model: nn.Module) -> dict[str, list[float]]:
    """Return {site name: [alpha, beta]}, with means over the channels of a site with several pairs.

    One copy from the device serves all sites.
    """
    pairs = [(name, m) for name, m in named_arelus(model)]
    if not pairs:
        return {}
    stacked = torch.stack(
        [
            torch.stack((m.alpha.detach().float().mean(), m.beta.detach().float().mean()))
            for _, m in pairs
        ]
    )
    return {
        name: [float(a), float(b)]
        for (name, _), (a, b) in zip(pairs, stacked.tolist(), strict=True)
    }
