"""Conditions that each operator sets on the scales of its input and output tensors.

Every tensor t of a graph may be stored as s t, with a positive scale s of its own, if the operators
that produce and use it permit that:

* a convolution or linear layer permits any scales: its weight is multiplied by s_out / s_in, its
  bias by s_out;
* so does a normalisation with constant statistics;
* additions and concatenations need the same s for all inputs and the output; pooling, padding with
  zeros, views, means and leaky ReLUs keep s;
* a cap at c becomes a cap at s c; the scale of a product of two tensors is the product of theirs;
* all other operators (sigmoids, softmax, other activations), the graph's input and its output need
  s = 1.

The class ``Numbers`` calls a tensor's scale its number.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Container, Set
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten

LINEAR = {
    _ATEN.conv2d.default,
    _ATEN.conv1d.default,
    _ATEN.conv3d.default,
    _ATEN.convolution.default,
    _ATEN.linear.default,
}
CONVOLUTIONS = LINEAR - {_ATEN.linear.default}
NORM = _ATEN._native_batch_norm_legit_no_training.default

# One input tensor, one output tensor, and f(s x) = s f(x) for every s > 0.
HOMOGENEOUS = {
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
NO_TENSORS = {_ATEN.sym_size.int, _ATEN._assert_tensor_metadata.default}


class Numbers:
    """The conditions on the tensors' scales, as a union-find over their logarithms.

    Each edge holds the difference of two logarithms.
    """

    def __init__(self) -> None:
        self._parent: dict[Any, tuple[Any, float]] = {}
        self._unit: dict[Any, float] = {}

    def find(self, key: Any) -> tuple[Any, float]:
        """Return (representative, log of key's number over the representative's)."""
        parent, offset = self._parent.setdefault(key, (key, 0.0))
        if parent is key:
            return key, 0.0
        root, further = self.find(parent)
        self._parent[key] = root, offset + further
        return root, offset + further

    def bind(self, a: Any, b: Any, log_ratio: float = 0.0) -> bool:
        """Require number(a) = number(b) * exp(log_ratio).

        Returns:
            False where that contradicts an earlier condition; nothing changes then.
        """
        (root_a, of_a), (root_b, of_b) = self.find(a), self.find(b)
        if root_a is root_b:
            return abs(of_a - of_b - log_ratio) < 1e-9
        # ONE stays a representative, so that everything bound to it is relative to it.
        if root_a is ONE:
            root_a, root_b, of_a, of_b, log_ratio = root_b, root_a, of_b, of_a, -log_ratio
        self._parent[root_a] = root_b, of_b + log_ratio - of_a
        return True

    def centre(self) -> None:
        """Choose the free unit of each group not bound to 1 so that its numbers are near 1.

        Otherwise gains multiplied over a hundred layers would exceed the range of float16.
        """
        members: dict[Any, list[float]] = defaultdict(list)
        for key in list(self._parent):
            root, offset = self.find(key)
            members[root].append(offset)
        self._unit = {
            root: sum(logs) / len(logs) for root, logs in members.items() if root is not ONE
        }

    def number(self, key: Any) -> float:
        """Return the scale of tensor ``key``."""
        root, offset = self.find(key)
        return math.exp(offset - self._unit.get(root, 0.0))


class One:
    """The key for scale 1: the scale of tensors that must not change."""


ONE = One()


def tensors(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose tensors ``node`` takes, without sizes and weights."""
    return [n for n in node.all_input_nodes if n.op != "get_attr" and n.target not in NO_TENSORS]


def bind(numbers: Numbers, node: fx.Node) -> None:
    """Enter the conditions that ``node`` sets on its input and output tensors."""
    if node.op == "get_attr" or node.target in NO_TENSORS:
        return
    inputs = tensors(node)
    if node.op == "call_function" and has_own_weights(node):
        return
    if not inputs:  # computed from constants alone, so it cannot be scaled
        numbers.bind(node, ONE)
    elif node.op == "call_function" and hands_on(node):
        for each in inputs:
            numbers.bind(node, each)
    elif node.target == _ATEN.mul.Tensor and len(inputs) == 2:
        _bind_product(numbers, node, *inputs)
    elif _by_constant(node):
        numbers.bind(node, inputs[0])
    else:
        for each in [*inputs, node]:
            numbers.bind(each, ONE)


