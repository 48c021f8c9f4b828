"""What ``auto`` stands for in a run: its start, BatchNorm's statistics, and the head's rate.

Each arm's are chosen by the same procedure on its own start, from training pictures alone. A
baseline whose settings do not suit it would make any other arm look good.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.activation.catalogue import SLOPED_ARMS
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
from arelu_tl.experiment.probe import ProbeHead, prepare_probe
from arelu_tl.records.config import FinetuneConfig
from arelu_tl.training.distributed import ALONE, World
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
# Of a single batch nothing can be held out; and beside a shorter run a pilot would take too long.
_LEAST_BATCHES, _LEAST_STEPS = 2, 32
# Controls that take the head's rate of another arm.
_HEAD_OF = {"head-matched": "arelu", "head-of-relu": "relu"}


@dataclass(frozen=True)
class Pilot:
    """A few steps of training with one start and one kind of statistics.

    Attributes:
        init: how the sites start; None if there was nothing to choose.
        bn_stats: "batch" or "frozen".
        head_lr: how the head's rate was chosen for it; None if it was given.
        loss: cross-entropy of training pictures held out, after the pilot's steps; None without a
            pilot, infinite if it broke.
        steps: number of the pilot's steps.
    """

    init: str | None
    bn_stats: str
    head_lr: HeadRate | None
    loss: float | None = None
    steps: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it for choices.json."""
        return {
            "init": self.init,
            "bn_stats": self.bn_stats,
            "loss": self.loss if self.loss is None or math.isfinite(self.loss) else None,
            "steps": self.steps,
            "head_lr": None if self.head_lr is None else self.head_lr.to_json(),
        }


@dataclass(frozen=True)
class Choices:
    """What was chosen, and everything that was tried.

    Attributes:
        chosen: the pilot with the smallest loss.
        tried: all of them.
        imposed: further settings: what a control has of another arm, and how the head starts.
    """

    chosen: Pilot
    tried: list[Pilot]
    imposed: dict[str, Any]

    def settings(self) -> dict[str, Any]:
        """Return the settings of the configuration that are chosen."""
        pilot = self.chosen
        chosen = {"init": pilot.init, "head_lr": pilot.head_lr and pilot.head_lr.lr}
        settled = {key: value for key, value in chosen.items() if value is not None}
        return {"bn_stats": pilot.bn_stats, **settled, **self.imposed}

    def lines(self) -> Iterator[str]:
        """Describe each choice in a line."""
        if len(self.tried) > 1:
            others = ", ".join(
                f"{_shown(each.loss)} ({self._name(each)})"
                for each in self.tried
                if each is not self.chosen
            )
            yield (
                f"{self._name(self.chosen)}: loss {_shown(self.chosen.loss)} on training pictures "
                f"held out after {self.chosen.steps} steps; otherwise {others}"
            )
        if self.chosen.head_lr is not None:
            yield self.chosen.head_lr.line()
        if "head_lr" in self.imposed and self.imposed["head_init"] == "random":
            yield f"head rate {self.imposed['head_lr']:g}, the one chosen for the other arm"

    def _name(self, pilot: Pilot) -> str:
        """What distinguishes a pilot from the others."""
        parts = [] if pilot.init is None else [pilot.init]
        if len({each.bn_stats for each in self.tried}) > 1:
            parts.append(f"{pilot.bn_stats} statistics")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the content of choices.json."""
        return {
            "settings": self.settings(),
            "tried": [each.to_json() for each in self.tried],
        }


def _shown(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}" if math.isfinite(loss) else "no finite value"


def starts(config: FinetuneConfig) -> list[str]:
    """Return the starts among which ``config`` leaves the choice, the cautious one first."""
    if config.init != "auto":
        return [config.init]
    given = config.alpha is not None or config.beta is not None
    if config.net in SLOPED_ARMS and not given:
        return ["near-relu", "calibrated"]
    return ["calibrated"]


class Built(Protocol):
    """Something with a start's backbone, such as ``RunStart``."""

    @property
    def backbone(self) -> Backbone: ...


_Built = TypeVar("_Built", bound=Built)


def choose_start(
    config: FinetuneConfig,
    folder: PictureFolder,
    device: torch.device,
    build: Callable[[FinetuneConfig], _Built],
    world: World = ALONE,
) -> tuple[_Built, Choices, ProbeHead | None]:
    """Build every start that ``config`` leaves to choose from, and choose by a pilot of each.

    Validation pictures are not looked at. Which statistics suit a net depends on its rate more than
    on how the sites start, so that the first start settles them for all.

    Args:
        build: builds the start of a configuration whose ``init`` is settled.
        world: rank 0 tries them; all processes build them.

    Returns:
        (the start that was chosen, the choices, the start's linear probe if there is one).
    """
    imposed: dict[str, Any] = {}
    if config.arm == "stats-frozen":
        imposed = {"bn_stats": "frozen"}
    elif config.arm in _HEAD_OF and config.head_lr == "auto" and config.head_init == "random":
        other = config.model_copy(update={"arm": _HEAD_OF[config.arm]})
        _, theirs, _ = choose_start(other, folder, device, build, world)
        imposed = {"head_lr": theirs.settings().get("head_lr", config.lr)}
    auto_head = config.head_lr == "auto"
    config = config.model_copy(update=imposed)
    inits = starts(config)
    best: tuple[_Built, ProbeHead | None] | None = None
    tried: list[Pilot] = []
    for init in inits:
        settled = {"bn_stats": _best(tried).bn_stats} if tried else {}
        own = config.model_copy(update={"init": init, **settled})
        built = build(own)
        pilots, probe = world.lead(
            partial(_try, own, folder, built.backbone, device, alternatives=len(inits))
        )
        if own.head_init == "probe" and probe is not None:
            probe.install(built.backbone.model)
        tried += pilots
        if best is None or _best(tried).init == init:
            best = built, probe  # the others are let go: two models at a time are enough
        if tried[-1].loss is None:  # without a pilot, the others cannot be told from the first
            break
    assert best is not None
    built, probe = best
    if probe is None or config.head_init == "random":
        imposed |= {"head_init": "random"}
    else:
        imposed |= {"head_init": "probe"} | ({"head_lr": config.lr} if auto_head else {})
    return built, Choices(_best(tried), tried, imposed), probe


