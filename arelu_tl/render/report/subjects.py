"""The run or pair that is shown where only one can be, and its best checkpoints' predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arelu_tl.analysis.curves import Predictions, read_predictions
from arelu_tl.analysis.results import Comparison, PairResult, RateComparison
from arelu_tl.records.runs import RunRecord

# The arm that the page is about, if it takes part; its variants are called "arelu (...)".
_SUBJECT = "arelu"


def shown_pair(comparison: Comparison) -> tuple[RateComparison, PairResult] | None:
    """The pair of the first seed, at the arm's best rate or else at its first.

    The arm is AReLU, or else the first one; None if nothing is compared.
    """
    arms = [found.arm for found in comparison.rates]
    if not arms:
        return None
    arm = min(arms, key=lambda name: (name != _SUBJECT, not name.startswith(f"{_SUBJECT} ("), name))
    best = {found.lr for found in comparison.best if found.arm == arm}
    of_arm = [found for found in comparison.rates if found.arm == arm]
    chosen = next((found for found in of_arm if found.lr in best), of_arm[0])
    return chosen, chosen.pairs[0]


def learning_run(comparison: Comparison, runs: Mapping[str, RunRecord]) -> RunRecord | None:
    """The first seed's run, at its best rate, of the first arm that learns alpha and beta."""
    for cell in comparison.cells:
        if runs[cell.runs[0]].config.arm != _SUBJECT:
            continue
        best = {found.lr for found in comparison.best if found.arm == cell.arm}
        chosen = next((c for c in comparison.cells if c.arm == cell.arm and c.lr in best), cell)
        return runs[chosen.runs[0]]
    return None


@dataclass(frozen=True)
class Judged:
    """A validation picture with the predictions of both best checkpoints.

    Each probability is that of the predicted class.
    """

    path: str
    label: str
    predicted: str
    probability: float
    reference_predicted: str
    reference_probability: float


@dataclass(frozen=True)
class Verdicts:
    """Predictions of a pair's best checkpoints for the pictures that both evaluated.

    The pictures are in the run's order.
    """

    pictures: Sequence[Judged]

    def gained(self) -> list[Judged]:
        """Pictures that only the arm predicts correctly, the most confident first."""
        return self._surest(
            [p for p in self.pictures if p.predicted == p.label != p.reference_predicted]
        )

    def lost(self) -> list[Judged]:
        """Pictures that only the reference predicts correctly, the most confident first."""
        return self._surest(
            [p for p in self.pictures if p.reference_predicted == p.label != p.predicted]
        )

    @staticmethod
    def _surest(pictures: list[Judged]) -> list[Judged]:
        return sorted(pictures, key=lambda p: (-(p.probability + p.reference_probability), p.path))


def read_verdicts(pair: PairResult, runs: Mapping[str, RunRecord]) -> Verdicts | None:
    """Read the predictions of both runs; None if one has not written them yet.

    Raises:
        ArtefactError: predictions.csv cannot be read.
    """
    arm, reference = (read_predictions(runs[path]) for path in (pair.run, pair.reference_run))
    if arm is None or reference is None:
        return None
    theirs = {path: number for number, path in enumerate(reference.paths)}
    return Verdicts(
        [
            _judged(arm, i, reference, theirs[path])
            for i, path in enumerate(arm.paths)
            if path in theirs
        ]
    )


def _judged(arm: Predictions, i: int, reference: Predictions, j: int) -> Judged:
    return Judged(
        arm.paths[i],
        arm.labels[i],
        arm.predicted[i],
        arm.probability[i],
        reference.predicted[j],
        reference.probability[j],
    )
