"""Watch what goes into and comes out of every site in a forward pass that learns, of an arm or of the unmodified model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.plan import PlannedSite
from arelu_tl.surgery.relu_calls import as_relu, relu_input

Seen = Callable[[int, Tensor], None]


@contextmanager
def watch_sites(model: nn.Module, sites: Sequence[PlannedSite], entered: Seen, left: Seen) -> Iterator[None]:
    """Within the block, each forward pass of ``model`` hands every site's input and output over; what it computes is the same.

    Args:
        model: as surgery left it, or unmodified.
        sites: of its surgery report; of an unmodified model the plan that keeps all of them (``SurgeryPlan.keeping``).
        entered: called with the number of a site in ``sites`` and its input: a tensor that nothing but the site uses, so that
            a hook on it sees the gradient that comes through the site, in place or not. It requires gradients even where
            nothing before it does.
        left: the same with its output.

    Raises:
        SurgeryError: a forward pass runs other ReLUs than ``sites`` has.
    """
    watch = _Watch(model, sites, entered, left)
    with ExitStack() as hooks:
        for handle in watch.hooks():
            hooks.callback(handle.remove)
        with watch:
            yield


class _Watch(TorchFunctionMode):
    """Meets replaced sites as modules, and all others as calls of ReLUs outside of those modules."""

    def __init__(self, model: nn.Module, sites: Sequence[PlannedSite], entered: Seen, left: Seen) -> None:
        super().__init__()
        self._model, self._entered, self._left = model, entered, left
        self._kept: list[int] = []
        # A module that stands at several sites runs them in their order.
        self._replaced: dict[nn.Module, list[int]] = defaultdict(list)
        for number, planned in enumerate(sites):
            if planned.status == "replaced":
                self._replaced[model.get_submodule(planned.site.name)].append(number)
            elif planned.site.runs:
                self._kept.append(number)
        self._begin()

    def hooks(self) -> Iterator[Any]:
        yield self._model.register_forward_pre_hook(lambda *_: self._begin())
        yield self._model.register_forward_hook(lambda *_: self._end())
        for module in self._replaced:
            yield module.register_forward_pre_hook(self._before)
            yield module.register_forward_hook(self._after)

    def _begin(self) -> None:
        self._calls: Counter[nn.Module | None] = Counter()
        self._inside: list[tuple[int, Tensor]] = []

    def _end(self) -> None:
        met = {who: self._calls[who] for who in self._replaced}
        if met != {who: len(numbers) for who, numbers in self._replaced.items()} or self._calls[None] != len(self._kept):
            raise self._unlike()

    def _unlike(self) -> SurgeryError:
        return SurgeryError(
            f"{type(self._model).__name__} runs other ReLUs in training than surgery found: its forward pass depends on its input"
        )

    def _next(self, who: nn.Module | None) -> int:
        numbers = self._kept if who is None else self._replaced[who]
        if self._calls[who] == len(numbers):
            raise self._unlike()
        self._calls[who] += 1
        return numbers[self._calls[who] - 1]

    def _own(self, number: int, x: Tensor) -> Tensor:
        own = x.clone() if x.requires_grad else x.detach().requires_grad_().clone()
        self._entered(number, own)
        return own

    def _before(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        number = self._next(module)
        self._inside.append((number, given[0]))
        return self._own(number, given[0]), *given[1:]

    def _after(self, module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
        number, x = self._inside.pop()
        self._left(number, output)
        # Whoever else holds the input shall find the output in it, as without us.
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
