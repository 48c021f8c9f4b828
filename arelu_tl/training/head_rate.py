"""Choose the classifier's learning rate by cross-validation on features of training pictures.

At the small rates that suit a pretrained backbone, a new classifier learns slowly, whatever the
activations; a comparison at those rates would compare how far each arm's features hide that. Here
each arm's classifier gets the rate at which it learns best on that arm's own features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.training.optimisation import make_head_optimizer, make_schedule

# Longer trainings would choose rates for a classifier that overfits features which, in the run
# itself, go on changing.
MOST_STEPS = 48
# Half decades; where the best is at an end, the search goes on beyond it, up to the limits, which
# suit any optimiser.
_FIRST = range(-8, -4)  # 1e-4, 3e-4, 1e-3, 3e-3
_LOWEST, _HIGHEST = -14, 4
# By how much a trained head must be better than one that gives every class the same probability.
_LEAST_GAIN = 0.01


@dataclass(frozen=True)
class HeadRate:
    """A chosen learning rate of the classifier, and how it was chosen.

    Attributes:
        lr: the rate with the smallest loss; the usual one if none tells the pictures apart.
        tried: [rate, mean cross-entropy of the pictures held out] in order of rates; None for a
            loss that became NaN or infinite.
        pictures: number of training pictures.
        views: number of augmented views of them, each one row of features.
        steps: optimiser steps of each training.
        informed: whether the losses decided.
    """

    lr: float
    tried: list[tuple[float, float | None]]
    pictures: int
    views: int
    steps: int
    informed: bool = True

    def line(self) -> str:
        """Describe the choice in a line."""
        if not self.tried:
            return f"head rate {self.lr:g}; the model has no single classifier to try others on"
        tried = f"{self.tried[0][0]:g} to {self.tried[-1][0]:g}"
        how = f"cross-validation on {self.pictures} training pictures"
        if not self.informed:
            return f"head rate {self.lr:g}; by {how} none of {tried} tells them apart"
        return f"head rate {self.lr:g}, the best of {tried} by {how}"

    def to_json(self) -> dict[str, Any]:
        """Return it for choices.json."""
        return asdict(self)


@dataclass(frozen=True)
class HeadTraining:
    """How a classifier is trained alone, on rows of features: from 0, with a cosine schedule.

    Attributes:
        head: the classifier; copies of it are trained, whose linear layers start at 0, so that its
            initialisation plays no role.
        settings: the optimiser; its rates are ignored.
        batch_size: rows in a step.
        steps: number of steps.
    """

    head: nn.Module
    settings: OptimizerSettings
    batch_size: int
    steps: int

    def train(self, features: Tensor, labels: Tensor, lr: float) -> nn.Module:
        """Return a copy of the head in eval mode, trained on all rows in turn.

        Args:
            features: inputs (V, ...).
            labels: classes (V,).
            lr: learning rate.
        """
        head = copy.deepcopy(self.head).requires_grad_(True).eval()
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
        optimizer = make_head_optimizer(head, self.settings, lr)
        schedule = make_schedule(optimizer, sched="cosine", epochs=1, steps_per_epoch=self.steps)
        rows = self._rows(len(labels))
        for step in range(self.steps):
            if schedule is not None:
                schedule.step(step)
            batch = rows[step * self.batch_size : (step + 1) * self.batch_size]
            optimizer.zero_grad()
            loss = F.cross_entropy(head(features[batch]).float(), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return head

    def _rows(self, count: int) -> Tensor:
        """Return the rows of all steps one after the other."""
        generator = np.random.default_rng(0)
        passes = math.ceil(self.steps * self.batch_size / count)
        return torch.from_numpy(
            np.concatenate([generator.permutation(count) for _ in range(passes)])
        )

    def untrained_loss(self, features: Tensor) -> float:
        """Return the cross-entropy of a head that gives every class the same probability."""
        with torch.no_grad():
            return math.log(self.head(features[:1]).shape[1])

    def held_out_loss(self, features: Tensor, labels: Tensor, half: Tensor, lr: float) -> float:
        """Return the mean cross-entropy outside ``half`` (V,) of a head trained on it."""
        if half.all() or not half.any():
            return math.inf
        head = self.train(features[half], labels[half], lr)
        with torch.no_grad():
            loss = F.cross_entropy(head(features[~half]).float(), labels[~half]).item()
        return loss if math.isfinite(loss) else math.inf


def choose_head_rate(
    training: HeadTraining,
    features: Tensor,
    labels: Tensor,
    pictures: Sequence[int],
    *,
    usual: float,
) -> HeadRate:
    """Train heads on half of the pictures at several rates, and judge them on the other half.

    Both halves take both roles. Every view of a picture is in the same half, and the halves have
    equal shares of each class. The result depends only on the arguments.

    Args:
        features: the head's inputs (V, ...), one for each view of a training picture.
        labels: classes (V,).
        pictures: the picture that each view shows, by its index.
        usual: the rate for features that do not tell the held-out pictures apart. The smallest loss
            is then that of a head which learns nothing.
    """
    half = _halves(labels.tolist(), pictures)
    losses: dict[int, float] = {}

    def loss(exponent: int) -> float:
        if exponent not in losses:
            lr = half_decade(exponent)
            found = [training.held_out_loss(features, labels, each, lr) for each in (half, ~half)]
            losses[exponent] = sum(found) / 2
        return losses[exponent]

    best = min(_FIRST, key=loss)
    while best > _LOWEST and best == min(losses) and loss(best - 1) < losses[best]:
        best -= 1
    while best < _HIGHEST and best == max(losses) and loss(best + 1) < losses[best]:
        best += 1
    tried = [
        (half_decade(each), losses[each] if math.isfinite(losses[each]) else None)
        for each in sorted(losses)
    ]
    informed = losses[best] < (1 - _LEAST_GAIN) * training.untrained_loss(features)
    lr = half_decade(best) if informed else usual
    return HeadRate(lr, tried, len(set(pictures)), len(labels), training.steps, informed)


def half_decade(exponent: int) -> float:
    """Return 1e-4 for -8, 3e-4 for -7, 1e-3 for -6, ..."""
    return float(f"{3 if exponent % 2 else 1}e{exponent // 2}")


def _halves(labels: Sequence[int], pictures: Sequence[int]) -> Tensor:
    """Return for each view whether its picture is in the first half."""
    label_of = dict(zip(pictures, labels, strict=True))
    seen: dict[int, int] = {}
    first = {}
    for picture in sorted(label_of):
        label = label_of[picture]
        # Of an odd number, one class gives its last picture to one half, the next to the other.
        first[picture] = (seen.get(label, 0) + label) % 2 == 0
        seen[label] = seen.get(label, 0) + 1
    return torch.tensor([first[picture] for picture in pictures])
