"""Exact resume: interrupted after any step, under any option, a training ends as if it had not been, to the last bit; and nothing
is saved for nothing: with any single item of the state lost, these tests would notice.

The fast suite takes each option by itself and all together at three steps; the slow one (``-m slow``) every combination at all.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from test_fit import CPU, DATA_CONFIG, Memory
from torch import Tensor, nn

from arelu_tl.data.folder import scan_folder
from arelu_tl.data.loader import eval_view, make_eval_batches, make_train_batches, train_view
from arelu_tl.errors import Interrupted
from arelu_tl.records.settings import AugmentSettings, OptimizerSettings
from arelu_tl.surgery.convert import convert
from arelu_tl.training.fit import FitSettings, FitState, fit
from arelu_tl.training.interruption import StopRequest
from arelu_tl.training.optimisation import make_optimizer, make_schedule

OPTIONS: dict[str, dict[str, Any]] = {
    "workers": {"workers": 2},
    "ema": {"ema_decay": 0.9},
    "accumulation": {"grad_accum_steps": 2},
    "drop path": {"drop_path_rate": 0.3},
    "bfloat16": {"amp": torch.bfloat16},
    "parts": {"micro_batch": 3},
}
EPOCHS = 3
Saved = tuple[int, dict[str, Tensor], dict[str, Any]]


class Training:
    """One training, as often as it is asked for."""

    def __init__(self, pictures: Path, *, lr: float = 1e-3, **options: Any) -> None:
        self.folder = scan_folder(pictures)
        self.lr = lr
        self.workers = options.pop("workers", 0)
        self.net = {"drop_rate": 0.2, "drop_path_rate": options.pop("drop_path_rate", 0.0)}
        self.settings = FitSettings(
            **{"epochs": EPOCHS, "eval_every": 3, "log_every": 3, "seed": 4, **options}
        )

    def run(
        self, *, stop_at: int | None = None, saved: Saved | None = None
    ) -> tuple[dict[str, Any], Memory]:
        """(all that it ends with, its journal)."""
        torch.manual_seed(0)
        model: nn.Module = timm.create_model("test_resnet", num_classes=3, **self.net)
        convert(model, example_input=torch.zeros(1, 3, 32, 32))
        view, splits, root = (
            train_view(DATA_CONFIG, AugmentSettings(scale=(0.5, 1.0))),
            self.folder.splits,
            self.folder.root,
        )
        train = make_train_batches(
            root, splits["train"], view, batch_size=5, seed=3, workers=self.workers
        )
        val = make_eval_batches(
            root, splits["val"], eval_view(DATA_CONFIG), batch_size=5, workers=self.workers
        )
        optimizer = make_optimizer(
            model,
            ["fc"],
            OptimizerSettings(opt="adamw", lr=self.lr, arelu_lr=10 * self.lr, weight_decay=0.05),
        )
        schedule = make_schedule(
            optimizer, sched="cosine", epochs=EPOCHS, steps_per_epoch=4, warmup_epochs=0.5
        )
        stop = StopRequest()
        journal = Memory(stop, stop_at)
        if saved is not None:
            model.load_state_dict(saved[1])
        resume = None if saved is None else copy.deepcopy(saved[2])
        try:
            result = fit(
                model,
                train,
                val,
                optimizer,
                schedule,
                self.settings,
                device=CPU,
                journal=journal,
                stop=stop,
                resume=resume,
            )
        except Interrupted:
            return {}, journal
        state = {key: value for key, value in asdict(result.state).items() if key != "seconds"}
        # Without the clock; the last saved state holds the optimiser's and the averaged model's.
        last = (
            {key: value for key, value in journal.saved[-1][2].items() if key != "loop"}
            if journal.saved
            else None
        )
        return {
            "weights": model.state_dict(),
            "state": state,
            "last": last,
            "final": result.final,
        }, journal

    def go_on(self, saved: Saved, before: Memory) -> dict[str, Any]:
        """All that it ends with when it goes on from ``saved``, what ``before`` was told included."""
        end, after = self.run(saved=saved)
        rows = [before.rows[: saved_rows(before, saved)] + after.rows, before.bests + after.bests]
        return {
            **end,
            "rows": rows,
            "epochs": [timeless(row) for row in before.epochs + after.epochs],
        }

    def whole(self) -> dict[str, Any]:
        end, journal = self.run()
        return {
            **end,
            "rows": [journal.rows, journal.bests],
            "epochs": [timeless(row) for row in journal.epochs],
        }


def saved_rows(journal: Memory, saved: Saved) -> int:
    return sum(row["step"] <= saved[0] for row in journal.rows)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


def same(a: Any, b: Any) -> bool:
    """To the last bit, through containers."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return same(vars(a), vars(b))
    return bool(a == b)


def interrupted(training: Training, step: int) -> tuple[Saved, Memory]:
    _, journal = training.run(stop_at=step)
    return journal.saved[-1], journal


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    folder: Path = make_folder()
    return folder


