"""torch.export's file of a frozen model, for whoever has torch and nothing of ours.

Loading such a file can run code that is in it. So files that we are handed are never loaded, here or anywhere in this package;
what is loaded below are the bytes that were written a moment before.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from arelu_tl.errors import ArtefactError


def to_pt2(module: fx.GraphModule, example: Tensor, extra: Mapping[str, str]) -> bytes:
    """The content of a .pt2 file of ``module``, with any number of pictures as its first dimension.

    Args:
        module: captured, in inference.
        example: pictures (2, C, H, W).
        extra: texts that travel in the file, by name (``torch.export.load(..., extra_files={name: ""})`` gives them).

    Raises:
        ArtefactError: torch cannot write it.
    """
    try:
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
        _forget_where(program.graph_module)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=dict(extra))
    except Exception as error:
        # What torch cannot export or serialise surfaces as an error of its own class.
        raise ArtefactError(f"this model has no form in torch.export: {' '.join(str(error).split())[:300]}") from error
    return buffer.getvalue()


def _forget_where(module: fx.GraphModule) -> None:
    """Drop the traces of the sources, which hold paths of this machine, from every node."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
                node.meta.pop("from_node", None)


def read_pt2(content: bytes, names: Iterable[str]) -> tuple[fx.GraphModule, dict[str, str]]:
    """(the module in the file just made, its texts by name). ``content`` must be our own, never a user's."""
    texts = dict.fromkeys(names, "")
    module: fx.GraphModule = torch.export.load(io.BytesIO(content), extra_files=texts).module()
    return module, texts
