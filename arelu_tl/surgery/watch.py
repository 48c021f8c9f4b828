"""Observe the input and output of every site in a forward pass.

It works on the unmodified model and on the operated one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arelu_tl.activation.catalogue import named_activations
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.relu_calls import as_relu, relu_input
from arelu_tl.surgery.sites import Site

Seen = Callable[[int, Tensor], None]


@contextmanager
def watch_sites(
    model: nn.Module, sites: Sequence[Site], entered: Seen, left: Seen
) -> Iterator[None]:
    """Pass every site's input and output to callbacks, in each forward pass within the block.

    What the model computes stays the same. The k-th activation that runs belongs to the k-th site
    that runs, because surgery does not reorder calls.

    Args:
        model: unmodified, or with any of the sites replaced.
        sites: sites in the order of the forward pass, as ``find_sites`` or surgery.json lists them;
            those that do not run are skipped.
        entered: called with the index of a site in ``sites`` and its input, a tensor that only the
            site uses and may overwrite. Where gradients are recorded the tensor requires them, even
            if nothing before it does, so that a hook on it sees the gradient that comes through the
            site, in place or not.
        left: called in the same way with the site's output, which the model goes on with.
            Activations called inside either callback do not count as sites.

    Raises:
        SurgeryError: a forward pass runs other activations than ``sites`` lists.
    """
    watch = _Watch(model, sites, entered, left)
    with ExitStack() as hooks:
        for handle in watch.hooks():
            hooks.callback(handle.remove)
        with watch:
            yield


class _Watch(TorchFunctionMode):
    """Recognises replaced sites as modules, and all others as ReLU calls outside them."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], entered: Seen, left: Seen) -> None:
        super().__init__()
        self._model, self._entered, self._left = model, entered, left
        self._names = {module: name for name, module in named_activations(model)}
        named = {
            name: m for name, m in model.named_modules(remove_duplicate=False) if m in self._names
        }
        # Per site: its index, its name, and the module that has replaced it.
        self._running = [
            (number, site.name, named.get(site.name))
            for number, site in enumerate(sites)
            if site.runs
        ]
        self._begin()

    def hooks(self) -> Iterator[Any]:
        yield self._model.register_forward_pre_hook(lambda *_: self._begin())
        yield self._model.register_forward_hook(lambda *_: self._end())
        for module in self._names:
            yield module.register_forward_pre_hook(self._before)
            yield module.register_forward_hook(self._after)

    def _begin(self) -> None:
        self._met = 0
        # Replaced sites that are running now. ReLUs inside an activation do not count as sites.
        self._inside: list[tuple[int, Tensor]] = []

    def _end(self) -> None:
        if self._met < len(self._running):
            raise self._unlike("fewer")

    def _unlike(self, how: str) -> SurgeryError:
        return SurgeryError(
            f"{type(self._model).__name__} runs {how} sites than the {len(self._running)} that "
            "surgery found: its forward pass depends on its input or mode, or the record is "
            "another model's"
        )

    def _next(self, module: nn.Module | None) -> int:
        """Advance to the next site, where ``module`` runs (None for a ReLU that was kept)."""
        if self._met == len(self._running):
            raise self._unlike("more")
        number, name, expected = self._running[self._met]
        if module is not expected:
            met = "a ReLU" if module is None else self._names[module]
            raise self._unlike(f"{met} in the place of {name}: other")
        self._met += 1
        return number

    def _own(self, number: int, x: Tensor) -> Tensor:
        own = x.clone() if x.requires_grad else x.detach().requires_grad_().clone()
        self._entered(number, own)
        return own

    def _before(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        number = self._next(module)
        self._inside.append((number, given[0]))
        return self._own(number, given[0]), *given[1:]

    def _after(self, module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
        number, x = self._inside[-1]
        self._left(number, output)
        self._inside.pop()
        # Other holders of the input must find the output in it, as they would unobserved.
        return x.copy_(output) if getattr(module, "inplace", False) else output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = None if self._inside else as_relu(func, args, kwargs)
        if call is None or not relu_input(args, kwargs).is_floating_point():
            return func(*args, **kwargs)
        x, number = relu_input(args, kwargs), self._next(None)
        own = self._own(number, x)
        output = func(own, *args[1:], **kwargs) if args else func(**{**kwargs, "input": own})
        self._left(number, output)
        return x.copy_(output) if call.inplace else output


# Closer to 0 than this, the quotient of output and input is not defined. It is then taken at this
# distance on the same side (on the right for 0 itself).
_NEAR_ZERO = 1e-6


@dataclass(frozen=True)
class Passage:
    """What one site did in one forward pass.

    The tensors are copies, because the model's sites may overwrite their inputs.

    Attributes:
        before, after: its input and output, of ``Site.shape``.
        attention: the factor of each element, after / before, cap included (ELSA's map, arXiv
            2006.13858, section 3.1). It is 1 or 0 for a ReLU, and scale * (1 + sigmoid(beta)) or
            scale * clamp(alpha) for AReLU. None if the activation does not map 0 to 0, since no
            factor then describes it.
    """

    before: Tensor
    after: Tensor
    attention: Tensor | None


def observe_sites(
    model: nn.Module,
    sites: Sequence[Site],
    run: Callable[[], Any],
    seen: Callable[[int, Passage], None],
) -> None:
    """Call ``run``, and ``seen(i, passage)`` for each ``sites[i]`` that the pass went through.

    Args:
        model, sites: see ``watch_sites``; the model is left as it is.
        run: calls ``model`` once, without gradients.
        seen: receives the index of a site and what it did.

    Raises:
        SurgeryError: see ``watch_sites``.
    """
    activations = dict(named_activations(model))
    before: dict[int, Tensor] = {}

    def entered(number: int, x: Tensor) -> None:
        before[number] = x.clone()

    def left(number: int, output: Tensor) -> None:
        site, x = sites[number], before.pop(number)
        # Calls forward, not the module, whose hooks would count one more site.
        activation = (
            activations[site.name].forward
            if site.name in activations
            else lambda y: y.clamp(0, site.cap)
        )
        seen(number, Passage(x, output.clone(), _attention(x, activation)))

    with watch_sites(model, sites, entered, left):
        run()


def _attention(x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return activation(x) / x; ``x`` is left unchanged, whether or not it works in place."""
    if bool((activation(torch.zeros_like(x)).abs() > _NEAR_ZERO).any()):
        return None
    side = torch.where(x < 0, -_NEAR_ZERO, _NEAR_ZERO).to(x.dtype)
    away = torch.where(x.abs() < _NEAR_ZERO, side, x)
    return activation(away.clone()) / away + 0.0  # -0 becomes 0
