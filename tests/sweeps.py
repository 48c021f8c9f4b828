"""A sweep that trains in seconds, for the tests of everything around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands import GIVEN

from arelu_tl.experiment.observer import Observer
from arelu_tl.records.config import FinetuneConfig, SweepConfig
from arelu_tl.records.storage import read_rows

TINY = {
    "model": "test_resnet",
    "pretrained": False,
    **GIVEN,
    "img_size": 32,
    "batch_size": 8,
    "epochs": 2,
    "workers": 0,
    "name": "grid",
}


def grid(pictures: Path, place: Path, **settings: Any) -> SweepConfig:
    return SweepConfig(
        **{**TINY, "data": pictures, "output": place, "lrs": [1e-3, 1e-2], **settings}
    )


class Watching(Observer):
    """Keeps the names of the cells that were trained (those that ended, where several are at once), and what was said."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.planned: tuple[int, int, float] | None = None
        self.ended: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def sweep_planned(self, cells: int, waiting: int, seconds: float) -> None:
        self.planned = cells, waiting, seconds

    def cell_started(self, number: int, cells: int, name: str) -> None:
        self.trained.append(name)

    def cell_ended(
        self, name: str, status: str, summary: dict[str, Any], done: int, cells: int, to_go: float
    ) -> None:
        self.trained.append(name)
        self.ended.append((status, done, cells))

    def note(self, text: str) -> None:
        self.notes.append(text)


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl but for the seconds."""
    return [
        {k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run / "metrics.jsonl")
    ]


def plain(pictures: Path, **settings: Any) -> FinetuneConfig:
    """A fine-tune as tiny, which leaves to ``auto`` what the user would."""
    tiny = {key: value for key, value in TINY.items() if key not in {*GIVEN, "name", "epochs"}}
    return FinetuneConfig(
        **{**tiny, "data": pictures, "epochs": 1, "device": "cpu", "cache": "off", **settings}
    )
