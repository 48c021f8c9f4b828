"""The activations that can be put at a site, one per arm.

They are AReLU, the controls that show which part of it helps, and rivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from timm.layers import get_act_layer, register_notrace_module
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN
from arelu_tl.activation.rivals import APL, CTU, PAU, SLAF, Combine, GainOnly, Maxout, Positive
from arelu_tl.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """An activation compared in the paper (arXiv 2006.13858, table 1), initialised as in its code.

    Attributes:
        name: its key, and the arm's name.
        title: as printed in the paper.
        parameters: number of learned parameters.
        formula: as a function of x, with the initial values of learned parameters.
        source: where it was proposed.
        make: makes a new instance.
    """

    name: str
    title: str
    parameters: int
    formula: str
    source: str
    make: Callable[[], nn.Module]

    @property
    def learnable(self) -> bool:
        return self.parameters > 0


# In the paper's order: fixed activations, learned ones, AReLU.
CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "celu",
            "CELU",
            0,
            "max(0, x) + min(0, exp(x) − 1)",
            "Barron, arXiv 1704.07483",
            nn.CELU,
        ),
        Entry(
            "elu",
            "ELU",
            0,
            "x for x > 0, else exp(x) − 1",
            "Clevert et al., arXiv 1511.07289",
            nn.ELU,
        ),
        Entry(
            "gelu",
            "GELU",
            0,
            "x · Φ(x), Φ the normal distribution's",
            "Hendrycks, Gimpel, arXiv 1606.08415",
            nn.GELU,
        ),
        Entry(
            "leaky-relu",
            "LeakyReLU",
            0,
            "max(0, x) + 0.01 min(0, x)",
            "Maas et al., ICML 2013",
            nn.LeakyReLU,
        ),
        Entry(
            "maxout",
            "Maxout",
            0,
            "max over channels; of one: x",
            "Goodfellow et al., arXiv 1302.4389",
            Maxout,
        ),
        Entry(
            "rrelu",
            "RReLU",
            0,
            "max(0, x) + a min(0, x), a drawn from [1/8, 1/3]",
            "Xu et al., arXiv 1505.00853",
            nn.RReLU,
        ),
        Entry("relu", "ReLU", 0, "max(0, x)", "Nair, Hinton, ICML 2010", nn.ReLU),
        Entry("relu6", "ReLU6", 0, "min(max(0, x), 6)", "Krizhevsky, 2010", nn.ReLU6),
        Entry(
            "selu",
            "SELU",
            0,
            "1.0507 (x for x > 0, else 1.6733 (exp(x) − 1))",
            "Klambauer et al., arXiv 1706.02515",
            nn.SELU,
        ),
        Entry("sigmoid", "Sigmoid", 0, "σ(x) = 1 / (1 + exp(−x))", "", nn.Sigmoid),
        Entry("softplus", "Softplus", 0, "log(1 + exp(x))", "Dugas et al., NIPS 2000", nn.Softplus),
        Entry("silu", "Swish", 0, "x · σ(x)", "Ramachandran et al., arXiv 1710.05941", nn.SiLU),
        Entry("tanh", "Tanh", 0, "tanh(x)", "", nn.Tanh),
        Entry(
            "apl",
            "APL",
            2,
            "max(0, x) + a max(0, b − x); a = 0.2, b = 0.5",
            "Agostinelli et al., arXiv 1412.6830",
            APL,
        ),
        Entry(
            "combine",
            "Combine",
            1,
            "p x + (1 − p) max(0, x); p = 0",
            "Manessi, Rozza, arXiv 1801.09403",
            Combine,
        ),
        Entry(
            "pau",
            "PAU",
            10,
            "(a₀ + … + a₅x⁵) / (1 + |b₁x| + … + |b₄x⁴|)",
            "Molina et al., arXiv 1907.06732",
            PAU,
        ),
        Entry(
            "prelu",
            "PReLU",
            1,
            "max(0, x) + a min(0, x); a = 0.25",
            "He et al., arXiv 1502.01852",
            nn.PReLU,
        ),
        Entry("slaf", "SLAF", 2, "c₀ + c₁x; ones", "Goyal et al., arXiv 1906.09529", SLAF),
        Entry(
            "arelu",
            "AReLU",
            2,
            "(1 + σ(β)) max(0, x) + α min(0, x); α = 0.9, β = 2",
            "Chen, Li, Xu, arXiv 2006.13858",
            AReLU,
        ),
    )
}

# Rivals have neither slopes to set nor a gain to normalise, so they are used as they are. Each is
# from the paper's comparison, or one of torch's or timm's. relu is the baseline, arelu and prelu
# are arms below, relu6 is a cap, and Maxout is not an activation.
_LEARNING: dict[str, Callable[..., nn.Module]] = {
    "apl": APL,
    "combine": Combine,
    "pau": PAU,
    "slaf": SLAF,
}
# These also learn once a channel.
_LEARNING_WIDELY: dict[str, Callable[..., nn.Module]] = {"curvature": CTU, "gain-only": GainOnly}
_FIXED: dict[str, Callable[[], nn.Module]] = {
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "quick-gelu": lambda: get_act_layer("quick_gelu")(),
    "softsign": nn.Softsign,
    **{
        e.name: e.make
        for e in CATALOGUE.values()
        if not e.learnable and e.name not in ("relu", "relu6", "maxout")
    },
}
# Arms whose initial slope for negatives is set by alpha and beta.
SLOPED_ARMS = ("arelu", "arelu-frozen", "leaky", "prelu")
# Arms that can have a set of parameters for each channel.
CHANNEL_ARMS = ("arelu", "arelu-frozen", "prelu", *_LEARNING_WIDELY)
SURGERY_ARMS = (*SLOPED_ARMS, *sorted([*_FIXED, *_LEARNING, *_LEARNING_WIDELY, "relu6"]))


class SiteActivation(nn.Module):
    """A rival at a site: an activation with the site's cap, in place if the ReLU was.

    Args:
        activation: any element-wise module, run out of place.
        cap: upper bound of the output (6.0 in place of a ReLU6), or None.
        inplace: write the result into the input, as the ReLU did, also for its other holders.

    Shape:
        as ``activation``.
    """

    def __init__(
        self, activation: nn.Module, *, cap: float | None = None, inplace: bool = False
    ) -> None:
        super().__init__()
        self.activation = activation
        self.cap = cap
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation and the cap to ``x``."""
        # Most backward passes need their input, so the activation must not get the tensor that is
        # overwritten.
        y: Tensor = self.activation(x.clone() if self.inplace else x)
        if self.cap is not None:
            y = y.clamp(max=self.cap)
        return x.copy_(y) if self.inplace else y


