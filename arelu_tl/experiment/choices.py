"""What ``auto`` stands for in a run: the head's learning rate, and what BatchNorm normalises by.

Each arm's are chosen by the same procedure on its own start, from training pictures alone. A
baseline whose settings do not suit it would make any other arm look good.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.backbone.loading import Backbone, classifier_names
from arelu_tl.data.folder import PictureFolder
from arelu_tl.data.loader import Batches
from arelu_tl.errors import NonFiniteError
from arelu_tl.experiment.build import (
    fit_settings,
    make_run_batches,
    make_run_optimizer,
    steps_per_epoch,
)
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.evaluate import autocast, to_device
from arelu_tl.training.features import HeadOnFeatures
from arelu_tl.training.head_rate import MOST_STEPS, HeadRate, HeadTraining, choose_head_rate
from arelu_tl.training.step import Batch, Step, StepSettings

# A view costs a forward pass, a third of a training step: 0.06 passes over the pictures for each
# epoch take 2% of a run's time, and the trainings of the head less than 1% of most runs.
_PASSES_AN_EPOCH = 0.06
# Fewer views tell rates apart by luck; more tell no more.
_LEAST_VIEWS, _MOST_VIEWS, _MOST_VIEWS_EACH = 256, 2048, 4
_USUAL = 1e-3
# Steps of a pilot: a share of the run's, within what tells the two statistics apart.
_PILOT_SHARE, _PILOT_STEPS = 0.05, (8, 16)
_HELD_OUT = 128


@dataclass(frozen=True)
class Pilot:
    """A few steps of training with one kind of statistics.

    Attributes:
        bn_stats: "batch" or "frozen".
        head_lr: how the head's rate was chosen for it; None if it was given.
        loss: cross-entropy of training pictures held out, after the pilot's steps; None without a
            pilot, infinite if it broke.
        steps: number of the pilot's steps.
    """

    bn_stats: str
    head_lr: HeadRate | None
    loss: float | None = None
    steps: int = 0


@dataclass(frozen=True)
class Choices:
    """What was chosen, and what else was tried."""

    chosen: Pilot
    tried: list[Pilot]

    def settings(self) -> dict[str, Any]:
        """Return the settings of the configuration that are chosen."""
        rate = self.chosen.head_lr
        return {"bn_stats": self.chosen.bn_stats} | ({} if rate is None else {"head_lr": rate.lr})

    def lines(self) -> Iterator[str]:
        """Describe each choice in a line."""
        if len(self.tried) > 1:
            losses = " and ".join(f"{_shown(each.loss)} ({each.bn_stats})" for each in self.tried)
            yield (
                f"BatchNorm's statistics {self.chosen.bn_stats}: {self.chosen.steps} steps on a "
                f"part of the training pictures gave a loss of {losses} on another"
            )
        if self.chosen.head_lr is not None:
            yield self.chosen.head_lr.line()

    def to_json(self) -> list[dict[str, Any]]:
        """Return the content of choices.json: everything that was tried."""
        return [
            {
                "bn_stats": each.bn_stats,
                "chosen": each is self.chosen,
                "loss": each.loss if each.loss is None or math.isfinite(each.loss) else None,
                "steps": each.steps,
                "head_lr": None if each.head_lr is None else each.head_lr.to_json(),
            }
            for each in self.tried
        ]


def _shown(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}" if math.isfinite(loss) else "no finite value"


def make_choices(
    config: FinetuneConfig, folder: PictureFolder, backbone: Backbone, device: torch.device
) -> Choices:
    """Choose what ``config`` leaves to ``auto``; the model is left as it was.

    Validation pictures are not looked at.
    """
    train, _ = make_run_batches(config.model_copy(update={"workers": 0}), folder, backbone, device)
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.model.modules())
    modes = [config.bn_stats]
    if config.bn_stats == "auto":
        # Of a single batch nothing can be held out.
        undecided = norms and config.freeze == "none" and len(train) > 1
        modes = ["batch", "frozen"] if undecided else ["batch"]
    tried = []
    for mode in modes:
        own = config.model_copy(update={"bn_stats": mode})
        rate = find_head_rate(own, folder, backbone, train, device)
        if len(modes) == 1:
            tried.append(Pilot(mode, rate))
            continue
        if rate is not None:
            own = own.model_copy(update={"head_lr": rate.lr})
        loss, steps = _pilot(own, folder, backbone, train, device)
        tried.append(Pilot(mode, rate, loss, steps))
    return Choices(min(tried, key=lambda each: each.loss or 0.0), tried)


def find_head_rate(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    train: Batches,
    device: torch.device,
) -> HeadRate | None:
    """Choose the head's rate on the first augmented training batches, in the mode of training.

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
    head, settings = HeadOnFeatures(backbone.model, names[0]), fit_settings(config, folder, device)
    count = len(folder.splits["train"])
    wanted = max(_PASSES_AN_EPOCH * config.epochs * count, _LEAST_VIEWS)
    views = min(wanted, _MOST_VIEWS, _MOST_VIEWS_EACH * count)
    number = math.ceil(views / min(config.pictures_in_a_batch, count))
    passes = (zip(train.indices(n), train.epoch(n), strict=True) for n in itertools.count())
    features, labels, shown = [], [], []
    for indices, (pictures, classes) in itertools.islice(
        itertools.chain.from_iterable(passes), number
    ):
        features.append(head.features(pictures, device, settings, as_in_training=True))
        labels.append(classes)
        shown += indices
    training = HeadTraining(
        copy.deepcopy(head.classifier).cpu(),
        config.optimizer(),
        config.pictures_in_a_batch,
        min(_steps(config, train), MOST_STEPS),
    )
    return choose_head_rate(training, torch.cat(features), torch.cat(labels), shown)


