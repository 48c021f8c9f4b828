"""Train a head on cached features if the backbone is frozen and pictures are not augmented.

Each picture then passes the backbone only once.
"""

from __future__ import annotations

from dataclasses import replace

from arelu_tl.backbone.loading import Backbone, classifier_names
from arelu_tl.data.folder import PictureFolder
from arelu_tl.data.loader import Batches, eval_view, make_eval_batches
from arelu_tl.experiment.build import Training, make_run_batches
from arelu_tl.experiment.observer import Observer
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.features import FeatureBatches, head_on_features

# Larger features would take the memory that training itself needs.
_MOST_BYTES = 2 * 2**30
_TRIED = 8


def on_features(
    training: Training,
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    observer: Observer,
) -> Training:
    """Return ``training`` of only the head on features if the results are equal up to rounding.

    Otherwise return ``training`` unchanged.
    """
    train, val = training.train, training.val
    if (
        config.freeze != "backbone"
        or not config.no_aug
        or not (isinstance(train, Batches) and isinstance(val, Batches))
    ):
        return training
    device, settings = training.device, training.settings
    one_by_one, _ = make_run_batches(
        config.model_copy(update={"workers": 0}), folder, backbone, device
    )
    pictures, _ = next(one_by_one.epoch())
    head = head_on_features(
        backbone.model,
        classifier_names(backbone.model),
        pictures[:_TRIED],
        device,
        drop=config.drop,
    )
    if head is None:
        return training
    count = sum(len(folder.splits[split]) for split in ("train", "val"))
    needed = count * head.features(pictures[:1], device, settings).numel() * 4
    if needed > _MOST_BYTES:
        observer.note(
            f"{config.arm}: the features of {count} pictures are not kept, they would take "
            f"{needed / 2**30:.1f} GiB"
        )
        return training
    observer.note(
        f"{config.arm}: only the head learns, on pictures that never vary: they pass the frozen "
        "backbone once"
    )
    in_order = make_eval_batches(
        folder.root,
        folder.splits["train"],
        eval_view(backbone.data_config),
        batch_size=config.pictures_in_a_batch,
        workers=train.workers,
        pin=device.type == "cuda",
        cache=folder.cache,
    )
    return replace(
        training,
        model=head,
        train=FeatureBatches(head, one_by_one, in_order, device, settings),
        val=FeatureBatches(head, val, val, device, settings),
    )
