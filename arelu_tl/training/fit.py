"""The training loop. It handles a model, batches and an optimiser; the journal handles output.

A step depends on nothing but the saved state: order and augmentation are derived from (seed, epoch,
sample), dropout from (seed, step), learning rates from the step. A resumed run therefore continues
as if it had never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from arelu_tl.activation.arelu import named_arelus, site_values
from arelu_tl.data.loader import Batches, batch_digest
from arelu_tl.errors import Interrupted, NonFiniteError
from arelu_tl.records.rows import EpochRow, MetricRow, epoch_row, metric_row
from arelu_tl.records.runs import pack_flags
from arelu_tl.training.distributed import ALONE, World
from arelu_tl.training.evaluate import Evaluation, evaluate
from arelu_tl.training.features import FeatureBatches
from arelu_tl.training.finite import nonfinite_parameter
from arelu_tl.training.interruption import StopRequest
from arelu_tl.training.saved_state import load_part, read_record
from arelu_tl.training.step import Batch, Step, StepSettings


@dataclass(frozen=True, kw_only=True)
class FitSettings(StepSettings):
    """How long and how to train; see the options of the same names.

    Attributes:
        max_steps: optimiser steps after which training ends, even within an epoch; None for no
            limit.
        ema_decay: decay of the averaged weights; None for no averaging.
        compile: compile the model, and the averaged model, for training and evaluation.
        log_every: steps that one training row averages over.
        save_every_steps, save_every_seconds: save the state after this many steps or seconds; None
            for not.
        save_epochs: also save it at the end of each epoch.
    """

    epochs: int
    max_steps: int | None = None
    grad_accum_steps: int = 1
    eval_every: int | None = None
    patience: int | None = None
    ema_decay: float | None = None
    compile: bool = False
    log_every: int = 10
    save_every_steps: int | None = None
    save_every_seconds: float | None = None
    save_epochs: bool = True


class Journal(Protocol):
    """The callbacks of the training loop."""

    def row(self, row: MetricRow) -> None:
        """A row of metrics.jsonl."""

    def progress(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        """An optimiser step was taken."""

    def best(self, weights: dict[str, Tensor], evaluation: Evaluation, step: int) -> None:
        """An evaluation is the best so far; ``weights`` are those that were evaluated."""

    def epoch_end(self, row: EpochRow) -> None:
        """An epoch has ended; ``row`` is its row of results.csv."""

    def checkpoint(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """A checkpoint to save: the weights, and the ``state`` that ``fit`` resumes from."""

    def note(self, text: str) -> None:
        """A message for the user."""


@dataclass
class _Window:
    """Sums over training pictures since the last row."""

    loss: float = 0.0
    correct: float = 0.0
    images: int = 0

    def add(self, loss: float, correct: float, images: int) -> None:
        self.loss += loss * images
        self.correct += correct
        self.images += images

    def means(self) -> dict[str, float]:
        return {"loss": self.loss / self.images, "top1": self.correct / self.images}


@dataclass
class FitState:
    """The state of the loop; a checkpoint contains all of it.

    Attributes:
        step: completed optimiser steps.
        epoch, batch: the next batch to train on.
        seconds: training time so far, without evaluation and saving.
        best_top1, best_loss, best_step: the best evaluation: highest accuracy, then lowest loss,
            then earliest.
        stale_epochs: epochs since the accuracy last rose, for ``patience``.
        micro_batch: pictures that memory holds at a time, if a whole batch turned out to be too
            large.
        digests: digests of each epoch's order and first batch; equal in both runs of a pair.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    images: int = 0
    best_top1: float = -1.0
    best_loss: float = math.inf
    best_step: int = 0
    best_epoch_top1: float = -1.0
    stale_epochs: int = 0
    stopped_early: bool = False
    micro_batch: int | None = None
    digests: list[dict[str, Any]] = field(default_factory=list)
    window: dict[str, Any] = field(default_factory=dict)
    epoch_window: dict[str, Any] = field(default_factory=dict)