def _steps(config: FinetuneConfig, train: Batches) -> int:
    return steps_per_epoch(len(train), config.grad_accum_steps) * config.epochs


def _pilot(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    train: Batches,
    device: torch.device,
) -> tuple[float, int]:
    """Train a copy for a few steps at the full rate.

    Running statistics would lag behind weights that move this fast, so that pictures are held out
    of the steps but evaluated in the mode of training.

    Returns:
        (loss of the pictures held out, number of steps).
    """
    least, most = _PILOT_STEPS
    steps = min(max(round(_PILOT_SHARE * _steps(config, train)), least), most)
    seen = min(steps, len(train) // 2)
    held_out = math.ceil(_HELD_OUT / train.batch_size)
    with torch.random.fork_rng():
        model = copy.deepcopy(backbone.model)
        optimizer = make_run_optimizer(config, model)
        settings = fit_settings(config, folder, device)
        step = Step(model, optimizer, settings, device)
        step.train_mode()
        try:
            for number in range(steps):
                if number % seen == 0:
                    batches = train.epoch(0)
                given = [next(batches)]
                means = step.gradients(given, number)
                step.require_finite(means, given, number)
                step.update()
        except NonFiniteError:
            return math.inf, steps
        rest = itertools.islice(train.epoch(0, first=seen), held_out)
        return _training_loss(model, rest, settings, device), steps


@torch.no_grad()
def _training_loss(
    model: nn.Module, batches: Iterator[Batch], settings: StepSettings, device: torch.device
) -> float:
    """Return the mean cross-entropy of ``batches`` in the mode that ``model`` is in."""
    total, count = 0.0, 0
    torch.manual_seed(settings.seed)
    for pictures, labels in batches:
        for part, classes in zip(
            torch.split(pictures, settings.micro_batch or len(pictures)),
            torch.split(labels, settings.micro_batch or len(labels)),
            strict=True,
        ):
            with autocast(device, settings.amp):
                logits = model(to_device(part, device, channels_last=settings.channels_last))
            total += F.cross_entropy(logits.float().cpu(), classes, reduction="sum").item()
            count += len(classes)
    return total / count if math.isfinite(total) else math.inf
