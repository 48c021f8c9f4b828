"""Fold the gains of frozen activations, and normalisations, into the weights around them, exactly.

A frozen site multiplies by its gain g. That product can be left out where the scales (see
``scales``) of its output and input satisfy s_out = s_in / g. The conditions of all other operators
are entered first; they never contradict each other. Then the condition of each site is entered in
turn. Where it contradicts the conditions entered so far, the site keeps its product, and the
report names the obstacle. A gain that differs between channels goes into the layer directly
before the site, where there is one. The rest is arithmetic on weights, in float64.

``fold`` works on a graph, in which each layer can get weights of its own. ``fold_weights`` works on
a model's state dict. The modules stay there, so normalisations remain, and a module that runs
several times keeps one weight for all its calls.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from arelu_tl.exporting.capture import SiteProducts, drop_unused, site_of
from arelu_tl.exporting.scales import (
    CONVOLUTIONS,
    LINEAR,
    NORM,
    ONE,
    Numbers,
    bind,
    cap,
    has_own_weights,
    obstacle,
)

_ATEN = torch.ops.aten


@dataclass
class FoldReport:
    """What was folded, and what was not.

    Attributes:
        folded: names of the sites whose gain is now in the weights.
        kept: {site: why its product stays}.
        batchnorms: number of normalisations folded into the convolution before them.
    """

    folded: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    batchnorms: int = 0


def fold(module: fx.GraphModule, products: SiteProducts) -> FoldReport:
    """Fold ``products`` of ``module``, an inference graph of ATen operators, in place."""
    _leave_out_copies(module)
    report = FoldReport(batchnorms=_fold_batchnorms(module))
    _fold_channels(module, products, report)
    numbers = _solve(module, products, report)
    _rewrite(module, numbers, products.scalar)
    return report


@dataclass(frozen=True)
class FoldedWeights:
    """What ``fold_weights`` changes in a state dict and in the sites.

    Attributes:
        tensors: {name: new value} of the state dict entries that change.
        gains: {site: its remaining gain}, 1 where it was folded; without the sites whose gain
            differs between channels.
        caps: {site: its cap, scaled as its output is}, for sites with a cap.
    """

    tensors: dict[str, Tensor]
    gains: dict[str, float]
    caps: dict[str, float]


def fold_weights(
    module: fx.GraphModule, products: SiteProducts
) -> tuple[FoldedWeights, FoldReport]:
    """Compute the state dict and the sites that result from folding ``products``.

    ``module``, as captured, keeps its weights. Its copy operators are removed, which changes no
    answer.
    """
    _leave_out_copies(module)
    report = FoldReport()
    changed: dict[str, Tensor] = {}
    numbers = Numbers()
    _bind_calls(numbers, module, products)
    _solve(module, products, report, numbers)
    for node in module.graph.nodes:
        if node.op == "call_function" and has_own_weights(node):
            made, taken = numbers.number(node), numbers.number(node.all_input_nodes[0])
            for place, factor in _factors(node, made, taken).items():
                changed[str(node.args[place].target)] = _value(module, node.args[place]) * factor
    gains = {
        name: gain * numbers.number(product) / numbers.number(product.args[0])
        for product, (name, gain) in products.scalar.items()
    }
    caps = {}
    for node in module.graph.nodes:
        if (
            (bounds := cap(node)) is not None
            and bounds[1] is not None
            and (capped := site_of(node)) is not None
        ):
            caps[capped] = bounds[1] * numbers.number(node)
    for name, _ in products.by_channel.values():
        report.kept[name] = (
            "its gain differs from channel to channel, and the modules of the model stay"
        )
    kept = {
        key: value
        for key, value in changed.items()
        if not torch.equal(value, _named(module, key).double())
    }
    return FoldedWeights(
        {key: value.to(_named(module, key).dtype) for key, value in kept.items()}, gains, caps
    ), report


def _bind_calls(numbers: Numbers, module: fx.GraphModule, products: SiteProducts) -> None:
    """Tie the scales around all calls that share one module's state.

    Layers share constants, products share their site. A cap outside a site, such as ReLU6's, is
    part of its module's code and cannot be changed, so its scale is 1.
    """
    served: dict[object, list[fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        if node.op == "call_function" and cap(node) is not None and site_of(node) is None:
            numbers.bind(node, ONE)
        if node in products.scalar:
            served[products.scalar[node][0]].append(node)
        elif node.op == "get_attr":
            served[_named(module, str(node.target)).data_ptr()] += node.users
    for nodes in served.values():
        calls = [node for node in nodes if node in products.scalar or has_own_weights(node)]
        # A constant that is also an operand elsewhere must not change.
        free = len(calls) == len(nodes)
        for node in calls:
            numbers.bind(node, calls[0] if free else ONE)
            numbers.bind(node.all_input_nodes[0], calls[0].all_input_nodes[0] if free else ONE)


def _factors(node: fx.Node, made: float, taken: float) -> dict[int, float]:
    """Return {index of a layer's argument: factor for that constant}.

    ``made`` and ``taken`` are the scales of the layer's output and input.
    """
    factors = {1: made / taken, 2: made}
    if node.target == NORM:
        # The running mean scales with the input; the variance, added to epsilon, must stay.
        factors[3] = taken
    return {
        place: f
        for place, f in factors.items()
        if len(node.args) > place and node.args[place] is not None
    }


def _solve(
    module: fx.GraphModule,
    products: SiteProducts,
    report: FoldReport,
    numbers: Numbers | None = None,
) -> Numbers:
    """Compute the scale of every tensor, and enter in ``report`` which sites are folded or kept."""
    numbers = numbers or Numbers()
    for node in module.graph.nodes:
        if node not in products.scalar:
            bind(numbers, node)
    taken: set[fx.Node] = set()
    for node, (name, gain) in products.scalar.items():
        if numbers.bind(node, node.args[0], -math.log(gain)):
            taken.add(node)
            report.folded.append(name)
        else:
            report.kept[name] = obstacle(node, products.scalar, taken)
    numbers.centre()
    return numbers


def _fold_channels(module: fx.GraphModule, products: SiteProducts, report: FoldReport) -> None:
    """Fold per-channel gains into the layer before the site, if only the site uses its output."""
    for node, (name, gains) in list(products.by_channel.items()):
        activation: Any = node.args[0]
        layer = activation.args[0] if activation.target == _ATEN.prelu.default else None
        if layer is None:
            report.kept[name] = (
                "its gain differs from channel to channel, and channels are not in dimension 1"
            )
        elif (
            set(layer.users) != {activation}
            or layer.op != "call_function"
            or layer.target not in LINEAR
            or not has_own_weights(layer)
        ):
            report.kept[name] = (
                "its gain differs from channel to channel, "
                "and it does not follow a layer of its own"
            )
        else:
            factor = torch.tensor(gains, dtype=torch.float64)
            weight = _value(module, layer.args[1])
            _replace_constant(module, layer, 1, weight * factor.view(-1, *[1] * (weight.dim() - 1)))
            if len(layer.args) > 2 and layer.args[2] is not None:
                _replace_constant(module, layer, 2, _value(module, layer.args[2]) * factor)
            node.replace_all_uses_with(activation)
            module.graph.erase_node(node)
            report.folded.append(name)


def _leave_out_copies(module: fx.GraphModule) -> None:
    """Replace every ``copy`` by its source: a graph without in-place writes needs no copies."""
    for node in list(module.graph.nodes):
        if (
            node.target == _ATEN.copy.default
            and node.meta["val"].shape == node.args[1].meta["val"].shape
        ):
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)


def _rewrite(
    module: fx.GraphModule, numbers: Numbers, gains: Mapping[fx.Node, tuple[str, float]]
) -> None:
    """Scale every layer's weights and every cap's bounds to match the scales of the tensors."""
    # Looked up before any change: once a product is removed, a layer's input is another node.
    scales = {
        node: (
            numbers.number(node),
            numbers.number(node.all_input_nodes[0] if node.all_input_nodes else node),
        )
        for node in module.graph.nodes
    }
    for node in list(module.graph.nodes):
        made, taken = scales.get(node, (1.0, 1.0))
        if node in gains:
            left = gains[node][1] * made / taken
            if abs(left - 1) < 1e-9:
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
            else:
                node.args = (node.args[0], left)
        elif node.op == "call_function" and has_own_weights(node):
            if made != 1 or taken != 1:
                _scale_layer(module, node, made, taken)
        elif (bounds := cap(node)) is not None and made != 1:
            least, most = (None if bound is None else bound * made for bound in bounds)
            node.target, node.args, node.kwargs = (
                _ATEN.clamp.default,
                (node.args[0], least, most),
                {},
            )
    module.graph.lint()
    drop_unused(module)
    module.recompile()


def _scale_layer(module: fx.GraphModule, node: fx.Node, made: float, taken: float) -> None:
    for place, factor in _factors(node, made, taken).items():
        _replace_constant(module, node, place, _value(module, node.args[place]) * factor)


def _named(module: fx.GraphModule, name: str) -> Tensor:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value.detach()


def _value(module: fx.GraphModule, node: Any) -> Tensor:
    """Return a constant in float64."""
    return _named(module, node.target).double()


def _replace_constant(module: fx.GraphModule, node: fx.Node, place: int, value: Tensor) -> None:
    """Give argument ``place`` of ``node`` a new constant; another layer may share the old one."""
    name = f"folded_{node.name}_{place}"
    old = node.args[place]
    dtype = _named(module, str(old.target)).dtype if isinstance(old, fx.Node) else torch.float32
    module.register_buffer(name, value.to(dtype))
    with module.graph.inserting_before(node):
        fresh = module.graph.get_attr(name)
    node.update_arg(place, fresh)


def _affine(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """Return k and b, each (C,), of a normalisation with constant statistics, as k x + b."""
    weight, bias, mean, variance = (_value(module, a) for a in norm.args[1:5])
    epsilon = norm.args[6]
    assert isinstance(epsilon, float)
    k = weight / torch.sqrt(variance + epsilon)
    return k, bias - mean * k


def _fold_batchnorms(module: fx.GraphModule) -> int:
    """Fold each normalisation directly after a convolution into it; return their number."""
    count = 0
    for node in list(module.graph.nodes):
        if node.target != NORM or not has_own_weights(node):
            continue
        before = node.args[0]
        if (
            before.target not in CONVOLUTIONS
            or not has_own_weights(before)
            or set(before.users) != {node}
        ):
            continue
        k, b = _affine(module, node)
        weight = _value(module, before.args[1])
        bias = (
            _value(module, before.args[2])
            if len(before.args) > 2 and before.args[2] is not None
            else torch.zeros_like(b)
        )
        if len(before.args) == 2:
            before.args = (*before.args, None)
        _replace_constant(module, before, 1, weight * k.view(-1, *[1] * (weight.dim() - 1)))
        _replace_constant(module, before, 2, bias * k + b)
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(before)
                module.graph.erase_node(user)
        module.graph.erase_node(node)
        count += 1
    return count
