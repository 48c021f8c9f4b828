"""Watch one forward pass and record every ReLU that it executes, with its place and its input.

Two observers watch at once. At torch's Python functions, each call is located (module stack,
preceding operation, shape); at the dispatcher, each execution is counted. Surgery could not reach
an execution without a located call, so such an execution is an error, never a warning.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from arelu_tl.backbone.modes import evaluating
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.relu_calls import ReLUCall, ReLUTap, as_relu, is_relu_module, relu_input


@dataclass(eq=False)
class Execution:
    """One ReLU executed in a forward pass.

    Attributes:
        call: what was called.
        module: the ReLU module in whose forward pass it ran; None for a functional call.
        stack: the modules in whose forward pass it ran, outermost first, without ``module``.
        role: activation; squeeze-excite (on one value per channel, inside a module that multiplies
            it onto a map); squared (its output is multiplied by itself); kernel (its output is an
            operand of a matrix product, as in linear attention, which relies on its being
            positive); or gate (of x plus a constant, capped at the constant or at twice it: part of
            a hard sigmoid, hard swish or hard mish).
        preceding: the layer or operation that made its input.
        shape: shape of its input, (N, C, H, W) or the model's own layout.
        channel_dim: dimension of the channels.
        negative_share: share of negative input elements, 0..1; None on the meta device.
        leak_ratio: size of a full leak relative to what the ReLU lets through: standard deviation
            within channels of min(x, 0) over that of the ReLU's output. None on the meta device, or
            if the ReLU's output does not vary.
        device, dtype: device and dtype of its input.
    """

    call: ReLUCall
    module: nn.Module | None
    stack: tuple[nn.Module, ...]
    preceding: str
    shape: tuple[int, ...]
    channel_dim: int
    negative_share: float | None
    leak_ratio: float | None
    device: torch.device
    dtype: torch.dtype
    role: str = "activation"
    operators: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Trace:
    """What one forward pass did.

    Attributes:
        executions: every ReLU, in order.
        invocations: how often each module's forward ran.
    """

    executions: list[Execution]
    invocations: Counter[nn.Module]


class _Origin(NamedTuple):
    """Where a tensor comes from: its origin, channel dimension, and the ReLU that output it."""

    made_by: str
    channel_dim: int | None
    execution: Execution | None = None
    shifted: float = 0.0


_NORMS_AND_LAYERS = {
    "batch_norm": 1, "group_norm": 1, "instance_norm": 1, "conv1d": 1, "conv2d": 1, "conv3d": 1,
    "conv_transpose2d": 1, "linear": -1, "layer_norm": -1, "rms_norm": -1,
}  # fmt: skip
# Operations that pass their input on with another shape, or with parts dropped.
_TRANSPARENT = frozenset(
    {
        "dropout",
        "dropout2d",
        "contiguous",
        "clone",
        "to",
        "float",
        "type",
        "detach",
        "identity",
        "flatten",
        "reshape",
        "view",
    }
    | {
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "chunk",
        "split",
        "unbind",
        "__getitem__",
        "pad",
        "expand",
    }
)
_SQUARES = frozenset({"square", "square_"})
_POWERS = frozenset({"pow", "pow_", "__pow__", "__ipow__"})
_PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__imul__", "multiply"})
_MATRIX_PRODUCTS = frozenset(
    {"matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "einsum", "baddbmm"}
)
_SUMS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})


class _Watch(TorchFunctionMode):
    def __init__(self, names: dict[nn.Module, str]) -> None:
        super().__init__()
        self.executions: list[Execution] = []
        self.invocations: Counter[nn.Module] = Counter()
        self.unplaced: list[str] = []
        self._names = names
        self._stack: list[nn.Module] = []
        self._inputs: list[tuple[Tensor | None, int]] = []
        self._origins: Any = WeakTensorKeyDictionary()
        self._current: Execution | None = None

    def enter(self, module: nn.Module, args: Any) -> None:
        if module in self._names:
            self._stack.append(module)
            self.invocations[module] += 1
            self._inputs.append((_first_shape(args), len(self.executions)))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self._names:
            return
        self._stack.pop()
        given, first = self._inputs.pop()
        # A module gates a map if it returns the map in its own shape and a ReLU inside it saw one
        # value per channel.
        if (
            given is not None
            and isinstance(output, Tensor)
            and output.shape == given
            and given[2:].numel() > 1
        ):
            for execution in self.executions[first:]:
                if (
                    len(execution.shape) == 4
                    and execution.shape[2:] == (1, 1)
                    and execution.role == "activation"
                ):
                    execution.role = "squeeze-excite"

    def operator_seen(self) -> None:
        if self._current is not None:
            self._current.operators += 1
        else:
            self.unplaced.append(self._names[self._stack[-1]] if self._stack else "")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = as_relu(func, args, kwargs)
        if call is None or not relu_input(args, kwargs).is_floating_point():
            output = func(*args, **kwargs)
            self._follow(getattr(func, "__name__", ""), args, kwargs, output)
            return output
        execution = self._place(call, relu_input(args, kwargs))
        self._current = execution
        try:
            output = func(*args, **kwargs)
        finally:
            self._current = None
        self.executions.append(execution)
        self._origins[output] = _Origin(call.operator, execution.channel_dim, execution)
        return output

    def _place(self, call: ReLUCall, x: Tensor) -> Execution:
        top = self._stack[-1] if self._stack else None
        inside = top is not None and is_relu_module(top)
        origin: _Origin = self._origins.get(x, _Origin("input", None))
        channel_dim = origin.channel_dim
        if channel_dim is None or x.dim() == 2:
            channel_dim = -1 if x.dim() == 3 else 1
        return Execution(
            call=call,
            module=top if inside else None,
            stack=tuple(self._stack[:-1] if inside else self._stack),
            preceding=origin.made_by,
            shape=tuple(x.shape),
            channel_dim=channel_dim,
            negative_share=None
            if x.device.type == "meta" or not x.numel()
            else float((x.detach() < 0).float().mean()),
            leak_ratio=None
            if x.device.type == "meta"
            else _leak_ratio(x.detach(), call.cap, channel_dim),
            device=x.device,
            dtype=x.dtype,
            role="gate"
            if origin.shifted > 0 and call.cap in (origin.shifted, 2 * origin.shifted)
            else "activation",
        )

    def _follow(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """Keep track of what made each tensor, as far as the table of operations knows."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        origin: _Origin | None = self._origins.get(tensors[0]) if tensors else None
        if origin is not None and origin.execution is not None and _squares(name, args):
            origin.execution.role = "squared"
        if name in _MATRIX_PRODUCTS:
            for operand in tensors:
                execution = self._origins.get(operand, _Origin("input", None)).execution
                if execution is not None:
                    execution.role = "kernel"
        if not isinstance(output, Tensor):
            if isinstance(output, tuple | list) and name in _TRANSPARENT and origin is not None:
                for part in output:
                    self._origins[part] = origin
            return
        if output.dim() == 0 or not output.is_floating_point():
            return
        if name in _NORMS_AND_LAYERS:
            module = self._stack[-1] if self._stack else None
            origin_name = (
                f"{self._names[module] or type(module).__name__} ({name})"
                if module is not None
                else name
            )
            self._origins[output] = _Origin(origin_name, _NORMS_AND_LAYERS[name])
        elif name in _TRANSPARENT and origin is not None:
            self._origins[output] = origin._replace(
                channel_dim=_channels_after(name, args, kwargs, origin, output), shifted=0.0
            )
        elif not name.startswith("__get"):
            inherited = next(
                (
                    o.channel_dim
                    for t in tensors
                    if t.dim() == output.dim() and (o := self._origins.get(t))
                ),
                None,
            )
            added = _second(args, kwargs) if name in _SUMS else None
            shift = float(added) if isinstance(added, int | float) else 0.0
            self._origins[output] = _Origin(name.strip("_"), inherited, shifted=shift)


