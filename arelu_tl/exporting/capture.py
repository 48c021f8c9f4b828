"""Capture a frozen model as a graph of ATen operators, and find its frozen sites' products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from arelu_tl.errors import ArtefactError
from arelu_tl.models.freeze import FrozenAReLU, FrozenSite

_ATEN = torch.ops.aten
_FROZEN = f"{FrozenAReLU.__module__}.{FrozenAReLU.__qualname__}"


def capture(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """Capture ``model`` as a graph that takes any number of pictures.

    Args:
        model: frozen, in eval mode.
        example: pictures (B, C, H, W), B at least 2: torch.export would make a batch size of 1
            a constant.

    Raises:
        ArtefactError: torch cannot capture it.
    """
    try:
        program = torch.export.export(
            model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        ).run_decompositions({})
    except Exception as error:
        # Each construct that torch.export does not support raises its own class of error.
        raise ArtefactError(
            f"torch.export cannot capture this model: {' '.join(str(error).split())[:300]}"
        ) from error
    module: fx.GraphModule = program.module()
    for node in list(module.graph.nodes):
        # Checks of the input's shape; the exported file's metadata states the shape.
        if node.op == "call_module":
            module.graph.erase_node(node)
    drop_unused(module)
    module.recompile()
    return module


def drop_unused(module: fx.GraphModule) -> None:
    """Delete the nodes, and the weights, that the graph does not use."""
    module.graph.eliminate_dead_code()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


@dataclass(frozen=True)
class SiteProducts:
    """The products by which frozen sites multiply by their gains.

    Attributes:
        scalar: {product: (site's name, gain)}.
        by_channel: {product: (site's name, gain of each channel)}.
    """

    scalar: dict[fx.Node, tuple[str, float]]
    by_channel: dict[fx.Node, tuple[str, list[float]]]


def site_of(node: fx.Node) -> str | None:
    """Return the name of the frozen site that ``node`` comes from; None for other nodes."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack or stack[-1][1] not in (_FROZEN, FrozenAReLU):
        return None
    # torch records a module's second call under NAME@1.
    return str(stack[-1][0]).partition("@")[0]


def site_products(module: fx.GraphModule, sites: Sequence[FrozenSite]) -> SiteProducts:
    """Find the products of ``sites`` in the graph of their model."""
    gains = {site.name: site.gains for site in sites}
    products = SiteProducts({}, {})
    for node in module.graph.nodes:
        if node.target != _ATEN.mul.Tensor or (name := site_of(node)) is None:
            continue
        gain = node.args[1]
        if isinstance(gain, float):
            products.scalar[node] = name, gain
        elif node.args[0].target in (_ATEN.prelu.default, _ATEN.where.self):
            products.by_channel[node] = name, gains[name]
    return products
