"""Apply a plan to a model.

Everything is checked before anything changes, and every change can be undone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from arelu_tl.activation.catalogue import make_activation
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.plan import PlannedSite, SurgeryPlan
from arelu_tl.surgery.relu_calls import is_relu_module
from arelu_tl.surgery.routing import RoutedReLU, route

Undo = Callable[[], None]


def apply_plan(
    model: nn.Module, plan: SurgeryPlan, *, arm: str = "arelu", inplace: bool = True
) -> tuple[list[nn.Module], Undo]:
    """Replace each planned site, in place.

    With ``inplace``, AReLU saves no input of its own for the backward pass where the ReLU overwrote
    its input.

    New parameters get the device and dtype of the weights nearest to the site, and new modules the
    training mode of their surroundings. The parameters are trainable unless every parameter of the
    model is frozen.

    Returns:
        (the new modules in plan order, each once; a callable that restores the model).

    Raises:
        SurgeryError: a site is no longer a ReLU, or carries hooks, which would be lost. The model
            is unchanged.
    """
    return _install(model, plan.replaced, arm, inplace)


def restore_sites(
    model: nn.Module,
    sites: Sequence[Mapping[str, Any]],
    *,
    arm: str = "arelu",
    inplace: bool = True,
) -> None:
    """Replace the sites recorded in surgery.json, so that their trained weights can be loaded.

    ``inplace`` is as in ``apply_plan``, and matters only if the model is trained further.

    Raises:
        SurgeryError: the model has no ReLU at a recorded site.
    """
    _install(
        model,
        [PlannedSite.from_json(site) for site in sites if site["status"] == "replaced"],
        arm,
        inplace,
    )


def _install(
    model: nn.Module, replaced: Sequence[PlannedSite], arm: str, inplace: bool
) -> tuple[list[nn.Module], Undo]:
    for planned in replaced:
        _check(model, planned)
    trained = any(p.requires_grad for p in model.parameters()) or not any(
        True for _ in model.parameters()
    )
    # For ReLU modules that run at several sites: how often each runs, and how many of these calls
    # are replaced.
    originals = dict(model.named_modules(remove_duplicate=False))
    stood: dict[nn.Module, int] = {}
    taken = Counter[nn.Module]()
    undo: list[Undo] = []
    new: list[nn.Module] = []
    routes: dict[str, list[tuple[str, nn.Module] | None]] = {}
    exchanged: set[str] = set()
    # Build all modules before installing the first: some arms cannot be built for every site.
    built: dict[str, nn.Module] = {}
    for planned in replaced:
        if planned.site.name not in built:
            built[planned.site.name] = _build(model, planned, arm, inplace)
    for planned in replaced:
        # a further call of a module whose calls share one replacement
        if planned.site.name in exchanged:
            continue
        module = built[planned.site.name]
        if planned.site.kind == "shared":
            stood[originals[planned.site.names[-1]]] = planned.site.calls
            taken[originals[planned.site.names[-1]]] += 1
        if not trained:
            module.requires_grad_(False)
        new.append(module)
        if planned.route is not None:
            calls = routes.setdefault(planned.route.owner, [None] * planned.route.length)
            calls[planned.route.position] = (planned.site.name.rpartition(".")[2], module)
        else:
            exchanged.add(planned.site.name)
            undo.append(_set_modules(model, planned.site.names, module))
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in stood and taken[module] == stood[module]:
            undo.append(_set_modules(model, [name], RoutedReLU()))
    undo += [route(model.get_submodule(owner), calls) for owner, calls in routes.items()]
    undo += _leave_fused_paths(model, new)

    def undo_all() -> None:
        for step in reversed(undo):
            step()

    return new, undo_all


def _check(model: nn.Module, planned: PlannedSite) -> None:
    """Raise if the plan does not fit the model, or if surgery would lose something."""
    site = planned.site
    # Patterns also match a routed site by its module's names; the site's own name exists only after
    # surgery.
    modules = site.names[1:] if planned.route is not None else site.names
    for name in modules:
        module = _submodule(model, name)
        if not is_relu_module(module):
            raise SurgeryError(
                f"{name} is a {type(module).__name__}, not a ReLU: the plan was made for another "
                "model"
            )
        if any(
            (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ):
            raise SurgeryError(f"{name} carries hooks that surgery would lose: remove them first")
        if nn.utils.parametrize.is_parametrized(module):
            raise SurgeryError(
                f"{name} is parametrized, which surgery would lose: remove the parametrization "
                "first"
            )
    if planned.route is not None:
        _submodule(model, planned.route.owner)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise SurgeryError(
            f"the model has no module {name}: the plan was made for another one"
        ) from None


def _build(model: nn.Module, planned: PlannedSite, arm: str, inplace: bool) -> nn.Module:
    place = (
        planned.route.owner if planned.route is not None else planned.site.name.rpartition(".")[0]
    )
    around = model.get_submodule(place)
    like = _nearest_weights(model, place)
    module = make_activation(
        arm,
        alpha=planned.alpha0,
        beta=planned.beta0,
        scale=planned.scale,
        cap=planned.site.cap,
        num_parameters=planned.num_parameters,
        channel_dim=planned.site.channel_dim,
        # In place where the ReLU was: later layers may read the overwritten tensor, and the layer
        # before evidently does not need its output.
        inplace=planned.site.inplace,
        keep_input=not inplace,
        device=like.device,
        dtype=like.dtype,
    )
    replaced = model.get_submodule(planned.site.name) if planned.route is None else around
    return module.train(replaced.training)


def _nearest_weights(model: nn.Module, place: str) -> torch.Tensor:
    """Return a floating-point parameter of ``place``, or of the nearest module around it."""
    while True:
        for parameter in model.get_submodule(place).parameters():
            if parameter.is_floating_point():
                return parameter
        if not place:
            return torch.empty(0)
        place = place.rpartition(".")[0]


# The flag that makes each of these torch layers take a fused kernel when gradients are off. The
# kernel has its own ReLU and does not run the layer's modules. An encoder that makes nested tensors
# for such layers is included.
_FUSED_PATHS: tuple[tuple[type[nn.Module], str, int], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)


def _leave_fused_paths(model: nn.Module, new: Sequence[nn.Module]) -> list[Undo]:
    """Make every layer around a ``new`` module run its modules, with or without gradients."""
    replaced = set(new)
    undo: list[Undo] = []
    for module in model.modules():
        for kind, flag, off in _FUSED_PATHS:
            before = getattr(module, flag, off) if isinstance(module, kind) else off
            if before and not replaced.isdisjoint(module.modules()):
                setattr(module, flag, off)
                undo.append(partial(setattr, module, flag, before))
    return undo


def _set_modules(model: nn.Module, names: Iterable[str], module: nn.Module) -> Undo:
    """Put ``module`` at each qualified name; return a callable that restores the old modules."""
    places: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parent, _, child = name.rpartition(".")
        places[parent].append(child)
    old = [
        (model.get_submodule(p), child, getattr(model.get_submodule(p), child))
        for p, cs in places.items()
        for child in cs
    ]
    for parent_module, child, _ in old:
        setattr(parent_module, child, module)

    def undo() -> None:
        for parent_module, child, before in old:
            setattr(parent_module, child, before)

    return undo
