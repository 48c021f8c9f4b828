"""The activations that can stand at a site, one an arm: AReLU, the controls that tell what of it helps, and rivals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from timm.layers import get_act_layer, register_notrace_module
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN
from arelu_tl.errors import ConfigError

# Rivals have neither slopes to set nor a gain to normalise: they go in as they are. Every one is torch's or timm's own.
_RIVALS: dict[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "quick-gelu": lambda: get_act_layer("quick_gelu")(),
    "rrelu": nn.RReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanh": nn.Tanh,
}
# Arms whose start has a slope for negatives, set by alpha and beta.
SLOPED_ARMS = ("arelu", "arelu-frozen", "leaky", "prelu")
SURGERY_ARMS = (*SLOPED_ARMS, *_RIVALS)


class SiteActivation(nn.Module):
    """A rival at a site: its activation under the site's cap, over the site's input where the ReLU overwrote it.

    Args:
        activation: any element-wise module, run out of place.
        cap: upper bound of the output (6.0 where a ReLU6 stood), None for none.
        inplace: write the result into the input, as the ReLU did, for whoever else holds it.

    Shape:
        as ``activation``.
    """

    def __init__(self, activation: nn.Module, *, cap: float | None = None, inplace: bool = False) -> None:
        super().__init__()
        self.activation = activation
        self.cap = cap
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        # The backward passes of most activations need their input, so what they get must not be what is overwritten.
        y: Tensor = self.activation(x.clone() if self.inplace else x)
        if self.cap is not None:
            y = y.clamp(max=self.cap)
        return x.copy_(y) if self.inplace else y


# timm's feature extraction by torch.fx takes these for leaves, as it takes torch.nn's own activations.
register_notrace_module(AReLU)
register_notrace_module(SiteActivation)


class _PReLU(nn.PReLU):
    """torch's, for inputs of any floating type: weights may be kept wider than the maps that they act on."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return F.prelu(input, self.weight.to(input.dtype))


def make_activation(
    arm: str,
    *,
    alpha: float,
    beta: float,
    scale: float,
    cap: float | None = None,
    num_parameters: int = 1,
    channel_dim: int = 1,
    inplace: bool = False,
    keep_input: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """What the arm ``arm`` puts at a site.

    ``arelu`` learns alpha and beta; ``arelu-frozen`` is the same function, never trained; ``leaky`` is a LeakyReLU whose fixed
    slope is AReLU's at its start relative to its gain, clamp(alpha) / (1 + sigmoid(beta)), positives unchanged; ``prelu``
    starts as that and learns the slope. So leaky says what a leak gives, prelu what learning it adds, and arelu the rest.
    Any other arm is the activation of that name in torch.nn or timm with its own defaults.

    Args:
        alpha, beta, scale, cap, num_parameters, channel_dim, inplace, device, dtype: see ``AReLU``.
        keep_input: as there; the rivals, whose backward passes are torch's, always do.

    Raises:
        ConfigError: unknown arm; several parameters for channels that are not in dimension 1, where PReLU has them.
    """
    if arm in ("arelu", "arelu-frozen"):
        module = AReLU(
            alpha, beta, num_parameters=num_parameters, channel_dim=channel_dim,
            scale=scale, cap=cap, inplace=inplace, keep_input=keep_input, device=device, dtype=dtype,
        )  # fmt: skip
        return module.requires_grad_(arm == "arelu")
    slope = min(max(alpha, ALPHA_MIN), ALPHA_MAX) / (1 + 1 / (1 + math.exp(-beta)))
    if arm == "leaky":
        return SiteActivation(nn.LeakyReLU(slope), cap=cap, inplace=inplace)
    if arm == "prelu":
        if num_parameters > 1 and channel_dim != 1:
            raise ConfigError("prelu learns a slope a channel only where channels are dimension 1: use --granularity site")
        return SiteActivation(_PReLU(num_parameters, slope, device=device, dtype=dtype), cap=cap, inplace=inplace)
    if arm not in _RIVALS:
        raise ConfigError(f"unknown arm {arm!r}: relu, {', '.join(SURGERY_ARMS)}")
    return SiteActivation(_RIVALS[arm](), cap=cap, inplace=inplace)


def named_activations(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each module that surgery put into ``model``, once, under its first qualified name."""
    for name, module in model.named_modules():
        if isinstance(module, AReLU | SiteActivation):
            yield name, module


def activation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter, trained or frozen, of the modules that surgery put into ``model``, in module order."""
    return [p for _, module in named_activations(model) for p in module.parameters()]