def _leak_ratio(x: Tensor, cap: float | None, channel_dim: int) -> float | None:
    # Without clamp: the dispatcher, where ReLUs are counted, would count it as one more.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    within = [d for d in range(x.dim()) if d != channel_dim % x.dim()]
    if not x.numel():
        return None
    passed = torch.where(x > 0, x, 0).clamp(max=cap if cap is not None else float("inf"))
    cut = torch.where(x < 0, x, 0)
    variances = [float(part.var(dim=within, correction=0).sum()) for part in (cut, passed)]
    return (
        math.sqrt(variances[0] / variances[1])
        if variances[1] > 0 and math.isfinite(sum(variances))
        else None
    )


def _second(args: Any, kwargs: Any) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("other")


def _squares(name: str, args: Any) -> bool:
    if name in _SQUARES:
        return True
    if name in _POWERS:
        return len(args) > 1 and not isinstance(args[1], Tensor) and args[1] == 2
    return name in _PRODUCTS and len(args) > 1 and args[0] is args[1]


def _channels_after(
    name: str, args: Any, kwargs: Any, origin: _Origin, output: Tensor
) -> int | None:
    """Return the channel dimension after a change of shape; None if it is no longer known."""
    before: Tensor = args[0]
    if origin.channel_dim is None:
        return None
    at = origin.channel_dim % before.dim()
    if name == "permute":
        order = (
            args[1]
            if len(args) == 2 and not isinstance(args[1], int)
            else args[1:] or kwargs.get("dims", ())
        )
        return [d % before.dim() for d in order].index(at) if len(order) == before.dim() else None
    if name == "transpose" and len(args) == 3:
        first, second = args[1] % before.dim(), args[2] % before.dim()
        return int({first: second, second: first}.get(at, at))
    kept = [d for d in range(output.dim()) if output.shape[d] == before.shape[at]]
    if at in kept:
        return at
    return kept[0] if len(kept) == 1 else None


