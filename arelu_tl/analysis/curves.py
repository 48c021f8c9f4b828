"""A run's evaluations as arrays, and which validation pictures each classified correctly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from arelu_tl.errors import ArtefactError
from arelu_tl.records.csv_table import read_table
from arelu_tl.records.runs import (
    METRICS,
    PREDICTIONS,
    RunRecord,
    aulc,
    step_weights,
    steps_to_target,
    unpack_flags,
)


@dataclass(frozen=True)
class Curve:
    """The evaluations of a run, in order of steps.

    Attributes:
        steps: int64 (K,), ascending.
        top1, loss, seconds: float64 (K,): accuracy 0..1, loss in nats, seconds of training so far.
        flags: which pictures each evaluation classified correctly, packed (``records.flags``); []
            if the run has not recorded it.
    """

    steps: NDArray[np.int64]
    top1: NDArray[np.float64]
    loss: NDArray[np.float64]
    seconds: NDArray[np.float64]
    flags: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """The last evaluated step."""
        return int(self.steps[-1])

    @cached_property
    def aulc(self) -> float:
        """Mean accuracy over the course of training, 0..1."""
        return aulc(self.steps.tolist(), self.top1.tolist())

    @cached_property
    def best(self) -> int:
        """Index of the best evaluation.

        Ranked as in training: by accuracy, then loss, then the earlier one.
        """
        return int(np.lexsort((self.steps, self.loss, -self.top1))[0])

    @cached_property
    def pictures(self) -> int | None:
        """Number of pictures evaluated; None if the run has not recorded them."""
        return int(self.flags[0].partition(":")[0]) if self.flags else None

    def correct(self) -> NDArray[np.bool_]:
        """Return whether each evaluation classified each picture correctly, bool (K, N).

        The result is not cached, because many large ones would fill the memory.

        Raises:
            ValueError: the run has not recorded it.
        """
        return unpack_flags(self.flags)

    def right(self, evaluation: int) -> NDArray[np.bool_]:
        """Return which pictures one evaluation classified correctly, (N,)."""
        (flags,) = unpack_flags([self.flags[evaluation]])
        return np.asarray(flags, dtype=bool)

    @cached_property
    def picture_aulc(self) -> NDArray[np.float64] | None:
        """Return each picture's area under its own curve of correctness (N,).

        Their mean is ``aulc``.
        """
        return step_weights(self.steps) @ self.correct() if self.flags else None

    def reached(self, target: float) -> int | None:
        """Return the index of the first evaluation that reaches ``target``, or None."""
        step = steps_to_target(self.steps.tolist(), self.top1.tolist(), target)
        return None if step is None else int(np.searchsorted(self.steps, step))

    def until(self, step: int) -> Curve:
        """Return the evaluations up to ``step``."""
        count = int(np.searchsorted(self.steps, step, side="right"))
        if count == len(self.steps):
            return self
        cut = {
            name: getattr(self, name)[:count]
            for name in ("steps", "top1", "loss", "seconds", "flags")
        }
        return replace(self, **cut)


def read_curve(run: RunRecord) -> Curve | None:
    """Read the run's validation curve; None if it has not been evaluated yet.

    Raises:
        ArtefactError: its rows are incomplete or contradict each other.
    """
    rows = run.curve("val")
    if not rows:
        return None
    try:
        steps = np.array([row["step"] for row in rows], dtype=np.int64)
        numbers = {
            key: np.array([row[key] for row in rows], dtype=float)
            for key in ("top1", "loss", "seconds")
        }
        flags = tuple(str(row["correct"]) for row in rows if "correct" in row)
        if (np.diff(steps) <= 0).any() or len({text.partition(":")[0] for text in flags}) > 1:
            raise ValueError("evaluations out of order, or of different pictures")
        return Curve(steps=steps, **numbers, flags=flags if len(flags) == len(rows) else ())
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{run.path / METRICS}: {error}") from None


@dataclass(frozen=True)
class Predictions:
    """The best checkpoint's prediction for each validation picture, in the run's order.

    Attributes:
        paths: relative to the folder of pictures.
        labels, predicted: class names.
        probability: of the predicted class, 0..1.
    """

    paths: list[str]
    labels: list[str]
    predicted: list[str]
    probability: list[float]

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.array(
            [a == b for a, b in zip(self.labels, self.predicted, strict=True)], dtype=bool
        )


def read_predictions(run: RunRecord) -> Predictions | None:
    """Read predictions.csv of a run; None if it does not exist yet.

    Raises:
        ArtefactError: it cannot be read.
    """
    path = run.path / PREDICTIONS
    if not path.exists():
        return None
    try:
        rows = read_table(path)
        return Predictions(
            paths=[row["path"] for row in rows],
            labels=[row["label"] for row in rows],
            predicted=[row["predicted"] for row in rows],
            probability=[float(row["probability"]) for row in rows],
        )
    except (KeyError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None
