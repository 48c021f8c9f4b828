"""Find where values first became NaN or infinite, to name the layer in the error message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether ``tensors`` hold no NaN or infinite values.

    This synchronises with the device once.
    """
    listed = [t for t in tensors if t.is_floating_point() and t.numel()]
    if not listed:
        return True
    # A norm is NaN or infinite if any value is: one pass over each tensor, and no copy. On the CPU
    # the 2-norm is many times faster than the others, but its squares may overflow even if all
    # values are finite; then the maximum norm decides.
    return _finite(torch._foreach_norm(listed)) or _finite(
        torch._foreach_norm(listed, float("inf"))
    )


def _finite(norms: Sequence[Tensor]) -> bool:
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def nonfinite_parameter(model: nn.Module) -> str | None:
    """Return the name of the first parameter with NaN or infinite values."""
    return next(
        (name for name, p in model.named_parameters() if not all_finite([p.detach()])), None
    )


def nonfinite_gradient(model: nn.Module) -> str | None:
    """Return the name of the parameter whose gradient first became NaN or infinite.

    The backward pass goes from the last layer to the first, so this is the last such parameter.
    """
    names = [
        name
        for name, p in model.named_parameters()
        if p.grad is not None and not all_finite([p.grad])
    ]
    return names[-1] if names else None


@torch.no_grad()
def nonfinite_layer(model: nn.Module, pictures: Tensor) -> str | None:
    """Return the name of the first layer with NaN or infinite outputs but finite inputs.

    In training mode this forward pass updates BatchNorm statistics: use it only when training ends.

    Args:
        pictures: model input (B, C, H, W).
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
