"""Define what counts as a ReLU.

ReLUs are recognised at torch's Python functions, where a call can be replaced, and at the
dispatcher, which every call passes.

A ReLU is an operation on floating-point numbers that cuts off at exactly 0 from below and,
optionally, at a cap greater than 1 from above: ``relu``, ``relu6``, ``hardtanh(0, 6)``,
``clamp(min=0)``, ``threshold(0, 0)`` and their in-place forms. A cut to [0, 1] keeps a share or a
probability in its range; it is not an activation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class ReLUCall(NamedTuple):
    """One call that acts as a ReLU.

    Attributes:
        operator: relu, relu6 (a cap of 6, in whatever form), or capped-relu.
        cap: the upper bound, or None.
        inplace: whether the input is overwritten.
    """

    operator: str
    cap: float | None
    inplace: bool


def _call(low: Any, high: Any, inplace: bool) -> ReLUCall | None:
    if isinstance(low, Tensor) or isinstance(high, Tensor) or low is None or low != 0:
        return None
    if high is None or high == float("inf"):
        return ReLUCall("relu", None, inplace)
    if high <= 1:
        return None
    return ReLUCall("relu6" if high == 6 else "capped-relu", float(high), inplace)


def _bound(
    args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None
) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


# torch function: (kind, whether it overwrites its input; None: an argument decides)
_FUNCTIONS: dict[Callable[..., Any], tuple[str, bool | None]] = {
    F.relu: ("relu", None),
    torch.relu: ("relu", False),
    torch.relu_: ("relu", True),
    Tensor.relu: ("relu", False),
    Tensor.relu_: ("relu", True),
    F.relu6: ("relu6", None),
    F.hardtanh: ("hardtanh", None),
    F.hardtanh_: ("hardtanh", True),
    F.threshold: ("threshold", None),
    torch.threshold: ("threshold", False),
    torch.threshold_: ("threshold", True),
    torch.clamp: ("clamp", False),
    torch.clamp_: ("clamp", True),
    torch.clip: ("clamp", False),
    torch.clip_: ("clamp", True),
    Tensor.clamp: ("clamp", False),
    Tensor.clamp_: ("clamp", True),
    Tensor.clip: ("clamp", False),
    Tensor.clip_: ("clamp", True),
    torch.clamp_min: ("clamp_min", False),
    torch.clamp_min_: ("clamp_min", True),
    Tensor.clamp_min: ("clamp_min", False),
    Tensor.clamp_min_: ("clamp_min", True),
}
_INPLACE_POSITION = {"relu": 1, "relu6": 1, "hardtanh": 3, "threshold": 3}


def as_relu(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ReLUCall | None:
    """Return the ReLU that a call of a torch function amounts to, or None.

    Only the function and its constants are examined, not the values.
    """
    if func not in _FUNCTIONS or kwargs.get("out") is not None:
        return None
    kind, inplace = _FUNCTIONS[func]
    if inplace is None:
        inplace = bool(_bound(args, kwargs, _INPLACE_POSITION[kind], "inplace", False))
    if kind == "relu":
        return ReLUCall("relu", None, inplace)
    if kind == "relu6":
        return ReLUCall("relu6", 6.0, inplace)
    if kind == "hardtanh":
        return _call(
            _bound(args, kwargs, 1, "min_val", -1.0),
            _bound(args, kwargs, 2, "max_val", 1.0),
            inplace,
        )
    if kind == "threshold":
        threshold, value = _bound(args, kwargs, 1, "threshold"), _bound(args, kwargs, 2, "value")
        return _call(0, None, inplace) if threshold == 0 and value == 0 else None
    high = None if kind == "clamp_min" else _bound(args, kwargs, 2, "max")
    return _call(_bound(args, kwargs, 1, "min"), high, inplace)


def relu_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the tensor that such a call acts on."""
    tensor: Tensor = args[0] if args else kwargs["input"]
    return tensor


