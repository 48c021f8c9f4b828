"""The learning rate that ``head_lr: auto`` stands for, chosen anew for each arm, rate and seed."""

from __future__ import annotations

import copy
import itertools
import math

import torch

from arelu_tl.backbone.loading import Backbone, classifier_names
from arelu_tl.data.folder import PictureFolder
from arelu_tl.experiment.build import fit_settings, make_run_batches, steps_per_epoch
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.features import HeadOnFeatures
from arelu_tl.training.head_rate import MOST_STEPS, HeadRate, HeadTraining, choose_head_rate

# A view costs a forward pass, a third of a training step: 0.06 passes over the pictures for each
# epoch take 2% of a run's time, and the trainings of the head less than 1% of most runs.
_PASSES_AN_EPOCH = 0.06
# Fewer views tell rates apart by luck; more tell no more.
_LEAST_VIEWS, _MOST_VIEWS = 256, 2048
_USUAL = 1e-3


def find_head_rate(
    config: FinetuneConfig, folder: PictureFolder, backbone: Backbone, device: torch.device
) -> HeadRate | None:
    """Choose the head's rate on the first augmented training batches, in the mode of training.

    Validation pictures are not looked at. The model is left as it was.

    Returns:
        None if nothing is to be chosen: the rate is given, or the backbone is frozen, so that
        ``lr`` is the head's already. For a model without a single classifier nothing is tried: the
        larger of ``lr`` and 1e-3.
    """
    if config.head_lr != "auto" or config.freeze == "backbone":
        return None
    names = classifier_names(backbone.model)
    if len(names) != 1:
        return HeadRate(max(config.lr, _USUAL), [], 0, 0, 0)
    train, _ = make_run_batches(config.model_copy(update={"workers": 0}), folder, backbone, device)
    head, settings = HeadOnFeatures(backbone.model, names[0]), fit_settings(config, folder, device)
    count = len(folder.splits["train"])
    views = min(max(_PASSES_AN_EPOCH * config.epochs * count, _LEAST_VIEWS), _MOST_VIEWS)
    number = math.ceil(views / min(config.pictures_in_a_batch, count))
    passes = (zip(train.indices(n), train.epoch(n), strict=True) for n in itertools.count())
    features, labels, shown = [], [], []
    for indices, (pictures, classes) in itertools.islice(
        itertools.chain.from_iterable(passes), number
    ):
        features.append(head.features(pictures, device, settings, as_in_training=True))
        labels.append(classes)
        shown += indices
    steps = steps_per_epoch(len(train), config.grad_accum_steps) * config.epochs
    training = HeadTraining(
        copy.deepcopy(head.classifier).cpu(),
        config.optimizer(),
        config.pictures_in_a_batch,
        min(steps, MOST_STEPS),
    )
    return choose_head_rate(training, torch.cat(features), torch.cat(labels), shown)
