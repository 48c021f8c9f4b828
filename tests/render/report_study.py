"""Studies for the page's tests, as training leaves them: class names that attack the page, predictions, real curves."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from run_folders import draw_correct, write_run

from arelu_tl.analysis.results import Comparison
from arelu_tl.records.csv_table import csv_text
from arelu_tl.records.runs import RunRecord
from arelu_tl.records.storage import write_text

NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$a$ \\frac{",
    "right\u202eleft\nline",
)
PICTURES = 40


@dataclass(frozen=True)
class Study:
    """Two rates, two seeds, three arms; written once for all tests that only read it."""

    path: Path
    runs: list[RunRecord]
    comparison: Comparison
    page: Path

    @property
    def html(self) -> str:
        return self.page.read_text(encoding="utf-8")


def picture_path(number: int) -> str:
    return f"val/class {number % len(NASTY)}/{number}.png"


def write_grid(
    folder: Path,
    arms: tuple[str, ...],
    rates: tuple[float, ...],
    seeds: tuple[int, ...],
    *,
    evaluations: int = 6,
    classes: tuple[str, ...] = NASTY,
    **settings: object,
) -> None:
    """Runs that learn: a larger rate learns faster, and every arm but relu a little faster still."""
    stream = np.random.default_rng(1)
    for lr in rates:
        for seed in seeds:
            for arm in arms:
                speed = lr**0.4 * (3 if arm == "relu" else 6)
                curve = 0.1 + 0.85 * (1 - np.exp(-speed * 6 * np.arange(evaluations) / evaluations))
                correct = draw_correct(stream, curve, PICTURES)
                path = write_run(folder, arm, correct=correct, lr=lr, seed=seed, **settings)
                write_predictions(
                    path, correct[int(np.argmax(correct.mean(axis=1)))].tolist(), classes
                )


def write_predictions(run: Path, right: list[bool], classes: tuple[str, ...]) -> None:
    rows = []
    for number, good in enumerate(right):
        label = number % len(classes)
        predicted = label if good else (label + 1) % len(classes)
        rows.append(
            [picture_path(number), classes[label], classes[predicted], f"{0.5 + number / 100:.6f}"]
        )
    write_text(
        run / "predictions.csv", csv_text(["path", "label", "predicted", "probability"], rows)
    )
