"""A linear probe of an arm before fine-tuning: is there a need to fine-tune at all?

A classifier on the frozen backbone's features of pictures as validation sees them; it takes
seconds. Fine-tuning starts with it (Kumar et al., arXiv 2202.10054): a random classifier would
first have to be learnt, at rates that suit the backbone, and its gradients would spoil features.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
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

# More training pictures would take a share of a run that a look beforehand is not worth.
_MOST_PICTURES = 2048
_BATCH, _STEPS, _USUAL = 64, 400, 1e-3
# In place of the digest of a head that is drawn from the seed.
PROBED = "linear probe"


@dataclass(frozen=True)
class Probe:
    """How well a classifier on frozen features does on the validation pictures.

    Attributes:
        top1: share of them that are classified correctly.
        loss: mean cross-entropy in nats.
        lr: its learning rate, chosen by cross-validation on the training pictures.
        pictures: number of training pictures.
        steps: number of optimiser steps (AdamW).
    """

    top1: float
    loss: float
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


def train_probe(
    config: FinetuneConfig, folder: PictureFolder, backbone: Backbone, device: torch.device
) -> ProbeHead | None:
    """Train a classifier on the features of ``backbone``, which is left as it was.

    Returns:
        None where there is no such thing: the model has no single classifier, or the run itself is
        one, because the backbone is frozen.
    """
    names = classifier_names(backbone.model)
    if config.freeze == "backbone" or len(names) != 1:
        return None
    samples = folder.splits["train"]
    if len(samples) > _MOST_PICTURES:
        order = np.random.default_rng(0).permutation(len(samples))[:_MOST_PICTURES]
        samples = [samples[i] for i in sorted(order)]
    train, _ = make_run_batches(config, folder, backbone, device)
    shown = make_eval_batches(
        folder.root,
        samples,
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
    return ProbeHead(names[0], training.train(x, y, lr), lr, len(samples))


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