def _resumes_exactly(pictures: Path, options: tuple[str, ...], every: bool) -> None:
    given = {key: value for name in options for key, value in OPTIONS[name].items()}
    training = Training(pictures, **given)
    whole = training.whole()
    steps = range(1, whole["state"]["step"]) if every else (1, 2, whole["state"]["step"] - 1)
    for step in steps:
        saved, before = interrupted(training, step)
        assert saved[0] == step
        assert same(training.go_on(saved, before), whole), step


@pytest.mark.parametrize("options", [(), tuple(OPTIONS)], ids=lambda o: "+".join(o) or "plain")
def test_interrupted_and_resumed_it_ends_bit_equal(
    pictures: Path, options: tuple[str, ...]
) -> None:
    _resumes_exactly(pictures, options, every=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        combination
        for n in range(len(OPTIONS) + 1)
        for combination in itertools.combinations(OPTIONS, n)
    ],
    ids=lambda o: "+".join(o) or "plain",
)
def test_under_every_combination_after_every_step(pictures: Path, options: tuple[str, ...]) -> None:
    _resumes_exactly(pictures, options, every=True)


def test_interrupted_three_times_it_ends_bit_equal(pictures: Path) -> None:
    training = Training(pictures, ema_decay=0.9)
    whole = training.whole()
    saved, before = interrupted(training, 2)
    for step in (5, 7):
        _, journal = training.run(stop_at=step, saved=saved)
        journal.rows = before.rows + journal.rows
        journal.bests, journal.epochs = before.bests + journal.bests, before.epochs + journal.epochs
        saved, before = journal.saved[-1], journal
    assert same(training.go_on(saved, before), whole)


Mutation = Callable[[dict[str, Tensor], dict[str, Any]], None]


def _lose_field(name: str) -> Mutation:
    return lambda _, state: state["loop"].__setitem__(name, getattr(FitState(), name))


def _lose_moment(name: str) -> Mutation:
    return lambda _, state: next(iter(state["optimizer"]["state"].values()))[name].zero_()


def _lose_weight(part: str) -> Mutation:
    def lose(weights: dict[str, Tensor], _: dict[str, Any]) -> None:
        next(value for key, value in weights.items() if key.endswith(part)).zero_()

    return lose


def _lose_average(_: dict[str, Tensor], state: dict[str, Any]) -> None:
    next(value for key, value in state["ema"].items() if key.endswith("weight")).zero_()


_WEIGHTS = ("conv1.weight", "running_mean", "num_batches_tracked", "alpha", "beta")
# Everything that is saved, but for the clock (seconds), the schedule's rates, which follow from the step, the float16 scaler,
# which is off on the processor, and the number of processes, which is only told.
MUTANTS: dict[str, Mutation] = {
    **{name: _lose_field(name) for name in FitState.__dataclass_fields__ if name != "seconds"},
    **{f"optimizer {name}": _lose_moment(name) for name in ("exp_avg", "exp_avg_sq", "step")},
    **{
        f"weights {part}": _lose_weight(part)
        for part in ("conv1.weight", "running_mean", "num_batches_tracked", "alpha", "beta")
    },
    "average": _lose_average,
}


@pytest.fixture(scope="module")
def endings(pictures: Path) -> list[tuple[Training, Saved, Memory, dict[str, Any]]]:
    """Interrupted trainings in which, one or the other, each item is worth something."""
    made = []
    still = {"lr": 1e-12, "patience": 2}  # gets no better: counts stale epochs, and ends early
    for step, options in (
        (7, {"ema_decay": 0.9, "micro_batch": 3}),
        (7, {"eval_every": 2}),
        (9, still),
        (11, {"lr": 1e-2}),
    ):
        training = Training(pictures, **options)
        whole = training.whole()
        if "patience" in options:  # the last state of all: it has ended
            _, journal = training.run()
            saved = journal.saved[-1]
            made.append((training, saved, journal, training.go_on(saved, journal)))
            step = min(step, whole["state"]["step"] - 1)
        saved, before = interrupted(training, step)
        made.append((training, saved, before, training.go_on(saved, before)))
    return made


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_item_of_the_state_is_missed(
    mutant: str, endings: list[tuple[Training, Saved, Memory, dict[str, Any]]]
) -> None:
    for training, saved, before, whole in endings:
        weights, state = copy.deepcopy(saved[1]), copy.deepcopy(saved[2])
        try:
            MUTANTS[mutant](weights, state)
        except TypeError:  # this training has no averaged model
            continue
        if same((weights, state), saved[1:]):
            continue  # it was worth nothing here
        try:
            end = training.go_on((saved[0], weights, state), before)
        except Exception:  # noqa: BLE001  noticed at once is noticed
            return
        if not same(end, whole):
            return
    pytest.fail(f"nobody notices when {mutant} is lost")
