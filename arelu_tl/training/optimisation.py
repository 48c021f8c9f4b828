"""Parameter groups, and timm's optimisers and schedules over them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from arelu_tl.activation.catalogue import activation_parameters
from arelu_tl.errors import ConfigError
from arelu_tl.records.settings import OptimizerSettings

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights and biases of the normalisation layers of ``model``."""
    for module in model.modules():
        if isinstance(module, _NORMS):
            yield from module.parameters(recurse=False)


def freeze_backbone(model: nn.Module, head: Sequence[str], *, norms: bool = False) -> None:
    """Freeze all but the classifier (modules named in ``head``) and site parameters, in place.

    Args:
        norms: whether the weights of normalisation layers learn as well.
    """
    learning = [p for p in activation_parameters(model) if p.requires_grad]
    learning += norm_parameters(model) if norms else []
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in head:
        for parameter in model.get_submodule(name).parameters():
            parameter.requires_grad_(True)
    for parameter in learning:
        parameter.requires_grad_(True)


def parameter_groups(
    model: nn.Module, head: Sequence[str], settings: OptimizerSettings
) -> list[dict[str, Any]]:
    """Group the trainable parameters into backbone, head and arelu (the sites of any arm).

    With ``norm_lr``, the weights and biases of normalisation layers are a group of their own.
    Backbone and head each have a second group, ``-no-decay``. Weight decay excludes vectors and
    scalars (biases, norms), as in timm, and always the site parameters: decay would pull beta
    to 0, which is a gain of 1.5 that was not asked for.
    """
    activation = {id(p) for p in activation_parameters(model)}
    named: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    exempt = named()
    lr, weight_decay = settings.lr, settings.weight_decay
    norms = set() if settings.norm_lr is None else {id(p) for p in norm_parameters(model)}
    asked = {
        "backbone": lr,
        "head": settings.head_lr,
        "arelu": settings.arelu_lr,
        "norm": settings.norm_lr,
    }
    rates = {part: lr if rate is None else rate for part, rate in asked.items()}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = (
            "arelu"
            if id(parameter) in activation
            else "head"
            if name.startswith(tuple(f"{h}." for h in head))
            else "norm"
            if id(parameter) in norms
            else "backbone"
        )
        alone = part in ("arelu", "norm")
        decays = not alone and parameter.ndim > 1 and name not in exempt
        key = part if decays or alone else f"{part}-no-decay"
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr": rates[part],
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def check_optimizer(opt: str) -> None:
    """Raise unless timm has an optimiser of this name.

    Raises:
        ConfigError: it has none; the message names the most similar one.
    """
    if opt not in list_optimizers():
        near = difflib.get_close_matches(opt, list_optimizers(), n=3)
        raise ConfigError(
            f"unknown optimiser {opt!r}: "
            f"{f'did you mean {near[0]}?' if near else 'sgd, adam, adamw, lamb, ...'}"
        )


def make_optimizer(
    model: nn.Module, head: Sequence[str], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """Make timm's optimiser over ``parameter_groups``, fused if torch supports it.

    Args:
        head: names of the classifier's modules.

    Raises:
        ConfigError: timm has no such optimiser.
    """
    check_optimizer(settings.opt)
    return _create(parameter_groups(model, head, settings), settings)


def make_head_optimizer(
    head: nn.Module, settings: OptimizerSettings, lr: float
) -> torch.optim.Optimizer:
    """Make the same optimiser for a classifier alone, with the rate ``lr``."""
    groups = [
        {
            "params": [p for p in head.parameters() if (p.ndim > 1) == decays],
            "lr": lr,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    return _create([group for group in groups if group["params"]], settings)


def _create(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    opt = settings.opt
    fused: dict[str, Any] = (
        {"fused": True}
        if _has_fused(opt, {p.device.type for group in groups for p in group["params"]})
        else {}
    )
    return create_optimizer_v2(
        groups,
        opt=opt,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        **fused,
    )


# torch's optimisers with a fused implementation (one pass over memory), and on which devices.
_FUSED: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.AdamW: {"cpu", "cuda"},
    torch.optim.Adam: {"cpu", "cuda"},
    torch.optim.SGD: {"cpu", "cuda"},
    torch.optim.Adagrad: {"cpu"},
}


def _has_fused(opt: str, devices: set[str]) -> bool:
    kind = get_optimizer_class(opt, bind_defaults=False)
    return bool(devices) and devices <= _FUSED.get(kind, set())  # type: ignore[arg-type]


def make_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    sched: str,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    min_lr: float = 0.0,
) -> Scheduler | None:
    """Make timm's schedule, counted in steps; None if the rates are constant.

    The schedule is a function of the step alone, so a resumed run needs no scheduler state. timm
    counts warm-up in whole epochs; we pass steps as epochs, to allow fractions of an epoch.
    """
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if sched == "none" and not warmup_steps:
        return None
    total = epochs * steps_per_epoch
    schedule: Scheduler
    schedule, _ = create_scheduler_v2(
        optimizer,
        # A constant rate after warm-up is a step schedule whose step never comes.
        sched="step" if sched == "none" else sched,
        # Warm-up comes first, then the whole decay from the full rate to min_lr; both together
        # take exactly the total steps.
        num_epochs=max(1, total - warmup_steps),
        warmup_prefix=True,
        decay_epochs=2 * total if sched == "none" else max(1, total // 3),
        # timm also uses this value as the power of poly, where 1 means a linear decay to min_lr.
        decay_rate=1.0 if sched == "poly" else 0.1,
        min_lr=min_lr,
        warmup_lr=0.0,
        warmup_epochs=warmup_steps,
        step_on_epochs=True,
    )
    return schedule
