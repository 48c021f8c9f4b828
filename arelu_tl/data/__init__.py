"""Layer 2: from a folder of pictures to batches that are a function of (seed, epoch, sample)."""

from arelu_tl.data.decode import open_picture
from arelu_tl.data.folder import PictureFolder, Rejected, Sample, scan_evaluation, scan_folder
from arelu_tl.data.loader import Batches, batch_digest, eval_transform, make_eval_batches, make_train_batches, train_transform

__all__ = [
    "Batches",
    "PictureFolder",
    "Rejected",
    "Sample",
    "batch_digest",
    "eval_transform",
    "make_eval_batches",
    "make_train_batches",
    "open_picture",
    "scan_evaluation",
    "scan_folder",
    "train_transform",
]
