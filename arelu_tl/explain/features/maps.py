"""The tensors at a site as maps to draw and as statistics; Grad-CAM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arelu_tl.surgery.watch import Passage

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SiteStatistics:
    """Statistics over all elements of a site's map, for one picture.

    A mean is None where it has no elements or is not finite.

    Attributes:
        negative_share: share of the elements below 0 before the activation, 0..1.
        zero_share: share of the elements that are 0 after it, 0..1.
        attention: mean factor by which an element is multiplied; None where the activation has no
            attention.
        attention_negative, attention_positive: the same over the elements below 0, and over the
            others.
        energy_before, energy_after: mean square.
    """

    negative_share: float
    zero_share: float
    attention: float | None
    attention_negative: float | None
    attention_positive: float | None
    energy_before: float | None
    energy_after: float | None


def measure(passage: Passage) -> SiteStatistics:
    """Compute the statistics of one site, in float64."""
    before, after = passage.before.double(), passage.after.double()
    negative = before < 0
    factor = None if passage.attention is None else passage.attention.double()
    return SiteStatistics(
        negative_share=float(negative.double().mean()),
        zero_share=float((after == 0).double().mean()),
        attention=None if factor is None else _mean(factor),
        attention_negative=None if factor is None else _mean(factor[negative]),
        attention_positive=None if factor is None else _mean(factor[~negative]),
        energy_before=_mean(before.square()),
        energy_after=_mean(after.square()),
    )


def _mean(values: Tensor) -> float | None:
    mean = float(values.mean()) if values.numel() else math.nan
    return mean if math.isfinite(mean) else None


@dataclass(frozen=True)
class Maps:
    """The maps of a site that are shown.

    Attributes:
        before, after: (N, H, W) of the N channels that are shown.
        attention: the same; None where the activation has none.
        mean_attention: (H, W), over all channels; None where the activation has no attention.
    """

    before: Floats
    after: Floats
    attention: Floats | None
    mean_attention: Floats | None


def map_size(
    shape: Sequence[int], channel_dim: int, picture: tuple[int, int], prefix: int
) -> tuple[int, int] | None:
    """Return (height, width) of a channel's map of one picture; None where channels are not maps.

    Args:
        shape: (1, C, H, W), (1, H, W, C), or tokens (1, N, C) or (1, C, N) in row-major order over
            the picture.
        channel_dim: dimension of the channels.
        picture: its (height, width); the tokens' grid has the same aspect ratio.
        prefix: number of tokens without a position (a class token) that may precede the others.
    """
    if len(shape) not in (3, 4) or shape[0] != 1:
        return None
    rest = [size for dim, size in enumerate(shape) if dim not in (0, channel_dim % len(shape))]
    if len(rest) == 2:
        return (rest[0], rest[1]) if rest[0] * rest[1] > 1 else None
    for tokens in (rest[0] - prefix, rest[0]):
        height = round(math.sqrt(max(tokens, 0) * picture[0] / picture[1]))
        if (
            tokens > 1
            and height
            and tokens % height == 0
            and height * picture[1] == tokens // height * picture[0]
        ):
            return height, tokens // height
    return None


def as_maps(x: Tensor, channel_dim: int, size: tuple[int, int]) -> Tensor:
    """Reshape a tensor whose ``map_size`` is ``size`` to (C, H, W), without prefix tokens."""
    places = x.movedim(channel_dim % x.dim(), 1)[0].flatten(1)
    return places[:, places.shape[1] - size[0] * size[1] :].reshape(-1, *size)


def most_active(after: Sequence[Tensor], count: int) -> list[int]:
    """Return the indices of the ``count`` channels that vary most over the picture, most first.

    Variance is used, because a channel that is large everywhere shows nothing. Each arm's variances
    are divided by their sum, so that all arms have equal weight.

    Args:
        after: the activation's output (C, H, W) in each arm. Its input would be a worse choice: a
            cap can flatten the channel that varies most before it.
        count: number of channels to choose.
    """
    shares = []
    for maps in after:
        variance = maps.double().var(dim=(1, 2), correction=0)
        shares.append(variance / variance.sum().clamp(min=1e-30))
    total = sum(shares[1:], shares[0])
    ordered: list[int] = total.argsort(descending=True, stable=True).tolist()
    return ordered[:count]


def cut_out(
    passage: Passage, channels: Sequence[int], channel_dim: int, size: tuple[int, int]
) -> Maps:
    """Return the maps of the given channels, and the mean attention over all channels."""

    def chosen(x: Tensor) -> Floats:
        return as_maps(x, channel_dim, size)[list(channels)].float().numpy()

    attention = passage.attention
    return Maps(
        chosen(passage.before),
        chosen(passage.after),
        None if attention is None else chosen(attention),
        None
        if attention is None
        else as_maps(attention, channel_dim, size).mean(0).float().numpy(),
    )


@dataclass(frozen=True)
class ClassActivation:
    """The result of ``grad_cam``.

    Attributes:
        map: (h, w), over the positions of the last feature map, at least 0, in logits; None where
            the model has no such map.
        reason: why there is none; "" where there is one.
    """

    map: Tensor | None
    reason: str = ""


def grad_cam(model: nn.Module, picture: Tensor, label: int) -> ClassActivation:
    """Compute Grad-CAM (Selvaraju et al., arXiv 1610.02391) at the last feature map.

    It is max(0, sum over channels k of w_k A_k), where w_k is the mean over positions of
    d logit / d A_k, and A is the result of timm's ``forward_features``. If the head is a mean over
    positions and a linear layer, w_k is that layer's weight over the number of positions, and the
    map, before the cut at 0, sums up to the logit without its bias.

    Args:
        model: a timm model in eval mode.
        picture: (1, 3, H, W), preprocessed.
        label: index of the class.
    """
    net: Any = model
    if not (hasattr(net, "forward_features") and hasattr(net, "forward_head")):
        return ClassActivation(None, "the net does not tell its features from its head")
    with torch.no_grad():
        features = net.forward_features(picture)
        whole = net(picture)
    if not isinstance(features, Tensor):
        return ClassActivation(None, "the net's last features are not one map")
    if features.dim() != 4:
        return ClassActivation(
            None, f"the net's last features are no map: shape {tuple(features.shape[1:])}"
        )
    channels = getattr(net, "num_features", None)
    last = features.shape[1] != channels and features.shape[3] == channels
    places = (1, 2) if last else (2, 3)
    if features.shape[places[0]] * features.shape[places[1]] == 1:
        return ClassActivation(
            None, "the net's last map has one place only: the picture is too small for it"
        )
    with torch.enable_grad():
        at = features.detach().requires_grad_()
        # Cloned: a head that begins with an in-place activation must not overwrite the leaf tensor.
        logits = net.forward_head(at.clone())
        if not torch.allclose(logits, whole, rtol=1e-3, atol=1e-3):
            return ClassActivation(None, "the net answers by more than its last features")
        (gradient,) = torch.autograd.grad(logits[0, label], at)
    weights = gradient.mean(places, keepdim=True)
    return ClassActivation((weights * features).sum(3 if last else 1)[0].relu())
