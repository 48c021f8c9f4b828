"""Carry a plan out on a model: everything is checked first, then everything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from arelu_tl.activation import AReLU
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.plan import SurgeryPlan


def apply_plan(model: nn.Module, plan: SurgeryPlan) -> list[AReLU]:
    """Replace each planned site under every name it has, in place; device, dtype and mode are the model's.

    Returns:
        The new modules, in the plan's order.

    Raises:
        SurgeryError: a site carries hooks, which would be lost; the model is unchanged.
    """
    for planned in plan.replaced:
        if not planned.site.name:
            raise SurgeryError("the model is itself a ReLU; there is nothing around it to operate on")
        module = model.get_submodule(planned.site.name)
        if not isinstance(module, nn.ReLU | nn.ReLU6):
            raise SurgeryError(f"{planned.site.name} is a {type(module).__name__} now; make the plan anew")
        if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
            raise SurgeryError(f"{planned.site.name} carries hooks that surgery would lose: remove them first")
    return [
        _replace(model, planned.site.names, planned.alpha0, planned.beta0, planned.scale, planned.site.cap)
        for planned in plan.replaced
    ]


def restore_sites(model: nn.Module, sites: Sequence[Mapping[str, Any]]) -> None:
    """Replace the sites that a surgery.json records, so that the weights trained on them can be loaded.

    Raises:
        SurgeryError: the model has no ReLU where the record says there was one.
    """
    replaced = [site for site in sites if site["status"] == "replaced"]
    for site in replaced:
        for name in site["names"]:
            try:
                module = model.get_submodule(name)
            except AttributeError:
                raise SurgeryError(f"the architecture has no module {name}") from None
            if not isinstance(module, nn.ReLU | nn.ReLU6):
                raise SurgeryError(f"the architecture has a {type(module).__name__} at {name}, not a ReLU")
    for site in replaced:
        _replace(model, site["names"], site["alpha0"], site["beta0"], site["scale"], site["cap"])


def _replace(model: nn.Module, names: Sequence[str], alpha: float, beta: float, scale: float, cap: float | None) -> AReLU:
    old = model.get_submodule(names[0])
    # In place where the ReLU was: what follows may count on the overwritten tensor, and what stood before has shown that it
    # does not need its output kept. Both forms save one tensor; the in-place one saves the one that is there anyway.
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    new = AReLU(
        alpha, beta, scale=scale, cap=cap, inplace=bool(getattr(old, "inplace", False)), device=like.device, dtype=like.dtype
    )
    new.train(old.training)
    set_modules(model, names, new)
    return new


def set_modules(model: nn.Module, names: Sequence[str], module: nn.Module) -> None:
    """Put ``module`` at each of the qualified names."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
