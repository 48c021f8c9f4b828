"""Parameter groups, and timm's optimisers and schedules over them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from arelu_tl.activation.catalogue import activation_parameters
from arelu_tl.errors import ConfigError


def freeze_backbone(model: nn.Module, head: Sequence[str]) -> None:
    """Leave only the classifier (modules named in ``head``) and what the sites learn trainable, in place."""
    learning = [p for p in activation_parameters(model) if p.requires_grad]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in head:
        for parameter in model.get_submodule(name).parameters():
            parameter.requires_grad_(True)
    for parameter in learning:
        parameter.requires_grad_(True)


def parameter_groups(
    model: nn.Module, head: Sequence[str], *, lr: float, head_lr: float, arelu_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters in groups named backbone, head (each with a ``-no-decay`` twin) and arelu (any arm's sites).

    Weight decay spares vectors and scalars (biases, norms), as in timm, and always what sites learn: decay would pull
    beta to 0, that is to a gain of 1.5, which nobody asked for.
    """
    activation = {id(p) for p in activation_parameters(model)}
    named: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    exempt = named()
    rates = {"backbone": lr, "head": head_lr, "arelu": arelu_lr}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "arelu" if id(parameter) in activation else "head" if name.startswith(tuple(f"{h}." for h in head)) else "backbone"
        decays = part != "arelu" and parameter.ndim > 1 and name not in exempt
        key = part if decays or part == "arelu" else f"{part}-no-decay"
        group = groups.setdefault(
            key, {"name": key, "params": [], "lr": rates[part], "weight_decay": weight_decay if decays else 0.0}
        )
        group["params"].append(parameter)
    return list(groups.values())


def check_optimizer(opt: str) -> None:
    """Whether timm has an optimiser of this name.

    Raises:
        ConfigError: it has not; the nearest names are given.
    """
    if opt not in list_optimizers():
        near = difflib.get_close_matches(opt, list_optimizers(), n=3)
        raise ConfigError(f"unknown optimiser {opt!r}: {f'did you mean {near[0]}?' if near else 'sgd, adam, adamw, lamb, ...'}")


def make_optimizer(
    model: nn.Module,
    head: Sequence[str],
    *,
    opt: str,
    lr: float,
    head_lr: float | None = None,
    arelu_lr: float | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """timm's optimiser ``opt`` over ``parameter_groups``, fused where torch has it so; rates that are None follow ``lr``.

    Raises:
        ConfigError: timm has no such optimiser.
    """
    check_optimizer(opt)
    groups = parameter_groups(
        model,
        head,
        lr=lr,
        head_lr=lr if head_lr is None else head_lr,
        arelu_lr=lr if arelu_lr is None else arelu_lr,
        weight_decay=weight_decay,
    )
    fused: dict[str, Any] = (
        {"fused": True} if _has_fused(opt, {p.device.type for group in groups for p in group["params"]}) else {}
    )
    return create_optimizer_v2(groups, opt=opt, lr=lr, weight_decay=weight_decay, momentum=momentum, **fused)


# torch's own optimisers that move all weights in one pass over memory, and where.
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
    """timm's schedule, counted in steps; None where the rates stay constant.

    The schedule is a function of the step alone, so a resumed run only has to ask for its step's value. timm counts
    warm-up in whole epochs; steps are passed for epochs so that a fraction of one can be asked for.
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
        # Warm-up comes first, then the whole decay from the full rate to min_lr: both in the steps that there are.
        num_epochs=max(1, total - warmup_steps),
        warmup_prefix=True,
        decay_epochs=2 * total if sched == "none" else max(1, total // 3),
        # timm takes this number for poly's power too, where 1 means a straight line down to min_lr.
        decay_rate=1.0 if sched == "poly" else 0.1,
        min_lr=min_lr,
        warmup_lr=0.0,
        warmup_epochs=warmup_steps,
        step_on_epochs=True,
    )
    return schedule