class SilentJournal:
    """A ``Journal`` that ignores everything, for ranks above 0 and for callers without output."""

    def row(self, row: MetricRow) -> None:
        """Ignore a row."""

    def progress(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        """Ignore a step."""

    def best(self, weights: dict[str, Tensor], evaluation: Evaluation, step: int) -> None:
        """Ignore a best evaluation."""

    def epoch_end(self, row: EpochRow) -> None:
        """Ignore the end of an epoch."""

    def checkpoint(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Ignore a checkpoint."""

    def note(self, text: str) -> None:
        """Ignore a message."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class FitResult:
    """The last state of the loop, and the last evaluation (None without validation batches)."""

    state: FitState
    final: Evaluation | None


def fit(
    model: nn.Module,
    train: Batches | FeatureBatches,
    val: Batches | FeatureBatches | None,
    optimizer: torch.optim.Optimizer,
    schedule: Scheduler | None,
    settings: FitSettings,
    *,
    device: torch.device,
    journal: Journal | None = None,
    stop: StopRequest | None = None,
    resume: dict[str, Any] | None = None,
    world: World = ALONE,
) -> FitResult:
    """Train ``model`` in place.

    It is evaluated at step 0, at the end of each epoch and every ``eval_every`` steps.

    Args:
        model: on ``device``; with ``resume``, it already has the checkpoint's weights.
        train, val: batches of the two splits, pictures or features as ``model`` takes them.
            Without ``val`` nothing is evaluated.
        optimizer: over the model's trainable parameters.
        schedule: stepped with the number of the optimiser step; None for constant rates.
        journal: the callbacks; None for none.
        stop: checked after each step; None if training cannot be stopped.
        resume: the state that the journal was given with the checkpoint.
        world: the processes that train together, each with its slice of the batches and equal
            weights. All journals get the same values, those of whole batches.

    Raises:
        NonFiniteError: the loss, a gradient or a parameter became NaN or infinite; the step was not
            taken, and no state was saved.
        Interrupted: any of the processes received a signal; a checkpoint was saved.
        PeerError: another process has ended.
        ArtefactError: ``resume`` is not such a state, or belongs to another model or optimiser.
    """
    loop = _Loop(
        model, train, val, optimizer, schedule, settings, device, journal or SilentJournal(), world
    )
    if resume is None:
        loop.evaluate()
    else:
        loop.restore(resume)
    while loop.trains():
        for batches in loop.steps_of_epoch():
            loop.take_step(batches)
            loop.log_if_due()
            loop.save_if_due(stop)
        loop.end_epoch(stop)
    return loop.result()


class _Loop:
    """The training that ``fit`` runs: its model, its state and its parts."""

    def __init__(
        self,
        model: nn.Module,
        train: Batches | FeatureBatches,
        val: Batches | FeatureBatches | None,
        optimizer: torch.optim.Optimizer,
        schedule: Scheduler | None,
        settings: FitSettings,
        device: torch.device,
        journal: Journal,
        world: World,
    ) -> None:
        self.model = model
        self.train = train
        self.val = val
        self.optimizer = optimizer
        self.schedule = schedule
        self.settings = settings
        self.device = device
        self.journal = journal
        self.world = world
        self.step = Step(model, optimizer, settings, device, journal.note, world)
        self.ema = (
            ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True)
            if settings.ema_decay is not None
            else None
        )
        self.evaluated = self.ema.module if self.ema is not None else model
        self.state = FitState(micro_batch=settings.micro_batch)
        self.window, self.epoch_window = _Window(), _Window()
        self.final: Evaluation | None = None
        self.saved_at = time.monotonic()
        self.started = 0.0  # of the step at hand, loading included
        self.learns = any(module.alpha.requires_grad for _, module in named_arelus(model))
        if settings.compile:
            # Code compiled for earlier runs counts towards the limit, beyond which torch stops
            # compiling.
            torch.compiler.reset()
            for each in {model, self.evaluated}:
                each.compile(dynamic=False)

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore the state that was saved with a checkpoint."""
        self.state = state = read_record(FitState, saved.get("loop"), "loop")
        load_part(saved, "optimizer", self.optimizer.load_state_dict)
        load_part(saved, "scaler", self.step.scaler.load_state_dict)
        if self.ema is not None:
            load_part(saved, "ema", self.ema.module.load_state_dict)
        self.step.micro_batch = state.micro_batch
        self.window, self.epoch_window = (
            read_record(_Window, each, "window") for each in (state.window, state.epoch_window)
        )

    def trains(self) -> bool:
        """Return whether there is anything left to train."""
        return (
            self.state.epoch < self.settings.epochs
            and not self.state.stopped_early
            and not self._enough()
        )

    def steps_of_epoch(self) -> Iterator[list[Batch]]:
        """Yield the batches of each remaining step of the epoch."""
        state = self.state
        self.step.train_mode()
        batches = self.train.epoch(state.epoch, first=state.batch)
        while not self._turn_over():
            self.started = time.perf_counter()
            if self.schedule is not None:
                self.schedule.step(state.step)
            size = min(self.settings.grad_accum_steps, len(self.train) - state.batch)
            taken = [next(batches) for _ in range(size)]
            if state.batch == 0:
                self._record_digests(taken[0])
            yield taken

    def take_step(self, batches: list[Batch]) -> None:
        """Update the weights with the gradients of ``batches``."""
        state, size = self.state, self.world.size
        means = self.step.gradients(batches, state.step)
        state.micro_batch = self.step.micro_batch
        self.step.require_finite(means, batches, state.step)
        for (loss, correct), (_, labels) in zip(means, batches, strict=True):
            self.window.add(loss, correct, len(labels) * size)
            self.epoch_window.add(loss, correct, len(labels) * size)
        self.step.update()
        if self.ema is not None:
            self.ema.update(self.model, step=state.step)
        images = sum(len(labels) for _, labels in batches) * size
        state.step += 1
        state.batch += len(batches)
        state.images += images
        elapsed = time.perf_counter() - self.started
        state.seconds += elapsed
        self.journal.progress(state.step, loss, correct / len(labels) / size, images / elapsed)

    def log_if_due(self) -> None:
        """Within an epoch, log every ``log_every`` steps and evaluate every ``eval_every``."""
        if self._turn_over():
            return
        step, every = self.state.step, self.settings.eval_every
        if step % self.settings.log_every == 0:
            self._log_training()
        if every and step % every == 0:
            self.evaluate()

    def save_if_due(self, stop: StopRequest | None) -> None:
        """Within an epoch, save if a save is due, and stop if a signal was received."""
        if self._turn_over():
            return
        self._stop_if_asked(stop)
        if self._save_is_due():
            self.save()

    def end_epoch(self, stop: StopRequest | None) -> None:
        """Evaluate and end the epoch; an epoch that ``max_steps`` cut short is not ended."""
        state, settings = self.state, self.settings
        over = self._epoch_over()
        if over:
            state.epoch += 1
            state.batch = 0
        final = self.evaluate()
        if over:
            means, self.epoch_window = self.epoch_window.means(), _Window()
            if final is not None:
                state.stale_epochs = (
                    0 if final.top1 > state.best_epoch_top1 else state.stale_epochs + 1
                )
                state.best_epoch_top1 = max(final.top1, state.best_epoch_top1)
                state.stopped_early = (
                    settings.patience is not None and state.stale_epochs >= settings.patience
                )
            val = None if final is None else self._row("val", final.loss, final.top1)
            self.journal.epoch_end(epoch_row(self._row("train", **means), val))
        if due := settings.save_epochs or self._save_is_due():
            self.save()
        else:
            self._require_finite_weights()
        self._stop_if_asked(stop, saved=due)

    def evaluate(self) -> Evaluation | None:
        """Evaluate (the averaged weights, if any), log the row, and report a new best."""
        self._log_training()
        if (result := self._evaluation()) is None:
            return None
        state = self.state
        row = self._row("val", result.loss, result.top1)
        row["correct"] = pack_flags(result.correct.numpy())
        if self.learns:
            row["sites"] = site_values(self.evaluated)
        self.journal.row(row)
        if (result.top1, -result.loss) > (state.best_top1, -state.best_loss):
            state.best_top1, state.best_loss, state.best_step = result.top1, result.loss, state.step
            self.journal.best(self.evaluated.state_dict(), result, state.step)
        self.final = result
        return result

    def save(self) -> None:
        """Pass everything that ``restore`` needs to the journal."""
        self._require_finite_weights()
        self.saved_at = time.monotonic()
        state = self.state
        state.window, state.epoch_window = asdict(self.window), asdict(self.epoch_window)
        saved: dict[str, Any] = {"loop": asdict(state), "optimizer": self.optimizer.state_dict()}
        saved["processes"] = self.world.size
        saved["scaler"] = self.step.scaler.state_dict()
        saved["ema"] = self.ema.module.state_dict() if self.ema is not None else None
        self.journal.checkpoint(state.step, self.model.state_dict(), saved)

    def result(self) -> FitResult:
        """Return the result; evaluate again if training was resumed after its last step."""
        return FitResult(self.state, self.final if self.final is not None else self._evaluation())

    def _enough(self) -> bool:
        return self.settings.max_steps is not None and self.state.step >= self.settings.max_steps

    def _epoch_over(self) -> bool:
        return self.state.batch >= len(self.train)

    def _turn_over(self) -> bool:
        """Return whether ``end_epoch`` comes next, which evaluates and saves."""
        return self._epoch_over() or self._enough()

    def _evaluation(self) -> Evaluation | None:
        if self.val is None:
            return None
        return evaluate(
            self.evaluated,
            self.val.epoch(),
            self.device,
            self.settings.amp,
            channels_last=self.settings.channels_last,
            micro_batch=self.step.micro_batch,
            world=self.world,
        )

    def _log_training(self) -> None:
        if self.window.images:
            self.journal.row(self._row("train", **self.window.means()))
        self.window = _Window()

    def _row(self, split: Literal["train", "val"], loss: float, top1: float) -> MetricRow:
        state = self.state
        return metric_row(
            split,
            step=state.step,
            epoch=state.epoch,
            loss=loss,
            top1=top1,
            lr=self._learning_rate(),
            seconds=state.seconds,
        )

    def _learning_rate(self) -> float:
        """Return the backbone's rate if it trains, else the head's, else that of alpha and beta."""
        groups = self.optimizer.param_groups
        rates = {
            str(group["name"]).removesuffix("-no-decay"): float(group["lr"]) for group in groups
        }
        return rates.get("backbone", rates.get("head", next(iter(rates.values()))))

    def _record_digests(self, first: Batch) -> None:
        """Record digests that prove that both runs of a pair get the same augmented pictures."""
        epoch, train = self.state.epoch, self.train
        pictures = (
            train.first_pictures(epoch)
            if isinstance(train, FeatureBatches)
            else _whole(first, self.world)
        )
        self.state.digests.append(
            {"order": train.order_digest(epoch), "first_batch": batch_digest(*pictures)}
        )

    def _require_finite_weights(self) -> None:
        if (name := nonfinite_parameter(self.model)) is not None:
            raise NonFiniteError(
                f"parameter {name} became infinite or undefined at step {self.state.step}: lower "
                "`lr`"
            )

    def _save_is_due(self) -> bool:
        steps, seconds = self.settings.save_every_steps, self.settings.save_every_seconds
        if steps is not None and self.state.step % steps == 0:
            return True
        return seconds is not None and bool(
            self.world.highest(int(time.monotonic() - self.saved_at >= seconds))
        )

    def _stop_if_asked(self, stop: StopRequest | None, *, saved: bool = False) -> None:
        asked = 0 if stop is None else stop.signal_number or 0
        if number := self.world.highest(asked):
            if not saved:
                self.save()
            raise Interrupted(f"stopped after step {self.state.step}", number)


def _whole(batch: Batch, world: World) -> Batch:
    """Return the whole batch of which this process has a slice."""
    if world.size == 1:
        return batch
    pictures, labels = zip(*world.gather(batch), strict=True)
    return torch.cat(pictures), torch.cat(labels)