# timm's feature extraction by torch.fx treats these as leaves, like torch.nn's activations.
register_notrace_module(AReLU)
register_notrace_module(SiteActivation)


class _PReLU(nn.PReLU):
    """torch's PReLU, for inputs of any floating dtype.

    The weights may have a wider dtype than the maps.
    """

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
    """Make the activation that the arm ``arm`` puts at a site.

    ``arelu`` learns alpha and beta; ``arelu-frozen`` is the same function, never trained; ``leaky``
    is a LeakyReLU whose fixed slope is AReLU's initial slope relative to its gain, clamp(alpha) /
    (1 + sigmoid(beta)), with positives unchanged; ``prelu`` starts with that slope and learns it.
    So leaky shows the effect of a leak, prelu that of learning it, gain-only, which has none, that
    of learning a gain, and arelu the rest. Any other arm is the activation of that name in the
    catalogue, torch.nn or timm, or the CTU (curvature), with its own defaults; its parameters, if
    any, are learned.

    Args:
        arm: name of the arm.
        alpha, beta, scale, cap, num_parameters, channel_dim, inplace, device, dtype: see ``AReLU``.
        keep_input: see ``AReLU``; the rivals, whose backward passes are torch's, always keep it.

    Raises:
        ConfigError: the arm is unknown; or ``num_parameters`` is greater than 1 and the channels
            are not in dimension 1, where PReLU expects them, or the arm is a rival that learns per
            site.
    """
    if arm in ("arelu", "arelu-frozen"):
        module = AReLU(
            alpha, beta, num_parameters=num_parameters, channel_dim=channel_dim,
            scale=scale, cap=cap, inplace=inplace, keep_input=keep_input, device=device,
            dtype=dtype,
        )  # fmt: skip
        return module.requires_grad_(arm == "arelu")
    slope = min(max(alpha, ALPHA_MIN), ALPHA_MAX) / (1 + 1 / (1 + math.exp(-beta)))
    if arm == "leaky":
        return SiteActivation(nn.LeakyReLU(slope), cap=cap, inplace=inplace)
    if arm == "prelu":
        if num_parameters > 1 and channel_dim != 1:
            raise ConfigError(
                "prelu learns a slope a channel only where channels are dimension 1: use "
                "`granularity='site'`"
            )
        return SiteActivation(
            _PReLU(num_parameters, slope, device=device, dtype=dtype), cap=cap, inplace=inplace
        )
    if arm == "relu6":
        return SiteActivation(
            Positive(), cap=min(6.0, 6.0 if cap is None else cap), inplace=inplace
        )
    if arm in _LEARNING_WIDELY:
        learning = _LEARNING_WIDELY[arm](
            num_parameters, channel_dim=channel_dim, device=device, dtype=dtype
        )
        return SiteActivation(learning, cap=cap, inplace=inplace)
    if arm in _LEARNING:
        if num_parameters > 1:
            raise ConfigError(f"{arm} learns once a site: use `granularity='site'`")
        return SiteActivation(_LEARNING[arm](device=device, dtype=dtype), cap=cap, inplace=inplace)
    if arm not in _FIXED:
        raise ConfigError(f"unknown arm {arm!r}: relu, {', '.join(SURGERY_ARMS)}")
    return SiteActivation(_FIXED[arm](), cap=cap, inplace=inplace)


def named_activations(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module that surgery put into ``model`` once, with its first qualified name."""
    for name, module in model.named_modules():
        if isinstance(module, AReLU | SiteActivation):
            yield name, module


def activation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return every parameter, trained or frozen, of the modules that surgery put into ``model``.

    They come in module order.
    """
    return [p for _, module in named_activations(model) for p in module.parameters()]
