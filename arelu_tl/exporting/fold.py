"""Fold the constants of frozen activations into the weights around them, exactly.

Every tensor t of the graph may be carried as s t with a positive number s of its own, if whoever makes and takes it agrees:

* a convolution or linear layer makes any s from any other: its weight is multiplied by s_out / s_in, its bias by s_out;
* a normalisation with constant statistics likewise; right behind a convolution it becomes part of it first;
* additions and concatenations need the same s on all sides; pooling, padding with zeros, views, means and leaky ReLUs hand s on;
* a cap at c becomes a cap at s c; a product of two tensors has the product of their numbers;
* everything else (sigmoids, softmax, other activations), the graph's input and its output need s = 1.

A frozen site multiplies by its gain g. That product can be left out where s_out = s_in / g holds. So all other conditions are
written down first, which never contradict each other, and then that of each site in turn; where one would contradict what already
holds, its product stays, and the report says which tensor stood in the way. The rest is arithmetic on weights, in float64.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten

_LINEAR = {_ATEN.conv2d.default, _ATEN.conv1d.default, _ATEN.conv3d.default, _ATEN.convolution.default, _ATEN.linear.default}
_CONVOLUTIONS = _LINEAR - {_ATEN.linear.default}
_NORM = _ATEN._native_batch_norm_legit_no_training.default
_BATCH_NORM = _ATEN.batch_norm.default

# One tensor in, one out, and f(s x) = s f(x) for every s > 0.
_HOMOGENEOUS = {
    _ATEN.leaky_relu.default,
    _ATEN.relu.default,
    _ATEN.prelu.default,
    _ATEN.max_pool2d.default,
    _ATEN.avg_pool2d.default,
    _ATEN.adaptive_avg_pool2d.default,
    _ATEN.adaptive_max_pool2d.default,
    _ATEN.mean.dim,
    _ATEN.mean.default,
    _ATEN.sum.dim_IntList,
    _ATEN.amax.default,
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN._unsafe_view.default,
    _ATEN.flatten.using_ints,
    _ATEN.permute.default,
    _ATEN.transpose.int,
    _ATEN.squeeze.dims,
    _ATEN.squeeze.dim,
    _ATEN.unsqueeze.default,
    _ATEN.expand.default,
    _ATEN.slice.Tensor,
    _ATEN.select.int,
    _ATEN.clone.default,
    _ATEN.alias.default,
    _ATEN.detach.default,
    _ATEN.contiguous.default,
    _ATEN.dropout.default,
    _ATEN.split.Tensor,
    _ATEN.split_with_sizes.default,
    _ATEN.chunk.default,
    _ATEN.upsample_nearest2d.vec,
    _ATEN.upsample_bilinear2d.vec,
    _ATEN.pixel_shuffle.default,
    operator.getitem,
}
_NO_TENSORS = {_ATEN.sym_size.int, _ATEN._assert_tensor_metadata.default}


@dataclass
class FoldReport:
    """Attributes:
    folded: names of sites whose gain is in the weights now.
    kept: {site: why its product stays}.
    batchnorms: normalisations that became part of the convolution before them.
    """

    folded: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    batchnorms: int = 0


class _Numbers:
    """Which tensors' numbers are bound to each other, as sums of logarithms: a union-find whose edges carry differences."""

    def __init__(self) -> None:
        self._parent: dict[Any, tuple[Any, float]] = {}
        self.reason: dict[Any, str] = {}

    def find(self, key: Any) -> tuple[Any, float]:
        """(representative, log of key's number over the representative's)."""
        parent, offset = self._parent.setdefault(key, (key, 0.0))
        if parent is key:
            return key, 0.0
        root, further = self.find(parent)
        self._parent[key] = root, offset + further
        return root, offset + further

    def bind(self, a: Any, b: Any, log_ratio: float = 0.0) -> bool:
        """Ask for number(a) = number(b) * exp(log_ratio); False, and nothing changes, where that contradicts what holds."""
        (root_a, of_a), (root_b, of_b) = self.find(a), self.find(b)
        if root_a is root_b:
            return abs(of_a - of_b - log_ratio) < 1e-9
        # The plain 1 stays a representative, so that everything bound to it is measured by it.
        if root_a is ONE:
            root_a, root_b, of_a, of_b, log_ratio = root_b, root_a, of_b, of_a, -log_ratio
        self._parent[root_a] = root_b, of_b + log_ratio - of_a
        return True

    def number(self, key: Any) -> float:
        return math.exp(self.find(key)[1])


