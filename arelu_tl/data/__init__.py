"""Layer 2: from a folder of pictures to batches that are a function of (seed, epoch, sample). Every name loads on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arelu_tl.data.cache import PictureCache as PictureCache
    from arelu_tl.data.decode import open_picture as open_picture
    from arelu_tl.data.folder import PictureFolder as PictureFolder
    from arelu_tl.data.folder import Rejected as Rejected
    from arelu_tl.data.folder import Sample as Sample
    from arelu_tl.data.folder import list_evaluation as list_evaluation
    from arelu_tl.data.folder import scan_folder as scan_folder
    from arelu_tl.data.loader import Batches as Batches
    from arelu_tl.data.loader import batch_digest as batch_digest
    from arelu_tl.data.loader import eval_transform as eval_transform
    from arelu_tl.data.loader import make_eval_batches as make_eval_batches
    from arelu_tl.data.loader import make_train_batches as make_train_batches
    from arelu_tl.data.loader import train_transform as train_transform

# A report opens pictures and draws no batch: only the loader needs torch.
_HOMES = {
    "Batches": "loader",
    "PictureCache": "cache",
    "PictureFolder": "folder",
    "Rejected": "folder",
    "Sample": "folder",
    "batch_digest": "loader",
    "eval_transform": "loader",
    "list_evaluation": "folder",
    "make_eval_batches": "loader",
    "make_train_batches": "loader",
    "open_picture": "decode",
    "scan_folder": "folder",
    "train_transform": "loader",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
