"""Give every ReLU call inside a module its own activation, without rewriting the module.

A ReLU that is a module of its own, called once, is simply exchanged. What cannot be exchanged that way (``F.relu`` in a
method; one module called at several places) is *routed*: the module that makes the calls, its **owner**, gets a subclass of
its own class whose forward is the old one, run under a mode that hands the k-th ReLU call to the k-th activation. The
activations are ordinary children of the owner (``relu_sites``), so that state dicts, devices, optimisers and deepcopy know
them; the position is counted within one call of forward and kept nowhere, so that compilation, checkpointing and threads
find nothing to trip over. (Checkpointing *within* an owner's forward would: what is recomputed runs outside of it. It is an
error; no timm model does that where it calls a ReLU.)
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
    """Hands the k-th ReLU call to the k-th activation of a route; None leaves a call as it is."""

    def __init__(self, activations: Sequence[nn.Module | None], where: str) -> None:
        super().__init__()
        self._activations = activations
        self._where = where
        self._position = 0
        self._learning = torch.is_grad_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if as_relu(func, args, kwargs) is None or not _may_be_floating_point(relu_input(args, kwargs)):
            return func(*args, **kwargs)
        if self._position == len(self._activations):
            self.refuse("more")
        if self._learning and not torch.is_grad_enabled():
            raise SurgeryError(
                f"{self._where} runs a ReLU where no gradients are recorded (checkpointing inside its forward pass, or an "
                "autograd.Function), so its activation could not learn: leave its sites out with --exclude"
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
            f"{self._where} ran {how} ReLUs than the {len(self._activations)} that it ran when surgery examined it: its "
            "forward pass depends on its input or mode; leave its sites out with --exclude"
        )


def _may_be_floating_point(x: Any) -> bool:
    """What stands for a tensor in a symbolic trace has no format to ask for; a ReLU acts on maps, as a rule."""
    return not isinstance(x, Tensor) or x.is_floating_point()


class RoutedReLU(nn.Module):
    """Stands where a ReLU module stood all of whose calls are routed: it makes the call that its owner hands out."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


def route(owner: nn.Module, activations: Sequence[tuple[str, nn.Module] | None]) -> Callable[[], None]:
    """Make ``owner`` use ``activations[k]`` for the k-th ReLU call of its forward pass, in place.

    Args:
        owner: any module; its class becomes a subclass of what it was, of the same name.
        activations: one entry for each ReLU call that the forward pass makes: the activation and its name among the owner's
            ``relu_sites``; None where the call stays a ReLU.

    Returns:
        What undoes it.

    Raises:
        SurgeryError: ``owner`` is routed already.
    """
    original = type(owner)
    if original in _CLASSES.values():
        raise SurgeryError(f"{original.__name__} has been operated on already; surgery starts from an unmodified model")
    setattr(owner, SITES, nn.ModuleDict(dict(named for named in activations if named is not None)))
    setattr(owner, _ROUTE, tuple(None if named is None else named[0] for named in activations))
    owner.__class__ = _routed_class(original)

    def undo() -> None:
        owner.__class__ = original
        delattr(owner, SITES)
        delattr(owner, _ROUTE)

    return undo


def is_routed(module: nn.Module) -> bool:
    """Whether ``module``'s ReLU calls are handed out."""
    return type(module) in _CLASSES.values()


def _routed_class(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _CLASSES:

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            sites = getattr(self, SITES)
            mode = _HandOut([None if k is None else sites[k] for k in getattr(self, _ROUTE)], base.__name__)
            with mode:
                output = base.forward(self, *args, **kwargs)
            mode.finish()
            return output

        def reduce(self: nn.Module, protocol: Any) -> Any:
            # A class made at run time has no name to be pickled by; its base has.
            return _new, (base,), self.__getstate__()  # type: ignore[no-untyped-call]

        body = {"forward": forward, "__reduce_ex__": reduce, "__module__": base.__module__, "__doc__": base.__doc__}
        _CLASSES[base] = type(base.__name__, (base,), body)
        _CLASSES[base].__qualname__ = base.__qualname__
    return _CLASSES[base]


def _new(base: type[nn.Module]) -> nn.Module:
    """An empty module of ``base``'s routed class, for pickle and copy to fill."""
    routed = _routed_class(base)
    module: nn.Module = routed.__new__(routed)
    return module
