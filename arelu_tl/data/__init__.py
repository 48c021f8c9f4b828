"""Layer 2: from a folder of pictures to batches that are a function of (seed, epoch, sample). Every name loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arelu_tl.lazy import lazy_names

if TYPE_CHECKING:
    from arelu_tl.data.cache import open_cache as open_cache
    from arelu_tl.data.decode import open_picture as open_picture
    from arelu_tl.data.folder import PictureFolder as PictureFolder
    from arelu_tl.data.folder import list_evaluation as list_evaluation
    from arelu_tl.data.folder import scan_folder as scan_folder
    from arelu_tl.data.gate import Rejected as Rejected
    from arelu_tl.data.loader import Batches as Batches
    from arelu_tl.data.loader import View as View
    from arelu_tl.data.loader import batch_digest as batch_digest
    from arelu_tl.data.loader import eval_transform as eval_transform
    from arelu_tl.data.loader import eval_view as eval_view
    from arelu_tl.data.loader import make_eval_batches as make_eval_batches
    from arelu_tl.data.loader import make_train_batches as make_train_batches
    from arelu_tl.data.loader import train_view as train_view
    from arelu_tl.data.split import Sample as Sample
    from arelu_tl.data.store import PictureStore as PictureStore

# A report opens pictures and draws no batch: only the loader needs torch.
_HOMES = {
    "Batches": "arelu_tl.data.loader",
    "PictureFolder": "arelu_tl.data.folder",
    "PictureStore": "arelu_tl.data.store",
    "Rejected": "arelu_tl.data.gate",
    "Sample": "arelu_tl.data.split",
    "View": "arelu_tl.data.loader",
    "batch_digest": "arelu_tl.data.loader",
    "eval_transform": "arelu_tl.data.loader",
    "eval_view": "arelu_tl.data.loader",
    "list_evaluation": "arelu_tl.data.folder",
    "make_eval_batches": "arelu_tl.data.loader",
    "make_train_batches": "arelu_tl.data.loader",
    "open_cache": "arelu_tl.data.cache",
    "open_picture": "arelu_tl.data.decode",
    "scan_folder": "arelu_tl.data.folder",
    "train_view": "arelu_tl.data.loader",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
