"""What a study tells whoever watches; this one is deaf. The command line's shows tables and progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arelu_tl.data.folder import PictureFolder
from arelu_tl.surgery.convert import SurgeryReport


class Observer:
    """Override what you want to see. Called from the training process, between steps; keep it quick."""

    def checking_pictures(self, done: int, total: int) -> None:
        """``done`` of ``total`` pictures have been decoded."""

    def study_started(self, path: Path, folder: PictureFolder, arms: list[str]) -> None:
        """The folder of the study exists and its pictures are known."""

    def sweep_planned(self, cells: int, waiting: int, seconds: float) -> None:
        """A sweep of ``cells`` runs, of which ``waiting`` have to be trained, in about ``seconds``."""

    def cell_started(self, number: int, cells: int, name: str) -> None:
        """Run ``number`` of the sweep's ``cells`` begins; told only where they are trained one after the other."""

    def cell_ended(self, name: str, status: str, summary: dict[str, Any], done: int, cells: int, to_go: float) -> None:
        """A run of a sweep that trains several at once has ended.

        Args:
            status: finished, failed or interrupted.
            summary: its summary.json, where it is finished, else {}.
            done: how many of those that waited have ended, of ``cells``.
            to_go: seconds until the last one ends, as far as can be told.
        """

    def run_started(self, arm: str, total_steps: int, total_epochs: int, weights: str, report: SurgeryReport | None) -> None:
        """The model of an arm is ready; training begins or goes on."""

    def progress(self, arm: str, step: int, loss: float, top1: float, images_per_second: float) -> None:
        """One optimiser step was taken."""

    def evaluated(self, arm: str, row: dict[str, Any]) -> None:
        """A validation row, as in metrics.jsonl."""

    def epoch_end(self, arm: str, row: dict[str, Any]) -> None:
        """An epoch's row, as in results.csv."""

    def run_finished(self, arm: str, summary: dict[str, Any]) -> None:
        """The run's summary.json."""

    def note(self, text: str) -> None:
        """Something a user should know and need not act on."""