def _best(tried: list[Pilot]) -> Pilot:
    """Return the pilot with the smallest loss; of equal ones the first."""
    return min(tried, key=lambda each: 0.0 if each.loss is None else each.loss)


def _try(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    device: torch.device,
    *,
    alternatives: int = 1,
) -> tuple[list[Pilot], ProbeHead | None]:
    """Try what ``config`` leaves to ``auto`` on one start; the model is left as it was.

    Args:
        config: its ``init`` is that of ``backbone``.
        alternatives: number of starts to choose from.

    Returns:
        (the pilots, the start's linear probe if there is one).
    """
    probe = prepare_probe(config, folder, backbone, device)
    train, _ = make_run_batches(config.model_copy(update={"workers": 0}), folder, backbone, device)
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.model.modules())
    pilots = len(train) >= _LEAST_BATCHES and _steps(config, train) >= _LEAST_STEPS
    modes: list[str] = [config.bn_stats]
    if config.bn_stats == "auto":
        # Within a short run, running statistics do not catch up with those of the pictures, but of
        # random weights there are no others.
        short = "frozen" if config.pretrained and not pilots else "batch"
        undecided = norms and config.freeze == "none"
        modes = ["batch", "frozen"] if undecided and pilots else [short if undecided else "batch"]
    tries = pilots and len(modes) * alternatives > 1
    start = None
    if tries and probe is not None and config.head_init == "probe":
        *_, unseen = _shares(config, train)
        start = probe.head({index for batch in unseen for index in batch})
    tried = []
    for mode in modes:
        own = config.model_copy(update={"bn_stats": mode})
        rate = find_head_rate(own, folder, backbone, train, device)
        if rate is not None:
            own = own.model_copy(update={"head_lr": rate.lr})
        loss, steps = None, 0
        if tries:
            loss, steps = _pilot(own, folder, backbone, train, device, start)
        tried.append(Pilot(config.init if alternatives > 1 else None, mode, rate, loss, steps))
    return tried, None if probe is None else probe.head()


def find_head_rate(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    train: Batches,
    device: torch.device,
) -> HeadRate | None:
    """Choose the head's rate on the first augmented training batches, in the mode of training.

    Returns:
        None if nothing is to be chosen: the rate is given, or it is ``lr``, because the backbone is
        frozen or the head starts as the probe. For a model without a single classifier nothing is
        tried: the larger of ``lr`` and 1e-3, which also stands where no rate tells the pictures
        apart.
    """
    if config.head_lr != "auto" or config.freeze == "backbone":
        return None
    names = classifier_names(backbone.model)
    if config.head_init == "probe" and len(names) == 1:
        return None
    if len(names) != 1:
        return HeadRate(max(config.lr, _USUAL), [], 0, 0, 0, informed=False)
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
    return choose_head_rate(
        training, torch.cat(features), torch.cat(labels), shown, usual=max(config.lr, _USUAL)
    )


def _steps(config: FinetuneConfig, train: Batches) -> int:
    return steps_per_epoch(len(train), config.grad_accum_steps) * config.epochs


def _shares(config: FinetuneConfig, train: Batches) -> tuple[int, int, list[list[int]]]:
    """Return a pilot's steps, how many batches of epoch 0 it trains on, and those it is judged by.

    The latter follow the former, as indices of their pictures.
    """
    least, most = _PILOT_STEPS
    steps = min(max(round(_PILOT_SHARE * _steps(config, train)), least), most)
    seen = min(steps, len(train) // 2)
    return steps, seen, train.indices(0)[seen : seen + math.ceil(_HELD_OUT / train.batch_size)]


def _pilot(
    config: FinetuneConfig,
    folder: PictureFolder,
    backbone: Backbone,
    train: Batches,
    device: torch.device,
    head: ProbeHead | None,
) -> tuple[float, int]:
    """Train a copy for a few steps at the full rate.

    Running statistics would lag behind weights that move this fast, so that pictures are held out
    of the steps but evaluated in the mode of training.

    Args:
        head: how the head starts, trained without the pictures held out; None for at random.

    Returns:
        (loss of the pictures held out, number of steps).
    """
    steps, seen, unseen = _shares(config, train)
    with torch.random.fork_rng():
        model = copy.deepcopy(backbone.model)
        if head is not None:
            head.install(model)
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
        rest = itertools.islice(train.epoch(0, first=seen), len(unseen))
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
