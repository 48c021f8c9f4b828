"""Layer 2: from a folder of pictures to batches that are a function of (seed, epoch, sample). Every name loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arelu_tl.lazy import lazy_names

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
    "Batches": "arelu_tl.data.loader",
    "PictureCache": "arelu_tl.data.cache",
    "PictureFolder": "arelu_tl.data.folder",
    "Rejected": "arelu_tl.data.folder",
    "Sample": "arelu_tl.data.folder",
    "batch_digest": "arelu_tl.data.loader",
    "eval_transform": "arelu_tl.data.loader",
    "list_evaluation": "arelu_tl.data.folder",
    "make_eval_batches": "arelu_tl.data.loader",
    "make_train_batches": "arelu_tl.data.loader",
    "open_picture": "arelu_tl.data.decode",
    "scan_folder": "arelu_tl.data.folder",
    "train_transform": "arelu_tl.data.loader",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