class _One:
    """The number of tensors that must stay as they are."""


ONE = _One()


def fold(module: fx.GraphModule, gains: dict[fx.Node, tuple[str, float]]) -> FoldReport:
    """Fold the products of ``module``, a graph of ATen operators in inference, into its weights, in place.

    Args:
        gains: for each product that comes from a frozen site, the site's name and the factor.
    """
    _leave_out_copies(module)
    report = FoldReport(batchnorms=_fold_batchnorms(module))
    numbers = _Numbers()
    for node in module.graph.nodes:
        if node not in gains:
            _bind(numbers, node)
    for node, (name, gain) in gains.items():
        if numbers.bind(node, node.args[0], -math.log(gain)):
            report.folded.append(name)
        else:
            report.kept[name] = "its output meets tensors whose scale is fixed by another path"
    _rewrite(module, numbers, gains)
    return report


def _leave_out_copies(module: fx.GraphModule) -> None:
    """What was written over another tensor is, in a graph without overwriting, that which was written."""
    for node in list(module.graph.nodes):
        if node.target == _ATEN.copy.default and node.meta["val"].shape == node.args[1].meta["val"].shape:
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The nodes that ``node`` takes tensors from (not sizes, and not weights)."""
    return [n for n in node.all_input_nodes if n.op != "get_attr" and n.target not in _NO_TENSORS]


def _bind(numbers: _Numbers, node: fx.Node) -> None:
    """Write down what ``node`` asks of the tensors that it takes and makes."""
    if node.op == "get_attr" or node.target in _NO_TENSORS:
        return
    inputs = _tensors(node)
    if node.op == "call_function" and _free(node):
        return
    if node.op == "call_function" and _hands_on(node):
        for each in inputs:
            numbers.bind(node, each)
    elif node.target == _ATEN.mul.Tensor and len(inputs) == 2:
        _bind_product(numbers, node, *inputs)
    elif node.target in (_ATEN.mul.Tensor, _ATEN.div.Tensor) and len(inputs) == 1 and node.args[0] is inputs[0]:
        numbers.bind(node, inputs[0])  # by a number or a constant tensor
    else:
        for each in [*inputs, node]:
            numbers.bind(each, ONE)


def _bind_product(numbers: _Numbers, node: fx.Node, a: fx.Node, b: fx.Node) -> None:
    for known, other in ((b, a), (a, b)):
        root, offset = numbers.find(known)
        if root is ONE:
            numbers.bind(node, other, offset)
            return
    for each in (a, b, node):
        numbers.bind(each, ONE)


def _free(node: fx.Node) -> bool:
    """Whether a layer with weights of its own stands between input and output."""
    if node.target in _LINEAR:
        return _constant(node.args[1]) and (len(node.args) < 3 or node.args[2] is None or _constant(node.args[2]))
    return node.target == _NORM and all(_constant(a) for a in node.args[1:5])


def _constant(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _hands_on(node: fx.Node) -> bool:
    """Whether the number of what ``node`` takes is that of what it makes."""
    if node.target in _HOMOGENEOUS:
        return True
    if node.target in (_ATEN.add.Tensor, _ATEN.sub.Tensor):
        # With a number or a constant tensor added, the sum is no longer homogeneous.
        return len(node.args) == 2 and all(isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args)
    if node.target == _ATEN.cat.default:
        return all(n.op != "get_attr" for n in node.all_input_nodes)
    if node.target in (_ATEN.pad.default, _ATEN.constant_pad_nd.default):
        given: list[Any] = [*node.args[2:], None, None]
        mode, value = (
            ("constant", given[0]) if node.target == _ATEN.constant_pad_nd.default else (given[0] or "constant", given[1])
        )
        return mode != "constant" or value in (None, 0)
    return _cap(node) is not None


def _cap(node: fx.Node) -> tuple[float | None, float | None] | None:
    """(least, most) of a clamp at numbers; None for anything else."""
    if node.target == _ATEN.clamp.default:
        least, most = (tuple(node.args[1:]) + (None, None))[:2]
        least, most = node.kwargs.get("min", least), node.kwargs.get("max", most)
    elif node.target == _ATEN.hardtanh.default:
        least, most = (tuple(node.args[1:]) + (-1.0, 1.0)[len(node.args) - 1 :])[:2]
    elif node.target == _ATEN.relu6.default:
        least, most = 0.0, 6.0
    else:
        return None
    return least, most  # type: ignore[return-value]


def _rewrite(module: fx.GraphModule, numbers: _Numbers, gains: dict[fx.Node, tuple[str, float]]) -> None:
    """Give every layer the weights, and every cap the bound, that fit the numbers of the tensors around it."""
    # Told before anything moves: once a product is gone, a layer's input is another node.
    told = {
        node: (numbers.number(node), numbers.number(node.all_input_nodes[0] if node.all_input_nodes else node))
        for node in module.graph.nodes
    }
    for node in list(module.graph.nodes):
        made, taken = told.get(node, (1.0, 1.0))
        if node in gains:
            left = gains[node][1] * made / taken
            if abs(left - 1) < 1e-9:
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
            else:
                node.args = (node.args[0], left)
        elif node.op == "call_function" and _free(node):
            if made != 1 or taken != 1:
                _scale_layer(module, node, made, taken)
        elif (bounds := _cap(node)) is not None and made != 1:
            least, most = (None if bound is None else bound * made for bound in bounds)
            node.target, node.args, node.kwargs = _ATEN.clamp.default, (node.args[0], least, most), {}
    module.graph.lint()
    module.recompile()


def _scale_layer(module: fx.GraphModule, node: fx.Node, made: float, taken: float) -> None:
    if node.target in _LINEAR:
        _replace_constant(module, node, 1, _value(module, node.args[1]) * (made / taken))
        if len(node.args) > 2 and node.args[2] is not None:
            _replace_constant(module, node, 2, _value(module, node.args[2]) * made)
        return
    # A normalisation by constants is k x + b: written with mean 0 and variance 1.
    k, b = _affine(module, node)
    for place, value in ((1, k * made / taken), (2, b * made), (3, torch.zeros_like(k)), (4, torch.ones_like(k))):
        _replace_constant(module, node, place, value)
    node.args = (*node.args[:6], 0.0, *node.args[7:])


def _value(module: fx.GraphModule, node: Any) -> Tensor:
    """A constant in float64."""
    value: Any = module
    for part in node.target.split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value.detach().double()


def _replace_constant(module: fx.GraphModule, node: fx.Node, place: int, value: Tensor) -> None:
    """Give argument ``place`` of ``node`` a constant of its own: another layer may share the old one."""
    name = f"folded_{node.name}_{place}"
    old = node.args[place]
    dtype = torch.float32 if not isinstance(old, fx.Node) else _dtype(module, old)
    module.register_buffer(name, value.to(dtype))
    with module.graph.inserting_before(node):
        fresh = module.graph.get_attr(name)
    node.update_arg(place, fresh)


def _dtype(module: fx.GraphModule, node: fx.Node) -> torch.dtype:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.dtype  # type: ignore[no-any-return]


def _affine(module: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """k and b, (C,), of a normalisation by constants as k x + b."""
    weight, bias, mean, variance = (_value(module, a) for a in norm.args[1:5])
    epsilon = norm.args[6]
    assert isinstance(epsilon, float)
    k = weight / torch.sqrt(variance + epsilon)
    return k, bias - mean * k


def _fold_batchnorms(module: fx.GraphModule) -> int:
    """Make each normalisation right behind a convolution part of it; how many there were."""
    count = 0
    for node in list(module.graph.nodes):
        if node.target != _NORM or not _free(node):
            continue
        before = node.args[0]
        if before.target not in _CONVOLUTIONS or not _free(before) or set(before.users) != {node}:
            continue
        k, b = _affine(module, node)
        weight = _value(module, before.args[1])
        bias = _value(module, before.args[2]) if len(before.args) > 2 and before.args[2] is not None else torch.zeros_like(b)
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
