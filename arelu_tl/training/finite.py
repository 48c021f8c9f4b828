"""Where the numbers first ceased to be numbers, so that whoever reads of it knows which layer to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number in ``tensors`` is infinite or undefined; the device is waited for once."""
    listed = [t for t in tensors if t.is_floating_point() and t.numel()]
    if not listed:
        return True
    # A norm is finite where every number is: one pass over each, and no copy. That of the squares is many times faster than the
    # others on the processor, but squares may overflow where the numbers do not.
    return _finite(torch._foreach_norm(listed)) or _finite(torch._foreach_norm(listed, float("inf")))


def _finite(norms: Sequence[Tensor]) -> bool:
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def nonfinite_parameter(model: nn.Module) -> str | None:
    """Name of the first parameter that is not all numbers."""
    return next((name for name, p in model.named_parameters() if not all_finite([p.detach()])), None)


def nonfinite_gradient(model: nn.Module) -> str | None:
    """Name of the parameter whose gradient ceased first to be all numbers: backward goes from the last layer to the first."""
    names = [name for name, p in model.named_parameters() if p.grad is not None and not all_finite([p.grad])]
    return names[-1] if names else None


@torch.no_grad()
def nonfinite_layer(model: nn.Module, pictures: Tensor) -> str | None:
    """Name of the first layer whose output for ``pictures`` (B, C, H, W) is not all numbers while its input is.

    BatchNorm counts the pass, if the model trains: to be used only where training ends.
    """
    found: list[str] = []

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, given: tuple[object, ...], output: object) -> None:
            if found or not isinstance(output, Tensor):
                return
            if not all_finite([output]) and all_finite(t for t in given if isinstance(t, Tensor)):
                found.append(name)

        return model.get_submodule(name).register_forward_hook(look)

    hooks = [watch(name) for name, module in model.named_modules() if not any(module.children())]
    try:
        model(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
