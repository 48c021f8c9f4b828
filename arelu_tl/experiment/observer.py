"""The callbacks of a study. This observer ignores them; the command line's shows progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arelu_tl.data.folder import PictureFolder
from arelu_tl.records.rows import EpochRow, MetricRow, Summary
from arelu_tl.surgery.convert import SurgeryReport


class Observer:
    """Callbacks to override; called in the training process between steps: keep them fast."""

    def checking_pictures(self, done: int, total: int) -> None:
        """``done`` of ``total`` pictures have been decoded."""

    def study_started(self, path: Path, folder: PictureFolder, arms: Sequence[str]) -> None:
        """The folder of the study exists and its pictures are known."""

    def sweep_planned(self, cells: int, waiting: int, seconds: float) -> None:
        """A sweep has ``cells`` runs; training the ``waiting`` ones takes about ``seconds``."""

    def cell_started(self, number: int, cells: int, name: str) -> None:
        """Run ``number`` of the sweep's ``cells`` begins; called only if runs are sequential."""

    def cell_ended(
        self, name: str, status: str, summary: Summary | None, done: int, cells: int, to_go: float
    ) -> None:
        """A run of a sweep that trains several at once has ended.

        Args:
            status: finished, failed or interrupted.
            summary: content of its summary.json, if it is finished.
            done: how many of the ``cells`` runs to train have ended.
            to_go: estimated seconds until the last one ends.
        """

    def run_started(
        self,
        arm: str,
        total_steps: int,
        total_epochs: int,
        weights: str,
        report: SurgeryReport | None,
    ) -> None:
        """The model of an arm is ready; training begins or resumes."""

    def progress(
        self, arm: str, step: int, loss: float, top1: float, images_per_second: float
    ) -> None:
        """One optimiser step was taken."""

    def evaluated(self, arm: str, row: MetricRow) -> None:
        """The model was evaluated; ``row`` is a validation row of metrics.jsonl."""

    def epoch_end(self, arm: str, row: EpochRow) -> None:
        """An epoch has ended; ``row`` is its row of results.csv."""

    def run_finished(self, arm: str, summary: Summary) -> None:
        """A run has finished; ``summary`` is the content of its summary.json."""

    def note(self, text: str) -> None:
        """Show a message that the user should know but need not act on."""
