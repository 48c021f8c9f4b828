"""What a comparison finds, as data: the content of comparison.json, which tables, figures and the report are drawn from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.pairing import BASELINE, Failure
from arelu_tl.analysis.statistics import PairedDifference


@dataclass(frozen=True)
class Spread:
    """Attributes:
    mean, sd: over the runs; sd is None for one.
    values: of each run, in the order of the seeds.
    """

    mean: float
    sd: float | None
    values: list[float]


@dataclass(frozen=True)
class Cell:
    """One arm at one rate, over its seeds. Accuracies 0..1, losses in nats, times in seconds of training.

    Attributes:
        runs: the run folders, in the order of ``seeds``.
        steps: last step that all figures are up to.
        steps_to_target, seconds_to_target: until ``target``, 95% of the baseline's best at this rate unless it was given.
        drift: of surgery, mean over the runs; None for the baseline.
        curve: for figures: steps, and for each the mean, least and greatest top1 and loss, and the mean seconds.
    """

    arm: str
    lr: float
    seeds: list[int]
    runs: list[str]
    steps: int
    final_top1: Spread
    best_top1: Spread
    final_loss: Spread
    aulc: Spread
    target: float
    steps_to_target: TimeToTarget
    seconds_to_target: TimeToTarget
    seconds: Spread
    seconds_per_step: float | None
    images_per_second: float | None
    peak_memory_bytes: float | None
    drift: float | None
    curve: dict[str, list[float]] = field(repr=False)


@dataclass(frozen=True)
class PairResult:
    """The two runs of one seed, the arm's first.

    Attributes:
        mcnemar_p: exact McNemar test of their best checkpoints on the same pictures; None without predictions.
        proof: hashes of what both runs share; an entry is None where a run has not recorded it.
    """

    seed: int
    run: str
    reference_run: str
    steps: int
    statuses: tuple[str, str]
    aulc: tuple[float, float]
    final_top1: tuple[float, float]
    best_top1: tuple[float, float]
    final_loss: tuple[float, float]
    steps_to_target: tuple[int | None, int | None]
    mcnemar_p: float | None
    proof: dict[str, str | None]


@dataclass(frozen=True)
class Cost:
    """What the arm costs as a multiple of its reference, mean over the pairs; None where it was not recorded."""

    seconds_per_step: float | None
    images_per_second: float | None
    peak_memory: float | None


@dataclass(frozen=True)
class RateComparison:
    """An arm beside its reference at one rate.

    Attributes:
        steps: last step that both were evaluated at, of the longest pair.
        cut: whether a run of a pair went on beyond what it is compared up to.
        aulc: the difference that the verdict is about.
        failures: of the arm and of the reference at this rate.
        p_corrected: p of ``aulc``, corrected (Holm) for all comparisons with the baseline in this report.
        verdict: "faster", "slower" or "no detectable difference".
        sentence: the verdict in words.
    """

    arm: str
    reference: str
    lr: float
    seeds: list[int]
    steps: int
    cut: bool
    target: float
    aulc: PairedDifference
    final_top1: PairedDifference
    best_top1: PairedDifference
    final_loss: PairedDifference
    steps_to_target: tuple[TimeToTarget, TimeToTarget]
    seconds_to_target: tuple[TimeToTarget, TimeToTarget]
    cost: Cost
    failures: tuple[int, int]
    p_corrected: float | None
    verdict: str
    sentence: str
    pairs: list[PairResult]


@dataclass(frozen=True)
class BestRateComparison:
    """An arm at its best rate beside its reference at its own.

    Attributes:
        rates_tried: how many rates each had to choose from: those that all ``seeds`` have finished.
        rates_begun: how many there are any runs of.
        cross_fitted: whether the pictures that judge are others than those that chose; not where they were not recorded.
        choices, reference_choices: how often each rate was chosen, as shares.
        accuracy: cross-fitted accuracy of the best checkpoints, arm minus reference.
        arm_accuracy, reference_accuracy: the two sides of it.
        aulc: (arm, reference) mean accuracy on the way at the rates chosen most often.
        steps_to_target: (arm, reference) at those rates, to 95% of the reference's best there.
        p_corrected: p of ``accuracy``, corrected (Holm) for all comparisons with the baseline in this report.
        at_edge: those whose best rate is the "smallest" or "largest" that was tried, so that a better one may lie beyond.
        verdict: "better", "worse" or "no detectable difference".
    """

    arm: str
    reference: str
    seeds: list[int]
    lr: float
    reference_lr: float
    rates_tried: tuple[int, int]
    rates_begun: tuple[int, int]
    cross_fitted: bool
    choices: dict[float, float]
    reference_choices: dict[float, float]
    accuracy: PairedDifference
    arm_accuracy: float
    reference_accuracy: float
    aulc: tuple[float, float]
    target: float
    steps_to_target: tuple[TimeToTarget, TimeToTarget]
    at_edge: dict[str, str]
    p_corrected: float | None
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Everything that ``compare`` found.

    Attributes:
        cells: each arm at each rate.
        rates: each arm beside the baseline at each rate.
        best: each arm beside the baseline, best rate against best rate.
        controls: the full swap beside its controls at each rate.
        gain: in sentences, whose the gain is.
        unpaired: runs without a partner, not in any comparison.
        unfinished: runs that count in no mean yet, because others of their rate are further.
        repeated: runs that do not count, because another stands for their cell, or because they failed under other settings.
        failed, waiting, allowed: see ``pairing.Field``.
        uneven: what became of the two runs of a pair in unlike ways while they trained, in sentences.
        warnings: what a reader must know to read the rest.
    """

    cells: list[Cell]
    rates: list[RateComparison]
    best: list[BestRateComparison]
    controls: list[RateComparison]
    gain: list[str]
    unpaired: list[str]
    unfinished: list[str]
    failed: list[Failure]
    waiting: list[str]
    repeated: list[str]
    allowed: list[str]
    uneven: list[str]
    warnings: list[str]

    @property
    def arms(self) -> list[str]:
        """Names of the arms, the baseline first."""
        return sorted({cell.arm for cell in self.cells}, key=lambda arm: (arm != BASELINE, arm))

    def cell(self, arm: str, lr: float) -> Cell | None:
        """What is known of ``arm`` at ``lr``."""
        return next((each for each in self.cells if (each.arm, each.lr) == (arm, lr)), None)

    def failing(self, verdicts: Collection[str]) -> list[str]:
        """Whoever got one of ``verdicts`` ("slower", "worse"), in words."""
        told = [f"{each.arm} is slower than {each.reference} at learning rate {each.lr:g}" for each in self.rates]
        found = [text for text, each in zip(told, self.rates, strict=True) if each.verdict in verdicts]
        if "slower" in verdicts:  # an arm that never gets through at a rate has no curve to be slower by
            lost = {(f.arm, f.lr) for f in self.failed if self.cell(f.arm, f.lr) is None and self.cell(BASELINE, f.lr)}
            found += [f"{arm} failed in every run at learning rate {lr:g}" for arm, lr in sorted(lost)]
        return found + [f"{e.arm} is worse than {e.reference} at their best rates" for e in self.best if e.verdict in verdicts]

    def to_json(self) -> dict[str, Any]:
        """Content of comparison.json."""
        return asdict(self)
