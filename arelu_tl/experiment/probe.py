"""A linear probe of an arm before fine-tuning: is there a need to fine-tune at all?

A classifier on the frozen backbone's features of pictures as validation sees them; it takes
seconds. Fine-tuning starts with it (Kumar et al., arXiv 2202.10054): a random classifier would
first have to be learnt, at rates that suit the backbone, and its gradients would spoil features.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.backbone.loading import Backbone, classifier_names
from arelu_tl.data.folder import PictureFolder
from arelu_tl.data.loader import Batches, eval_view, make_eval_batches
from arelu_tl.experiment.build import fit_settings, make_run_batches
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.training.features import HeadOnFeatures
from arelu_tl.training.head_rate import HeadTraining, choose_head_rate
from arelu_tl.training.step import Batch

# More training pictures would take a share of a run that a look beforehand is not worth, but with
# many classes each needs some.
_MOST_PICTURES, _FOR_EACH_CLASS = 2048, 16
_BATCH, _STEPS, _USUAL = 64, 400, 1e-3
# In place of the digest of a head that is drawn from the seed.
PROBED = "linear probe"


@dataclass(frozen=True)
class Probe:
    """How well a classifier on frozen features does on the validation pictures.

    Attributes:
        top1, loss: share of them that are classified correctly, and mean cross-entropy in nats;
            None until the run's evaluation before its first step, where it begins with the probe.
        lr: its learning rate, chosen by cross-validation on the training pictures.
        pictures: number of training pictures.
        steps: number of optimiser steps (AdamW).
    """

    top1: float | None
    loss: float | None
    lr: float
    pictures: int
    steps: int = _STEPS

    def to_json(self) -> dict[str, Any]:
        """Return it for summary.json."""
        return asdict(self)


@dataclass(frozen=True)
class ProbeHead:
    """A classifier trained on features of training pictures, which a run's own may start as.

    Attributes:
        name: name of the classifier in its model.
        classifier: the trained one, on the CPU.
        lr: its learning rate, chosen by cross-validation.
        pictures: number of training pictures.
    """

    name: str
    classifier: nn.Module
    lr: float
    pictures: int

    def install(self, model: nn.Module) -> None:
        """Give the classifier of ``model`` these weights."""
        model.get_submodule(self.name).load_state_dict(self.classifier.state_dict())


@dataclass(frozen=True)
class ProbeTraining:
    """Features of training pictures, and how a classifier is trained on them.

    Attributes:
        name: name of the classifier in its model.
        training: the training; its rate is ``lr``.
        x: features (V, ...), one row for each picture.
        y: classes (V,).
        pictures: each row's picture, by its index in the split.
        lr: the learning rate, chosen by cross-validation.
    """

    name: str
    training: HeadTraining
    x: Tensor
    y: Tensor
    pictures: list[int]
    lr: float

    def head(self, without: Collection[int] = ()) -> ProbeHead:
        """Train the classifier, on all pictures but those ``without``, by their indices."""
        rows = torch.tensor([picture not in without for picture in self.pictures])
        classifier = self.training.train(self.x[rows], self.y[rows], self.lr)
        return ProbeHead(self.name, classifier, self.lr, int(rows.sum()))


def prepare_probe(
    config: FinetuneConfig, folder: PictureFolder, backbone: Backbone, device: torch.device
) -> ProbeTraining | None:
    """Compute the features that ``backbone`` has of training pictures; it is left as it was.

    Returns:
        None where there is no such thing: the model has no single classifier, or the run itself is
        one, because the backbone is frozen.
    """
    names = classifier_names(backbone.model)
    if config.freeze == "backbone" or len(names) != 1:
        return None
    split = folder.splits["train"]
    most = max(_MOST_PICTURES, _FOR_EACH_CLASS * len(folder.classes))
    order = np.random.default_rng(0).permutation(len(split))[:most]
    pictures = sorted(int(i) for i in order)
    train, _ = make_run_batches(config, folder, backbone, device)
    shown = make_eval_batches(
        folder.root,
        [split[i] for i in pictures],
        eval_view(backbone.data_config),
        batch_size=config.pictures_in_a_batch,
        workers=train.workers,
        pin=device.type == "cuda",
        cache=folder.cache,
    )
    head = HeadOnFeatures(backbone.model, names[0])
    x, y = _features(head, shown, config, folder, device)
    optimizer = OptimizerSettings(weight_decay=config.weight_decay)
    classifier = copy.deepcopy(head.classifier).cpu()
    training = HeadTraining(classifier, optimizer, min(_BATCH, len(y)), _STEPS)
    lr = choose_head_rate(training, x, y, range(len(y)), usual=_USUAL).lr
    return ProbeTraining(names[0], training, x, y, pictures, lr)


def evaluate_probe(
    probe: ProbeHead,
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    device: torch.device,
) -> Probe:
    """Evaluate ``probe`` on the validation pictures."""
    _, val = make_run_batches(config, folder, backbone, device)
    x, y = _features(HeadOnFeatures(backbone.model, probe.name), val, config, folder, device)
    with torch.no_grad():
        logits = probe.classifier(x).float()
    return Probe(
        top1=(logits.argmax(1) == y).double().mean().item(),
        loss=F.cross_entropy(logits, y).item(),
        lr=probe.lr,
        pictures=probe.pictures,
    )


def _features(
    head: HeadOnFeatures,
    batches: Batches,
    config: FinetuneConfig,
    folder: PictureFolder,
    device: torch.device,
) -> Batch:
    settings = fit_settings(config, folder, device)
    seen = [(head.features(x, device, settings), y) for x, y in batches.epoch()]
    return torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])
