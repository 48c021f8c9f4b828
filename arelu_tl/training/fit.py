"""The training loop. It knows a model, batches and an optimiser; files and screens are the journal's business.

Nothing in it depends on what happened before the step at hand but the state that it saves: order and augmentation come
from (seed, epoch, sample), dropout from (seed, step), rates from the step. A resumed run therefore goes on as if it had
never stopped.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from arelu_tl.activation.arelu import named_arelus, site_values
from arelu_tl.data.loader import Batches, batch_digest
from arelu_tl.errors import Interrupted, NonFiniteError
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
        ema_decay: decay of the averaged weights, None for none.
        compile: compile the model, and the averaged one, for training and evaluation.
        log_every: steps that one training row averages over.
        save_every_steps, save_every_seconds: save the state after so many steps and so much time; None for not.
        save_epochs: save it at each epoch's end as well, due or not.
    """

    epochs: int
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
    """What the loop tells while it runs. Rows are those of metrics.jsonl."""

    def row(self, row: dict[str, Any]) -> None: ...
    def progress(self, step: int, loss: float, top1: float, images_per_second: float) -> None: ...
    def best(self, weights: dict[str, Tensor], evaluation: Evaluation, step: int) -> None: ...
    def epoch_end(self, row: dict[str, Any]) -> None: ...
    def checkpoint(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


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
    """Where the loop stands; all of it is in a checkpoint.

    Attributes:
        step: optimiser steps done.
        epoch, batch: the next batch to train on.
        seconds: time spent training so far, evaluation and saving not counted.
        best_top1, best_loss, best_step: the best evaluation: highest accuracy, then lowest loss, then earliest.
        stale_epochs: epochs since the accuracy rose, for ``patience``.
        micro_batch: pictures that memory holds at a time, where a whole batch has turned out to be too much.
        digests: of each epoch's order and first batch; equal in both runs of a pair.
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


@dataclass(frozen=True)
class FitResult:
    """The loop's end: its last state and the last evaluation."""

    state: FitState
    final: Evaluation


def fit(
    model: nn.Module,
    train: Batches | FeatureBatches,
    val: Batches | FeatureBatches,
    optimizer: torch.optim.Optimizer,
    schedule: Scheduler | None,
    settings: FitSettings,
    *,
    device: torch.device,
    journal: Journal,
    stop: StopRequest,
    resume: dict[str, Any] | None = None,
    world: World = ALONE,
) -> FitResult:
    """Train ``model`` in place: evaluate at step 0, at each epoch's end and every ``eval_every`` steps.

    Args:
        model: on ``device``; with ``resume``, already holding the checkpoint's weights.
        train, val: batches of the two splits, of what ``model`` takes: pictures or features.
        optimizer: over the model's trainable parameters.
        schedule: stepped by the number of the optimiser step; None for constant rates.
        resume: the state that the journal was given with the checkpoint.
        world: the processes that train together, each with its slice of the batches and equal weights; their journals are told
            the same, whatever slice they have.

    Raises:
        NonFiniteError: the loss, a gradient or a parameter became infinite or undefined; the step was not taken, no state saved.
        Interrupted: a signal came, to any of the processes; a checkpoint was saved.
        PeerError: another process has ended.
        ArtefactError: ``resume`` is no such state, or one of another model or optimiser.
    """
    step = Step(model, optimizer, settings, device, journal.note, world)
    ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay is not None else None
    state = FitState(micro_batch=settings.micro_batch)
    if resume is not None:
        state = read_record(FitState, resume.get("loop"), "loop")
        load_part(resume, "optimizer", optimizer.load_state_dict)
        load_part(resume, "scaler", step.scaler.load_state_dict)
        step.micro_batch = state.micro_batch
        if ema is not None:
            load_part(resume, "ema", ema.module.load_state_dict)
    saved_at = time.monotonic()
    window, epoch_window = (read_record(_Window, each, "window") for each in (state.window, state.epoch_window))
    evaluated = ema.module if ema is not None else model
    learns = any(module.alpha.requires_grad for _, module in named_arelus(model))
    if settings.compile:
        torch.compiler.reset()  # what was compiled for earlier runs counts towards the limit, beyond which nothing is
        for each in {model, evaluated}:
            each.compile(dynamic=False)

    def learning_rate() -> float:
        # The backbone's rate where it trains, else the head's: alpha and beta may have one of their own.
        rates = {str(group["name"]).removesuffix("-no-decay"): float(group["lr"]) for group in optimizer.param_groups}
        return rates.get("backbone", rates.get("head", next(iter(rates.values()))))

    def log_training() -> None:
        nonlocal window
        if window.images:
            journal.row(
                {"step": state.step, "epoch": state.epoch, "split": "train", **window.means(), "lr": learning_rate()}
                | {"seconds": round(state.seconds, 3)}
            )
        window = _Window()

    def evaluate_now() -> Evaluation:
        layout, at_once = settings.channels_last, step.micro_batch
        return evaluate(evaluated, val.epoch(), device, settings.amp, channels_last=layout, micro_batch=at_once, world=world)

    def log_evaluation() -> Evaluation:
        log_training()
        result = evaluate_now()
        row = {"step": state.step, "epoch": state.epoch, "split": "val", "loss": result.loss, "top1": result.top1}
        row |= {"lr": learning_rate(), "seconds": round(state.seconds, 3), "correct": pack_flags(result.correct.numpy())}
        if learns:
            row["sites"] = site_values(evaluated)
        journal.row(row)
        if (result.top1, -result.loss) > (state.best_top1, -state.best_loss):
            state.best_top1, state.best_loss, state.best_step = result.top1, result.loss, state.step
            journal.best(evaluated.state_dict(), result, state.step)
        return result

    def require_finite_weights() -> None:
        if (name := nonfinite_parameter(model)) is not None:
            raise NonFiniteError(f"parameter {name} became infinite or undefined at step {state.step}: lower --lr")

    def save() -> None:
        nonlocal saved_at
        require_finite_weights()
        saved_at = time.monotonic()
        state.window, state.epoch_window = asdict(window), asdict(epoch_window)
        saved: dict[str, Any] = {"loop": asdict(state), "optimizer": optimizer.state_dict()}
        saved["processes"] = world.size
        saved["scaler"] = step.scaler.state_dict()
        saved["ema"] = ema.module.state_dict() if ema is not None else None
        journal.checkpoint(state.step, model.state_dict(), saved)

    def save_is_due() -> bool:
        by_step = settings.save_every_steps is not None and state.step % settings.save_every_steps == 0
        waited = settings.save_every_seconds is not None and time.monotonic() - saved_at >= settings.save_every_seconds
        return by_step or (settings.save_every_seconds is not None and bool(world.highest(int(waited))))

    def stop_if_asked(*, saved: bool = False) -> None:
        if number := world.highest(stop.signal_number or 0):
            if not saved:
                save()
            raise Interrupted(f"stopped after step {state.step}", number)

    final = log_evaluation() if resume is None else None
    while state.epoch < settings.epochs and not state.stopped_early:
        step.train_mode()
        batches = train.epoch(state.epoch, first=state.batch)
        while state.batch < len(train):
            started = time.perf_counter()
            if schedule is not None:
                schedule.step(state.step)
            taken = [next(batches) for _ in range(min(settings.grad_accum_steps, len(train) - state.batch))]
            if state.batch == 0:
                pictures = train.first_pictures(state.epoch) if isinstance(train, FeatureBatches) else _whole(taken[0], world)
                state.digests.append({"order": train.order_digest(state.epoch), "first_batch": batch_digest(*pictures)})
            told = step.gradients(taken, state.step)
            state.micro_batch = step.micro_batch
            step.require_finite(told, taken, state.step)
            for (loss, correct), (_, labels) in zip(told, taken, strict=True):
                window.add(loss, correct, len(labels) * world.size)
                epoch_window.add(loss, correct, len(labels) * world.size)
            step.update()
            if ema is not None:
                ema.update(model, step=state.step)
            images = sum(len(labels) for _, labels in taken) * world.size
            state.step += 1
            state.batch += len(taken)
            state.images += images
            elapsed = time.perf_counter() - started
            state.seconds += elapsed
            journal.progress(state.step, loss, correct / len(labels) / world.size, images / elapsed)
            epoch_over = state.batch >= len(train)
            if state.step % settings.log_every == 0 and not epoch_over:
                log_training()
            if settings.eval_every and state.step % settings.eval_every == 0 and not epoch_over:
                log_evaluation()
            if not epoch_over:
                stop_if_asked()
                if save_is_due():
                    save()
        state.epoch += 1
        state.batch = 0
        final = log_evaluation()
        means, epoch_window = epoch_window.means(), _Window()
        journal.epoch_end(
            {"epoch": state.epoch, "step": state.step, "train_loss": means["loss"], "train_top1": means["top1"]}
            | {"val_loss": final.loss, "val_top1": final.top1, "lr": learning_rate(), "seconds": round(state.seconds, 3)}
        )
        state.stale_epochs = 0 if final.top1 > state.best_epoch_top1 else state.stale_epochs + 1
        state.best_epoch_top1 = max(final.top1, state.best_epoch_top1)
        state.stopped_early = settings.patience is not None and state.stale_epochs >= settings.patience
        if due := settings.save_epochs or save_is_due():
            save()
        else:
            require_finite_weights()
        stop_if_asked(saved=due)
    if final is None:  # resumed after its last step: only the end was missing
        final = evaluate_now()
    return FitResult(state, final)


def _whole(batch: Batch, world: World) -> Batch:
    """The batch that this process has a slice of."""
    if world.size == 1:
        return batch
    pictures, labels = zip(*world.gather(batch), strict=True)
    return torch.cat(pictures), torch.cat(labels)


class SilentJournal:
    """Implements the loop's ``Journal`` for a process that does not lead: the first one tells and writes the same."""

    def row(self, row: dict[str, Any]) -> None:
        pass

    def progress(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        pass

    def best(self, weights: dict[str, Tensor], evaluation: Evaluation, step: int) -> None:
        pass

    def epoch_end(self, row: dict[str, Any]) -> None:
        pass

    def checkpoint(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass
