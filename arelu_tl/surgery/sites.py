"""Find the sites of a model: every ReLU of its forward pass, each with its own name.

The model is not changed.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arelu_tl.backbone.loading import pretrained_cfg
from arelu_tl.backbone.modes import training as in_training
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.relu_calls import is_relu_module
from arelu_tl.surgery.routing import SITES, is_routed
from arelu_tl.surgery.trace import Execution, Trace, on_meta, trace_relus

# Tried on a model that does not declare its input size.
_USUAL_SIZE = (3, 224, 224)

Kind = Literal["module", "shared", "functional"]
Role = Literal["activation", "squeeze-excite", "squared", "kernel", "gate"]


@dataclass(frozen=True)
class Site:
    """One ReLU executed in the forward pass.

    Attributes:
        name: the qualified name that its replacement has after surgery.
        names: every name that patterns match: ``name``, and those of the ReLU module that runs
            there before surgery.
        kind: module (a ReLU module that runs once), shared (one call of a module that runs
            ``calls`` times), functional.
        operator: relu, relu6, or capped-relu.
        cap: upper bound of its output, which surgery keeps, or None.
        inplace: whether it overwrites its input.
        role: activation, squeeze-excite, squared, kernel or gate; see ``trace.Execution``.
        preceding: what made its input: a layer's name and kind, or an operation such as add (a
            residual sum).
        shape: shape of its input for one picture, batch first.
        channel_dim: dimension of the channels in ``shape``.
        negative_share: share of negative elements in its input, 0..1; None if the model ran without
            values.
        leak_ratio: size of a full leak relative to what the ReLU lets through; see
            ``trace.Execution``.
        call, calls: this is call ``call`` (from 1) of the ``calls`` that the module makes; 0 of 0
            for a module that the forward pass does not reach.
        owner: the module that hands the call out after surgery; None where a module is simply
            exchanged.
        within: names of the modules in whose forward pass it runs, outermost first.
    """

    name: str
    names: tuple[str, ...]
    kind: Kind
    operator: str
    cap: float | None
    inplace: bool
    role: Role = "activation"
    preceding: str = "input"
    shape: tuple[int, ...] = ()
    channel_dim: int = 1
    negative_share: float | None = None
    leak_ratio: float | None = None
    call: int = 1
    calls: int = 1
    owner: str | None = None
    within: tuple[str, ...] = field(default=(), repr=False)

    @property
    def channels(self) -> int:
        """Size of the channel dimension."""
        return self.shape[self.channel_dim]

    @property
    def runs(self) -> bool:
        """Whether the forward pass reaches it."""
        return self.calls > 0


def find_sites(
    model: nn.Module, example_input: Tensor | None = None, *, share: bool = False
) -> list[Site]:
    """List every ReLU of ``model`` in the order of the forward pass.

    ReLU modules that the pass does not reach come last.

    Args:
        model: any module; left as it is.
        example_input: pictures, shape (N, C, H, W), on the model's device. None suffices for a
            model that runs on its own input size (timm models declare it) or on 3 x 224 x 224.
            Without an example, or with one on the meta device, the model is traced on the meta
            device, without values, if it can be.
        share: treat all calls of one module as one site.

    Raises:
        SurgeryError: the model cannot run, has already been operated on, or runs a ReLU that
            surgery cannot reach.
    """
    for name, module in model.named_modules():
        if is_routed(module):
            raise SurgeryError(
                f"{name or type(model).__name__} has been operated on already: start from an "
                "unmodified model"
            )
    trace = examine(model, example_input)
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    calls = Counter(e.module for e in trace.executions if e.module is not None)
    sites, counted, owned = [], Counter[nn.Module](), Counter[str]()
    for execution in trace.executions:
        module = execution.module
        if module is not None:
            counted[module] += 1
            if not names[module][0]:
                raise SurgeryError(
                    "the model is itself a ReLU; there is nothing around it to operate on"
                )
        alone = module is not None and (share or calls[module] == 1)
        slot = None if alone or module is None else _slot(module, execution, trace, names)
        owner = None
        if alone and module is not None:
            own_names = tuple(names[module])
        elif slot is not None:
            own_names = (slot,)
        else:
            owner = _owner(execution, trace, model, names)
            own_names = (f"{owner}.{SITES}.{owned[owner]}".removeprefix("."),)
            owned[owner] += 1
        old_names = tuple(names[module]) if module is not None and owner is not None else ()
        sites.append(
            _site(
                execution,
                own_names,
                old_names,
                owner,
                names,
                (counted[module], calls[module]) if module is not None else (1, 1),
            )
        )
    unreached = [m for m in names if is_relu_module(m) and not calls[m]]
    return sites + [_unreached(m, names[m]) for m in unreached]


def _site(
    execution: Execution,
    own_names: tuple[str, ...],
    old_names: tuple[str, ...],
    owner: str | None,
    names: dict[nn.Module, list[str]],
    call: tuple[int, int],
) -> Site:
    kind: Kind = "functional" if execution.module is None else "shared" if call[1] > 1 else "module"
    return Site(
        name=own_names[0],
        names=own_names + old_names,
        kind=kind,
        operator=execution.call.operator,
        cap=execution.call.cap,
        inplace=execution.call.inplace,
        role=execution.role,  # type: ignore[arg-type]
        preceding=execution.preceding,
        shape=execution.shape,
        channel_dim=execution.channel_dim,
        negative_share=execution.negative_share,
        leak_ratio=execution.leak_ratio,
        call=call[0],
        calls=call[1],
        owner=owner,
        within=tuple(names[m][0] for m in execution.stack),
    )


def _unreached(module: nn.Module, names: list[str]) -> Site:
    cap = float(module.max_val) if isinstance(module, nn.Hardtanh) else None
    return Site(
        name=names[0],
        names=tuple(names),
        kind="module",
        operator="relu" if cap is None else "relu6" if cap == 6 else "capped-relu",
        cap=cap,
        inplace=bool(module.inplace),
        call=0,
        calls=0,
    )


def _slot(
    module: nn.Module, execution: Execution, trace: Trace, names: dict[nn.Module, list[str]]
) -> str | None:
    """Return the slot of an nn.Sequential that this call of a repeated module runs, if any.

    A Sequential runs its slots in order, so a slot can be exchanged without routing.
    """
    around = execution.stack[-1] if execution.stack else None
    if type(around) is not nn.Sequential or trace.invocations[around] != 1:
        return None
    slots = [key for key, child in around._modules.items() if child is module]
    earlier = [
        e for e in trace.executions if e.module is module and e.stack and e.stack[-1] is around
    ]
    return f"{names[around][0]}.{slots[earlier.index(execution)]}".removeprefix(".")


def _owner(
    execution: Execution, trace: Trace, model: nn.Module, names: dict[nn.Module, list[str]]
) -> str:
    """Name the innermost module around a call that runs once in a forward pass.

    Only there can the calls be counted. A container that runs all of its children cannot be an
    owner, because it would run the new ones too.
    """
    for module in reversed(execution.stack):
        if trace.invocations[module] == 1 and not isinstance(
            module, nn.Sequential | nn.ModuleList | nn.ModuleDict
        ):
            if module is model and hasattr(model, "forward_features"):
                break
            return names[module][0]
    where = names[execution.stack[-1]][0] if execution.stack else ""
    raise SurgeryError(
        f"{where or type(model).__name__} calls {execution.call.operator} where it can be given "
        "no activation of its own: there is no module around the call that runs once in a forward "
        "pass"
    )


def examine(model: nn.Module, example: Tensor | None) -> Trace:
    """Trace in eval mode, and raise if training would run other ReLUs.

    Args:
        model: left as it is.
        example: as for ``find_sites``.

    Raises:
        SurgeryError: see ``find_sites``.
    """
    size = _size(model, example)
    if example is not None and not _only_a_shape(model, example):
        trace = trace_relus(model, example)
    else:
        trace = _without_values(model, size) or trace_relus(model, _zeros(model, size))
    _compare_modes(
        model, trace, _without_values(model, size, training=True) or _trained_copy(model, size)
    )
    return trace


def pictures_for(model: nn.Module, example: Tensor | None) -> Tensor:
    """Return an input that ``model`` can run on, on the model's device.

    It is ``example`` if its values are needed and present, otherwise zeros of its size.
    """
    return (
        example
        if example is not None and not _only_a_shape(model, example)
        else _zeros(model, _size(model, example))
    )


def _size(model: nn.Module, example: Tensor | None) -> tuple[int, ...]:
    return tuple(
        example.shape[1:]
        if example is not None
        else pretrained_cfg(model).get("input_size", _USUAL_SIZE)
    )


def _trained_copy(model: nn.Module, size: tuple[int, ...]) -> Trace:
    """Trace a copy in training mode with values; a copy, because training changes statistics."""
    twin = copy.deepcopy(model).train()
    trace = trace_relus(twin, _zeros(twin, size, pictures=2), evaluate=False)
    # Translate to the modules of the model itself, which come in the same order.
    back = dict(zip(twin.modules(), model.modules(), strict=True))
    executions = [
        replace(e, module=e.module and back[e.module], stack=tuple(back[m] for m in e.stack))
        for e in trace.executions
    ]
    return Trace(executions, Counter({back[m]: n for m, n in trace.invocations.items()}))


def _only_a_shape(model: nn.Module, example: Tensor) -> bool:
    """Whether ``example`` lies on the meta device and the model does not."""
    return example.device.type == "meta" and any(
        p.device.type != "meta" for p in model.parameters()
    )


def _zeros(model: nn.Module, size: tuple[int, ...], *, pictures: int = 1) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(pictures, *size, device=like.device, dtype=like.dtype)


def _without_values(
    model: nn.Module, size: tuple[int, ...], *, training: bool = False
) -> Trace | None:
    """Trace on the meta device, where shapes flow and nothing is computed.

    Returns None if the model needs values.
    """
    run = on_meta(model, size, pictures=2 if training else 1)
    try:
        if not training:
            return trace_relus(model, None, run=run)
        with in_training(model):
            return trace_relus(model, None, run=run, evaluate=False)
    except SurgeryError:
        return None


def _compare_modes(model: nn.Module, evaluated: Trace, trained: Trace) -> None:
    """Raise if training and evaluation run different ReLU calls: no plan could serve both."""
    key: Callable[[Execution], Any] = lambda e: (  # noqa: E731
        e.stack[-1] if e.stack else None,
        e.module,
    )
    before, after = Counter(map(key, evaluated.executions)), Counter(map(key, trained.executions))
    if before == after:
        return
    names = {module: name for name, module in model.named_modules()}
    where = sorted(
        {names[k[1] or k[0]] or type(model).__name__ for k in (before - after) + (after - before)}
    )
    raise SurgeryError(
        f"training runs other ReLUs than evaluation does, in {', '.join(where[:5])}: make the "
        "forward pass one"
    )