def is_relu_module(module: nn.Module) -> bool:
    """Whether ``module`` is a ReLU and nothing else, so that another activation can replace it."""
    if isinstance(module, nn.ReLU):
        return type(module).forward is nn.ReLU.forward
    if isinstance(module, nn.Hardtanh):
        return (
            type(module).forward is nn.Hardtanh.forward
            and _call(module.min_val, module.max_val, False) is not None
        )
    if isinstance(module, nn.Threshold):
        return (
            type(module).forward is nn.Threshold.forward
            and module.threshold == 0
            and module.value == 0
        )
    return False


_aten = torch.ops.aten
# At the dispatcher every form has become one of these. Values: positions of the lower and the upper
# bound.
_OPERATORS: dict[Any, tuple[int | None, int | None]] = {
    _aten.relu: (None, None),
    _aten.relu_: (None, None),
    _aten.hardtanh: (1, 2),
    _aten.hardtanh_: (1, 2),
    _aten.clamp: (1, 2),
    _aten.clamp_: (1, 2),
    _aten.clamp_min: (1, None),
    _aten.clamp_min_: (1, None),
    _aten.threshold: (1, None),
    _aten.threshold_: (1, None),
}


def is_relu_operator(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator with these arguments is a ReLU, or ends in one as fused kernels do."""
    packet = getattr(func, "overloadpacket", None)
    if packet not in _OPERATORS:
        return _holds_relu(func, args, kwargs)
    if not (args[0].is_floating_point() or args[0].is_quantized):
        return False
    at_low, at_high = _OPERATORS[packet]
    if at_low is None:
        return True
    default_low, default_high = (
        (-1.0, 1.0) if packet in (_aten.hardtanh, _aten.hardtanh_) else (None, None)
    )
    if packet in (_aten.threshold, _aten.threshold_):
        return bool(args[1] == 0 and args[2] == 0)
    low = _bound(args, kwargs, at_low, "min", default_low)
    high = None if at_high is None else _bound(args, kwargs, at_high, "max", default_high)
    return _call(low, high, False) is not None


_NAMED_AFTER_RELU = re.compile(r"(?:^|(?<!leaky)_)relu6?(?:_|$)")
_RECURRENT = ("aten::_cudnn_rnn", "aten::miopen_rnn")


def _holds_relu(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a kernel of another name contains a ReLU, hidden from the dispatcher."""
    schema = getattr(func, "_schema", None)
    if schema is None:
        return False
    # quantized::conv2d_relu, aten::_add_relu
    if _NAMED_AFTER_RELU.search(schema.name.partition("::")[2]):
        return True
    arguments = {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | dict(
        kwargs
    )
    # aten::_transformer_encoder_layer_fwd, aten::_addmm_activation
    if any(a.name == "use_gelu" for a in schema.arguments):
        return not arguments.get("use_gelu", False)
    if schema.name in _RECURRENT:
        return arguments.get("mode") == 0
    # mkldnn::_convolution_pointwise
    return any(isinstance(value, str) and value == "relu" for value in arguments.values())


class ReLUTap(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls ``seen()`` at each ReLU that the dispatcher executes, from any caller or language."""

    def __init__(self, seen: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode, autograd does not run before the dispatcher, so composite operators
        # arrive here not yet decomposed.
        if isinstance(func, torch._ops.OpOverload) and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func is _BATCH_NORM and args[0].is_meta:
            return _shapes_after_batchnorm(*args)
        if is_relu_operator(func, args, kwargs):
            self._seen()
        return func(*args, **kwargs)


@cache
def _is_composite(operator: torch._ops.OpOverload) -> bool:
    """Whether torch runs the operator as other operators on every backend.

    A Python decomposition that merely exists is not one of its kernels.
    """
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(operator._name, "CompositeImplicitAutograd")
    )


_BATCH_NORM = _aten.native_batch_norm.default


def _shapes_after_batchnorm(
    x: Tensor, _weight: Any, _bias: Any, _mean: Any, _var: Any, training: bool, *_: Any
) -> list[Tensor]:
    """Return BatchNorm's outputs where only shapes flow.

    torch's own meta implementation takes longer than all other layers together.
    """
    kept = x.shape[1] if training else 0
    return [torch.empty_like(x), x.new_empty(kept), x.new_empty(kept)]
