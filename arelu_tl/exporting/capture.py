"""A frozen model as a graph of ATen operators, and which of its products come from frozen sites."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from arelu_tl.errors import ArtefactError
from arelu_tl.exporting.freeze import FrozenAReLU

_ATEN = torch.ops.aten


def capture(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """``model`` as a graph that takes any number of pictures.

    Args:
        model: frozen, in eval mode.
        example: pictures (B, C, H, W), B of at least 2: one picture alone would be taken for a constant.

    Raises:
        ArtefactError: torch cannot capture it.
    """
    try:
        program = torch.export.export(
            model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        ).run_decompositions({})
    except Exception as error:
        # Whatever a model does that torch.export does not follow surfaces as an error of its own class.
        raise ArtefactError(f"torch.export cannot capture this model: {' '.join(str(error).split())[:300]}") from error
    module: fx.GraphModule = program.module()
    for node in list(module.graph.nodes):
        if node.op == "call_module":  # checks of the input's shape, which is stated with the exported file
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def site_products(module: fx.GraphModule) -> tuple[dict[fx.Node, tuple[str, float]], list[str]]:
    """({product: (site's name, gain)}, names of sites whose gain differs from channel to channel)."""
    kind = f"{FrozenAReLU.__module__}.{FrozenAReLU.__qualname__}"
    products: dict[fx.Node, tuple[str, float]] = {}
    by_channel = []
    for node in module.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if node.target != _ATEN.mul.Tensor or not stack or stack[-1][1] not in (kind, FrozenAReLU):
            continue
        name, gain = str(stack[-1][0]), node.args[1]
        if isinstance(gain, float):
            products[node] = name, gain
        elif node.args[0].target in (_ATEN.prelu.default, _ATEN.where.self):
            by_channel.append(name)
    return products, by_channel