def _by_constant(node: fx.Node) -> bool:
    """Return whether ``node`` multiplies or divides a tensor by a number or a constant tensor.

    x * x also has a single input tensor, but twice, so it does not count.
    """
    if node.target not in (_ATEN.mul.Tensor, _ATEN.div.Tensor):
        return False
    inputs = tensors(node)
    return len(inputs) == 1 and node.args[0] is inputs[0] and node.args[1] is not inputs[0]


def _bind_product(numbers: Numbers, node: fx.Node, a: fx.Node, b: fx.Node) -> None:
    for known, other in ((b, a), (a, b)):
        root, offset = numbers.find(known)
        if root is ONE:
            numbers.bind(node, other, offset)
            return
    for each in (a, b, node):
        numbers.bind(each, ONE)


def has_own_weights(node: fx.Node) -> bool:
    """Return whether ``node`` is a layer whose weights are constants, which can be rescaled."""
    if node.target in LINEAR:
        return is_constant(node.args[1]) and (
            len(node.args) < 3 or node.args[2] is None or is_constant(node.args[2])
        )
    return node.target == NORM and all(is_constant(a) for a in node.args[1:5])


def is_constant(argument: object) -> bool:
    """Return whether ``argument`` is a constant of the graph."""
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def hands_on(node: fx.Node) -> bool:
    """Return whether the inputs and the output of ``node`` must have the same number."""
    if node.target in HOMOGENEOUS:
        return True
    if node.target in (_ATEN.add.Tensor, _ATEN.sub.Tensor):
        # With a number or a constant tensor added, the sum is no longer homogeneous.
        return len(node.args) == 2 and all(
            isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args
        )
    if node.target == _ATEN.cat.default:
        return all(n.op != "get_attr" for n in node.all_input_nodes)
    if node.target in (_ATEN.pad.default, _ATEN.constant_pad_nd.default):
        given: list[Any] = [*node.args[2:], None, None]
        mode, value = (
            ("constant", given[0])
            if node.target == _ATEN.constant_pad_nd.default
            else (given[0] or "constant", given[1])
        )
        return mode != "constant" or value in (None, 0)
    return cap(node) is not None


def cap(node: fx.Node) -> tuple[float | None, float | None] | None:
    """Return (least, most) of a clamp with constant bounds; None for other nodes."""
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


def obstacle(product: fx.Node, products: Container[fx.Node], folded: Set[fx.Node]) -> str:
    """Say why a site's product cannot be folded.

    The reason is the nearest operator that fixes the scale of its output or its input.

    Args:
        product: the site's.
        products: of all sites.
        folded: those already folded.
    """
    seen: set[fx.Node] = set()
    queue = [product, *tensors(product)]
    while queue:
        tensor = queue.pop(0)
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor.op == "placeholder":
            return "the pictures themselves would have to be scaled"
        for node in (tensor, *tensor.users):
            if node in products:
                if node in folded and node is not product:
                    return (
                        "its scale is tied to that of another activation, "
                        f"whose gain is folded ({_where(node)})"
                    )
            elif node.op == "output":
                return "the model's output would be scaled"
            elif node.op == "call_function" and not has_own_weights(node):
                if not hands_on(node) and not _by_constant(node):
                    return f"{_name(node)} in {_where(node)} needs it as it is"
                queue += [node, *tensors(node)]
    return "its output meets tensors whose scale is fixed by another path"


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _where(node: fx.Node) -> str:
    """Return the name of the module that ``node`` comes from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack and stack[-1][0] else "the model itself"
