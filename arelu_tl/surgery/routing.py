"""Give every ReLU call inside a module its own activation, without rewriting the module.

A ReLU module that is called once is simply exchanged. Other calls (``F.relu`` in a method; one
module called at several places) are *routed*: the module that makes the calls, its **owner**, gets
a subclass of its own class. The subclass runs the old forward pass under a mode that hands the k-th
ReLU call to the k-th activation. The activations are ordinary children of the owner
(``relu_sites``), so that state dicts, devices, optimisers and deepcopy include them. The position
is counted within one call of forward and stored nowhere, so that compilation, checkpointing and
threads work.

Checkpointing *within* an owner's forward pass does not work, because the recomputation runs outside
of it. It raises an error; no timm model does that where it calls a ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.relu_calls import as_relu, relu_input

SITES = "relu_sites"
_ROUTE = "_relu_route"
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


class _HandOut(TorchFunctionMode):
    """Hands the k-th ReLU call to the k-th activation of a route; None leaves a call unchanged."""

    def __init__(self, activations: Sequence[nn.Module | None], where: str) -> None:
        super().__init__()
        self._activations = activations
        self._where = where
        self._position = 0
        self._learning = torch.is_grad_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if as_relu(func, args, kwargs) is None or not _may_be_floating_point(
            relu_input(args, kwargs)
        ):
            return func(*args, **kwargs)
        if self._position == len(self._activations):
            self.refuse("more")
        if self._learning and not torch.is_grad_enabled():
            raise SurgeryError(
                f"{self._where} runs a ReLU where no gradients are recorded (checkpointing inside "
                "its forward pass, or an autograd.Function), so its activation could not learn: "
                "leave its sites out with `exclude`"
            )
        activation = self._activations[self._position]
        self._position += 1
        if activation is None:
            return func(*args, **kwargs)
        return activation(relu_input(args, kwargs))

    def finish(self) -> None:
        if self._position != len(self._activations):
            self.refuse("fewer")

    def refuse(self, how: str) -> None:
        raise SurgeryError(
            f"{self._where} ran {how} ReLUs than the {len(self._activations)} that it ran when "
            "surgery examined it: its forward pass depends on its input or mode; leave its sites "
            "out with `exclude`"
        )


def _may_be_floating_point(x: Any) -> bool:
    """Whether ``x`` is a floating-point tensor, as far as that is known.

    A proxy in a symbolic trace has no dtype; it is assumed to be floating point, as the input of a
    ReLU usually is.
    """
    return not isinstance(x, Tensor) or x.is_floating_point()


class RoutedReLU(nn.Module):
    """Takes the place of a ReLU module whose calls are all routed.

    It makes the call that its owner hands out.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply a ReLU, or what the owner hands out for it."""
        return F.relu(x)


def route(
    owner: nn.Module, activations: Sequence[tuple[str, nn.Module] | None]
) -> Callable[[], None]:
    """Make ``owner`` use ``activations[k]`` for the k-th ReLU call of its forward pass, in place.

    Args:
        owner: any module; its class becomes a subclass of the old one, with the same name.
        activations: one entry per ReLU call of the forward pass: (name among the owner's
            ``relu_sites``, activation), or None where the call stays a ReLU.

    Returns:
        A callable that undoes it.

    Raises:
        SurgeryError: ``owner`` is already routed.
    """
    original = type(owner)
    if original in _CLASSES.values():
        raise SurgeryError(
            f"{original.__name__} has been operated on already; surgery starts from an unmodified "
            "model"
        )
    setattr(owner, SITES, nn.ModuleDict(dict(named for named in activations if named is not None)))
    setattr(owner, _ROUTE, tuple(None if named is None else named[0] for named in activations))
    owner.__class__ = _routed_class(original)

    def undo() -> None:
        owner.__class__ = original
        delattr(owner, SITES)
        delattr(owner, _ROUTE)

    return undo


def is_routed(module: nn.Module) -> bool:
    """Whether ``module``'s ReLU calls are routed."""
    return type(module) in _CLASSES.values()


def _routed_class(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _CLASSES:

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            sites = getattr(self, SITES)
            mode = _HandOut(
                [None if k is None else sites[k] for k in getattr(self, _ROUTE)], base.__name__
            )
            with mode:
                output = base.forward(self, *args, **kwargs)
            mode.finish()
            return output

        def reduce(self: nn.Module, protocol: Any) -> Any:
            # A class made at run time cannot be pickled by name; its base can.
            return _new, (base,), self.__getstate__()  # type: ignore[no-untyped-call]

        body = {
            "forward": forward,
            "__reduce_ex__": reduce,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
        }
        _CLASSES[base] = type(base.__name__, (base,), body)
        _CLASSES[base].__qualname__ = base.__qualname__
    return _CLASSES[base]


def _new(base: type[nn.Module]) -> nn.Module:
    """Return an empty module of ``base``'s routed class, to be filled by pickle and copy."""
    routed = _routed_class(base)
    module: nn.Module = routed.__new__(routed)
    return module
