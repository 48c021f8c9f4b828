"""Watch what every site does to its input in one forward pass, of the unmodified model as of the operated one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arelu_tl.activation import named_activations
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.relu_calls import as_relu, relu_input
from arelu_tl.surgery.sites import Site

# Nearer to 0 the quotient of output and input is none; there it is taken at this distance on the same side, right of 0 at 0.
_NEAR_ZERO = 1e-6


@dataclass(frozen=True)
class Passage:
    """What one site did in one forward pass; nothing here is shared with the model, whose sites overwrite their inputs.

    Attributes:
        before, after: its input and output, of ``Site.shape``.
        attention: what each element was multiplied by, after / before, the cap included (ELSA's map, arXiv 2006.13858,
            section 3.1): 1 or 0 of a ReLU, of AReLU scale * (1 + sigmoid(beta)) or scale * clamp(alpha). None where the
            activation does not keep 0 at 0, so that no factor tells what it does.
    """

    before: Tensor
    after: Tensor
    attention: Tensor | None


def observe_sites(model: nn.Module, sites: Sequence[Site], run: Callable[[], Any], seen: Callable[[int, Passage], None]) -> None:
    """Call ``run`` and tell ``seen(i, passage)`` of what went through ``sites[i]``.

    The k-th activation that runs is the k-th site, because surgery changes no call's place.

    Args:
        model: unmodified, or with the sites replaced; left as it is.
        sites: of the forward pass, in its order, as ``find_sites`` or surgery.json lists them; those that do not run are passed
            over.
        run: a forward pass of ``model``, without gradients.

    Raises:
        SurgeryError: the model runs other activations than ``sites`` tells of.
    """
    watch = _Watch(model, sites, seen)
    with watch.hooks(), watch:
        run()
    watch.finish()


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module, sites: Sequence[Site], seen: Callable[[int, Passage], None]) -> None:
        super().__init__()
        self._model = model
        self._running = [(index, site) for index, site in enumerate(sites) if site.runs]
        self._seen = seen
        self._met = 0
        # Inputs of the replaced sites that are running. What they are made of may be ReLUs; it is none of its own site.
        self._inputs: list[Tensor] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hooks on every replaced site while the block lasts."""
        names: dict[nn.Module, list[str]] = defaultdict(list)
        for name, module in self._model.named_modules(remove_duplicate=False):
            names[module].append(name)
        handles = []
        for _, module in named_activations(self._model):
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave(names[module])))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._inputs.append(args[0].clone())

    def _leave(self, names: Sequence[str]) -> Callable[[nn.Module, Any, Tensor], None]:
        def leave(module: nn.Module, args: Any, output: Tensor) -> None:
            # Not by calling the module, whose hooks would take it for one more site.
            self._tell(names, self._inputs[-1], output, module.forward)
            self._inputs.pop()

        return leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inputs or as_relu(func, args, kwargs) is None or not relu_input(args, kwargs).is_floating_point():
            return func(*args, **kwargs)
        before = relu_input(args, kwargs).clone()
        output = func(*args, **kwargs)
        rest = {key: value for key, value in kwargs.items() if key != "input"}
        self._tell(None, before, output, lambda x: func(x, *args[1:], **rest))
        return output

    def _tell(self, names: Sequence[str] | None, before: Tensor, after: Tensor, again: Callable[[Tensor], Tensor]) -> None:
        """``names`` of the module that ran; None for a ReLU that is left."""
        if self._met == len(self._running):
            self._refuse("more")
        index, site = self._running[self._met]
        if names is not None and site.name not in names:
            self._refuse(f"{names[0]} in the place of {site.name}: other")
        self._met += 1
        self._seen(index, Passage(before, after.clone(), _attention(before, again)))

    def finish(self) -> None:
        if self._met < len(self._running):
            self._refuse("fewer")

    def _refuse(self, how: str) -> None:
        raise SurgeryError(f"{type(self._model).__name__} runs {how} sites than the {len(self._running)} that are recorded of it")


def _attention(x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor | None:
    """activation(x) / x; in place or not, ``x`` stays."""
    if bool((activation(torch.zeros_like(x)).abs() > _NEAR_ZERO).any()):
        return None
    side = torch.where(x < 0, -_NEAR_ZERO, _NEAR_ZERO).to(x.dtype)
    away = torch.where(x.abs() < _NEAR_ZERO, side, x)
    return activation(away.clone()) / away + 0.0  # -0 becomes 0
