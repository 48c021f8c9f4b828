"""Where in a picture a net finds what speaks for a class: Grad-CAM at the last map before pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ClassActivation:
    """Attributes:
    map: (h, w) of the last map's places, at least 0, in logits; None where the net has no such map.
    reason: why there is none; "" where there is one.
    """

    map: Tensor | None
    reason: str = ""


def grad_cam(model: nn.Module, picture: Tensor, label: int) -> ClassActivation:
    """max(0, sum over channels k of w_k A_k), w_k the mean over places of d logit / d A_k (Selvaraju et al., arXiv 1610.02391).

    A is what timm's ``forward_features`` gives. Where the head is a mean over places and a linear layer, w_k is that layer's
    weight over the number of places, and before the cut at 0 the map sums up to the logit without its bias.

    Args:
        model: a timm model in eval mode.
        picture: (1, 3, H, W), preprocessed.
        label: number of the class.
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
        return ClassActivation(None, f"the net's last features are no map: shape {tuple(features.shape[1:])}")
    channels = getattr(net, "num_features", None)
    last = features.shape[1] != channels and features.shape[3] == channels
    places = (1, 2) if last else (2, 3)
    if features.shape[places[0]] * features.shape[places[1]] == 1:
        return ClassActivation(None, "the net's last map has one place only: the picture is too small for it")
    with torch.enable_grad():
        at = features.detach().requires_grad_()
        # A head that begins with an activation in place may not overwrite what is derived by.
        logits = net.forward_head(at.clone())
        if not torch.allclose(logits, whole, rtol=1e-3, atol=1e-3):
            return ClassActivation(None, "the net answers by more than its last features")
        (gradient,) = torch.autograd.grad(logits[0, label], at)
    weights = gradient.mean(places, keepdim=True)
    return ClassActivation((weights * features).sum(3 if last else 1)[0].relu())
