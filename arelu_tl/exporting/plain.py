"""Frozen models that keep their modules, for a state dict; in timm's own form where possible."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from arelu_tl.errors import BackboneError, ConfigError
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import FoldReport, fold_weights
from arelu_tl.models.freeze import FrozenAReLU, FrozenSite, put_site

# timm's activation in place of ReLU: a leaky ReLU whose slope is in the state dict.
TIMM_ACTIVATION = "prelu"


def fold_modules(
    frozen: nn.Module, sites: list[FrozenSite], example: Tensor
) -> tuple[nn.Module, list[FrozenSite], FoldReport]:
    """Copy ``frozen`` and fold its sites' gains into the weights of its modules, where exact.

    Args:
        frozen, sites: of ``freeze``.
        example: pictures (2, C, H, W).

    Returns:
        (the copy, its changed sites, which gains were folded).
    """
    module = capture(frozen, example)
    folded, report = fold_weights(module, site_products(module, sites))
    model = copy.deepcopy(frozen)
    # One tensor may have several names.
    places = {key: value.data_ptr() for key, value in frozen.state_dict().items()}
    state = model.state_dict()
    with torch.no_grad():
        for key, value in folded.tensors.items():
            for name, place in places.items():
                if place == places[key]:
                    state[name].copy_(value)
    changed = []
    for site in sites:
        gain = folded.gains.get(site.name)
        gains = site.gains if gain is None else [1.0 if abs(gain - 1) < 1e-9 else gain]
        changed.append(replace(site, gains=gains, cap=folded.caps.get(site.name, site.cap)))
        put_site(model, changed[-1])
    return model, changed, report


def as_timm(
    frozen: nn.Module, sites: list[FrozenSite], build: Callable[[], nn.Module]
) -> tuple[nn.Module | None, str]:
    """Build the model with timm, its sites as PReLUs; or return None and why that fails.

    A ReLU that is not a site becomes a PReLU of slope 0, which is the same function.

    Args:
        frozen, sites: of ``fold_modules``.
        build: the architecture with ``TIMM_ACTIVATION`` for its ReLUs.
    """
    for site in sites:
        if site.cap is not None:
            return None, f"timm has no leaky ReLU with a cap, as ReLU6 has ({site.name})"
        if len(site.slopes) > 1:
            return None, f"timm has no slope for each channel ({site.name})"
        if site.gains != [1.0]:
            return None, f"a gain could not be folded ({site.name})"
    try:
        model = build().eval().requires_grad_(False)
    except (BackboneError, ConfigError):
        return None, "this architecture of timm takes no other activation"
    here, there = dict(frozen.named_modules()), dict(model.named_modules())
    slopes = {site.name: site.slopes[0] for site in sites}
    for name in slopes:
        if not isinstance(there.get(name), nn.PReLU):
            return None, f"timm's own has no activation of its own there ({name})"
    state = {
        key: value
        for key, value in frozen.state_dict().items()
        if not isinstance(_owner(here, key), FrozenAReLU)
    }
    for name, module in there.items():
        if isinstance(module, nn.PReLU):
            if name not in slopes and not isinstance(here.get(name), nn.ReLU):
                return None, f"timm builds another activation there ({name})"
            state[f"{name}.weight"] = torch.tensor([slopes.get(name, 0.0)])
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError:
        return None, "with this activation timm builds other modules"
    return model, ""


def _owner(modules: dict[str, nn.Module], key: str) -> nn.Module | None:
    return modules.get(key.rpartition(".")[0])
