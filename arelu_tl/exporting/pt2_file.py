"""Write a frozen model as a torch.export file, for users who have torch but not this package.

Loading such a file can run code from the file. So this package never loads a file that a user
gives; it only loads the bytes that it has just written itself.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from arelu_tl.errors import ArtefactError


def to_pt2(module: fx.GraphModule, example: Tensor, extra: Mapping[str, str]) -> bytes:
    """Make the content of a .pt2 file of ``module``, with a variable batch size.

    Args:
        module: captured, in inference.
        example: pictures (2, C, H, W).
        extra: {name: text} to store in the file; ``torch.export.load(..., extra_files={name: ""})``
            reads them.

    Raises:
        ArtefactError: torch cannot write it.
    """
    try:
        program = torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        )
        _forget_where(program.graph_module)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=dict(extra))
    except Exception as error:
        # Each construct that torch cannot export or serialise raises its own class of error.
        raise ArtefactError(
            f"this model has no form in torch.export: {' '.join(str(error).split())[:300]}"
        ) from error
    return buffer.getvalue()


def _forget_where(module: fx.GraphModule) -> None:
    """Remove the source traces, which hold paths of this machine, from every node."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
                node.meta.pop("from_node", None)


def read_pt2(content: bytes, names: Iterable[str]) -> tuple[fx.GraphModule, dict[str, str]]:
    """Return (the module, its texts by name) of a file that ``to_pt2`` has just made.

    ``content`` must never come from a user: loading it can run code from it.
    """
    texts = dict.fromkeys(names, "")
    module: fx.GraphModule = torch.export.load(io.BytesIO(content), extra_files=texts).module()
    return module, texts
