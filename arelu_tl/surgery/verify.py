"""Check that surgery did what its plan says: count the ReLUs that the model still executes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from arelu_tl.activation.catalogue import named_activations
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.plan import PlannedSite, SurgeryPlan
from arelu_tl.surgery.sites import examine, pictures_for
from arelu_tl.surgery.trace import count_executions

_GRADIENTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "with gradients": torch.enable_grad,
    "under no_grad": torch.no_grad,
    "in inference mode": torch.inference_mode,
}


def verify(model: nn.Module, plan: SurgeryPlan, example_input: Tensor | None = None) -> int:
    """Run the operated model under the dispatcher's tap and compare its ReLUs with the plan.

    The model runs in training mode, and in eval mode with gradients, without them, and in inference
    mode, since layers may take different code paths in each.

    Args:
        model: after surgery; left as it is.
        plan: the plan that was applied.
        example_input: as for ``find_sites``.

    Returns:
        The number of ReLUs that still run, all of them intended.

    Raises:
        SurgeryError: the ReLUs that run differ from the plan (the message names them), or the new
            modules do not run as often without gradients as with them.
    """
    names = {module: name for name, module in model.named_modules()}
    meant = Counter(names[model.get_submodule(_place(planned))] for planned in plan.left)
    found = examine(model, example_input).executions
    left = Counter(names[e.module or (e.stack[-1] if e.stack else model)] for e in found)
    _compare(model, left, meant, "")
    # A fused kernel runs the ReLU of a module inside the one that called the kernel.
    whole = {
        inner: layer
        for layer in model.modules()
        if isinstance(layer, nn.TransformerEncoderLayer)
        for inner in layer.modules()
    }
    outer = {names[module]: names[whole.get(module, module)] for module in names}
    twin = _copied(model)
    pictures = pictures_for(model, example_input)
    ran: dict[str, Counter[str]] = {}
    for mode, gradients in _GRADIENTS.items():
        relus, invocations = count_executions(twin, pictures, gradients)
        _compare(model, _gathered(relus, outer), _gathered(meant, outer), f" {mode}")
        ran[mode] = Counter({name: invocations[module] for name, module in named_activations(twin)})
        first = ran["with gradients"]
        if different := sorted(
            name for name in first | ran[mode] if first[name] != ran[mode][name]
        ):
            raise SurgeryError(
                f"evaluation {mode} goes around {', '.join(different[:5])}, which run "
                f"{first.total()} times with gradients and {ran[mode].total()} times so: make the "
                "forward pass one; the model was put back as it was"
            )
    return left.total()


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy of ``model``, or ``model`` itself if it cannot be copied.

    A copy, because tensors that a layer keeps from a pass in inference mode cannot be trained on.
    """
    # The model holds something that cannot be copied: a lock, or a tensor with a graph.
    try:
        return copy.deepcopy(model)
    except (
        RuntimeError,
        TypeError,
    ):
        return model


def _gathered(counts: Counter[str], outer: Mapping[str, str]) -> Counter[str]:
    gathered = Counter[str]()
    for name, count in counts.items():
        gathered[outer[name]] += count
    return gathered


def _compare(model: nn.Module, left: Counter[str], meant: Counter[str], mode: str) -> None:
    if left == meant:
        return
    surplus = [name or type(model).__name__ for name in left - meant]
    missing = [name or type(model).__name__ for name in meant - left]
    parts = [f"left over in {', '.join(surplus)}"] if surplus else []
    parts += [f"gone from {', '.join(missing)}"] if missing else []
    raise SurgeryError(
        f"after surgery {left.total()} ReLUs run{mode} where {meant.total()} were meant to stay: "
        f"{'; '.join(parts)}; the model was put back as it was"
    )


def _place(planned: PlannedSite) -> str:
    """Name the module in whose forward pass a kept site runs.

    It is the ReLU module, or the one around a functional call.
    """
    site = planned.site
    if site.kind == "functional":
        return site.within[-1] if site.within else ""
    return site.names[-1]
