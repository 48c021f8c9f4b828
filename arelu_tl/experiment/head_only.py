"""Where a run trains nothing but its head on pictures that never vary, it need see each of them only once."""

from __future__ import annotations

from torch import device as Device  # noqa: N812 (a class)
from torch import nn

from arelu_tl.backbone.loading import Backbone, classifier_names
from arelu_tl.data.folder import PictureFolder
from arelu_tl.data.loader import Batches, eval_view, make_eval_batches
from arelu_tl.experiment.observer import Observer
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.features import FeatureBatches, head_on_features
from arelu_tl.training.fit import FitSettings

# Beyond this the features of a large set would crowd out what they are to speed up.
_MOST_BYTES = 2 * 2**30
_TRIED = 8


def on_features(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    batches: tuple[Batches, Batches, Batches],
    device: Device,
    settings: FitSettings,
    observer: Observer,
) -> tuple[nn.Module, Batches | FeatureBatches, Batches | FeatureBatches]:
    """(model, training batches, validation batches) to train: the head on features where that is the same up to rounding.

    Args:
        batches: for training, for validation, and for training without workers.
    """
    train, val, one_by_one = batches
    whole = backbone.model, train, val
    if config.freeze != "backbone" or not config.no_aug:
        return whole
    pictures, _ = next(one_by_one.epoch())
    head = head_on_features(backbone.model, classifier_names(backbone.model), pictures[:_TRIED], device, drop=config.drop)
    if head is None:
        return whole
    count = sum(len(folder.splits[split]) for split in ("train", "val"))
    needed = count * head.features(pictures[:1], device, settings).numel() * 4
    if needed > _MOST_BYTES:
        observer.note(f"{config.arm}: the features of {count} pictures are not kept, they would take {needed / 2**30:.1f} GiB")
        return whole
    observer.note(f"{config.arm}: only the head learns, on pictures that never vary: they pass the frozen backbone once")
    in_order = make_eval_batches(
        folder.root,
        folder.splits["train"],
        eval_view(backbone.data_config),
        batch_size=config.pictures_in_a_batch,
        workers=train.workers,
        pin=device.type == "cuda",
        cache=folder.cache,
    )
    return (
        head,
        FeatureBatches(head, one_by_one, in_order, device, settings),
        FeatureBatches(head, val, val, device, settings),
    )
