"""Write what the training loop reports to the files in a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from arelu_tl.data.split import Sample
from arelu_tl.experiment.observer import Observer
from arelu_tl.experiment.tensorboard import TensorBoardLog
from arelu_tl.records import runs
from arelu_tl.records.card import ModelCard
from arelu_tl.records.csv_table import csv_text
from arelu_tl.records.rows import EpochRow, MetricRow
from arelu_tl.records.run_log import RunLog
from arelu_tl.records.storage import write_text
from arelu_tl.records.weights import save_weights
from arelu_tl.training.checkpoint import save_checkpoint
from arelu_tl.training.evaluate import Evaluation


class RunJournal:
    """Implements the loop's ``Journal`` on a folder, and forwards progress to an observer."""

    def __init__(
        self,
        path: Path,
        card: ModelCard,
        val_samples: Sequence[Sample],
        observer: Observer,
        *,
        kept: dict[str, Any] | None = None,
        keep: dict[str, int] | None = None,
        tensorboard: TensorBoardLog | None = None,
    ) -> None:
        """Open the files in ``path``.

        Args:
            kept: added to the state of every checkpoint.
            keep: file lengths from a checkpoint's state; the logs are cut back to them.
            tensorboard: also gets every row, and is closed with the journal.
        """
        self.path = path
        self.card = card
        self.val_samples = val_samples
        self.observer = observer
        self._kept = kept or {}
        self._tensorboard = tensorboard
        self._log = RunLog(path, keep=keep)

    def row(self, row: MetricRow) -> None:
        """Append a row to metrics.jsonl."""
        self._log.metric(row)
        if self._tensorboard is not None:
            self._tensorboard.row(row)
        if row["split"] == "val":
            self.observer.evaluated(self.card.arm, row)

    def progress(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        """Pass a step's progress on to the observer."""
        self.observer.progress(self.card.arm, step, loss, top1, images_per_second)

    def best(self, weights: dict[str, Tensor], evaluation: Evaluation, step: int) -> None:
        """Save the best weights and their predictions."""
        card = replace(self.card, step=step, top1=evaluation.top1, loss=evaluation.loss)
        save_weights(self.path / runs.BEST, weights, card.to_json())
        write_text(
            self.path / runs.PREDICTIONS,
            predictions_csv(self.val_samples, self.card.classes, evaluation),
        )

    def epoch_end(self, row: EpochRow) -> None:
        """Append a row to results.csv."""
        self._log.epoch(row)
        self.observer.epoch_end(self.card.arm, row)

    def checkpoint(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Save a checkpoint, with the lengths of the logs in its state."""
        state = {**state, **self._kept, "lengths": self._log.lengths()}
        save_checkpoint(self.path / runs.CHECKPOINTS, step, weights, state)

    def note(self, text: str) -> None:
        """Pass a message on to the observer."""
        self.observer.note(text)

    def close(self) -> None:
        """Close the files."""
        try:
            self._log.close()
        finally:
            if self._tensorboard is not None:
                self._tensorboard.close()


def predictions_csv(
    samples: Sequence[Sample], classes: Sequence[str], evaluation: Evaluation
) -> str:
    """Return a CSV table (path, label, predicted, probability) of all evaluated pictures."""
    evaluated = zip(
        samples, evaluation.predicted.tolist(), evaluation.probability.tolist(), strict=True
    )
    rows = ([s.path, classes[s.label], classes[p], f"{q:.6f}"] for s, p, q in evaluated)
    return csv_text(["path", "label", "predicted", "probability"], rows)