def _first_shape(args: Any) -> Any:
    return args[0].shape if args and isinstance(args[0], Tensor) and args[0].dim() == 4 else None


@contextmanager
def _module_hooks(watch: _Watch) -> Iterator[None]:
    handles = (
        register_module_forward_pre_hook(watch.enter),
        register_module_forward_hook(watch.leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_meta(model: nn.Module, size: Sequence[int], *, pictures: int = 1) -> Callable[[], Any]:
    """Prepare a forward pass on pictures of ``size`` (C, H, W) in which only shapes flow.

    Nothing is computed.
    """
    # Each tensor is entered once per module that has it: if it were exchanged under two names of
    # one module, it would not be restored.
    shadows: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        for key, tensor in chain(
            module.named_parameters(name, recurse=False), module.named_buffers(name, recurse=False)
        ):
            state[key] = shadows.setdefault(id(tensor), tensor.detach().to("meta"))
    dtype = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    example = torch.zeros(pictures, *size, device="meta", dtype=dtype)
    return lambda: torch.func.functional_call(model, state, (example,), tie_weights=False)


def count_executions(
    model: nn.Module, example: Tensor, gradients: Callable[[], AbstractContextManager[Any]]
) -> tuple[Counter[str], Counter[nn.Module]]:
    """Run ``model`` once in eval mode, observed only at the dispatcher, and count what ran.

    This is how a user runs it. An observer of torch's functions would change what runs: layers take
    fused kernels only while nothing observes them.

    Args:
        model: its mode is restored; state that it keeps from the pass remains.
        example: pictures, shape (N, C, H, W), on the model's device.
        gradients: ``torch.enable_grad``, ``torch.no_grad`` or ``torch.inference_mode``.

    Returns:
        (how often a ReLU ran in each module, by name; how often each module's forward ran).

    Raises:
        SurgeryError: the model cannot run on the example.
    """
    watch = _Watch({module: name for name, module in model.named_modules()})
    example = example.clone()
    with (
        _refused(model, tuple(example.shape)),
        evaluating(model),
        gradients(),
        _module_hooks(watch),
        ReLUTap(watch.operator_seen),
    ):
        model(example)
    return Counter(watch.unplaced), watch.invocations


@contextmanager
def _refused(model: nn.Module, shape: Any) -> Iterator[None]:
    """Turn an error with which the model cannot run into a SurgeryError."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if isinstance(error, SurgeryError):
            raise
        message = " ".join(str(error).split())[:200]
        raise SurgeryError(
            f"{type(model).__name__} cannot run on input of shape {shape}: {message}; give an "
            "example_input that it can run on"
        ) from error


def trace_relus(
    model: nn.Module,
    example: Tensor | None,
    *,
    run: Callable[[], Any] | None = None,
    evaluate: bool = True,
) -> Trace:
    """Run ``model`` once and list every ReLU that it executes.

    Args:
        model: left as it was.
        example: pictures, shape (N, C, H, W), on the model's device; a meta tensor for a model on
            meta.
        run: what to run instead of ``model(example)``.
        evaluate: run in eval mode without gradients; otherwise in the current mode, as in training.

    Raises:
        SurgeryError: the model cannot run on the example, or executes a ReLU that no Python call
            accounts for.
    """
    names = {module: name for name, module in model.named_modules()}
    watch = _Watch(names)
    if example is not None:
        example = example.clone()  # the first operation may work in place
    shape = tuple(example.shape) if example is not None else "as given"
    mode = evaluating(model) if evaluate else nullcontext()
    with (
        _refused(model, shape), mode, torch.set_grad_enabled(not evaluate),
        _module_hooks(watch), ReLUTap(watch.operator_seen), watch,
    ):  # fmt: skip
        if run is not None:
            run()
        elif example is not None:
            model(example)
    if watch.unplaced:
        where = ", ".join(sorted({name or type(model).__name__ for name in watch.unplaced}))
        raise SurgeryError(
            f"{len(watch.unplaced)} ReLUs are executed in a way that surgery cannot replace, in "
            f"{where}"
        )
    idle = [e for e in watch.executions if e.operators != 1]
    if idle:
        raise SurgeryError(
            f"{len(idle)} ReLU calls do not execute exactly one ReLU operator each; the count "
            "cannot be trusted"
        )
    return Trace(watch.executions, watch.invocations)
