"""The findings of a comparison as data: the content of comparison.json.

Tables, figures and the report are made from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.pairing import BASELINE, Failure
from arelu_tl.analysis.statistics import PairedDifference

# Verdicts shared by all comparisons: of several seeds, and of one seed, which only describes
# itself.
NOT_DETECTABLE: Final = "no detectable difference"
AHEAD: Final = "ahead in this run"
BEHIND: Final = "behind in this run"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a quantity over runs.

    Attributes:
        mean, sd: over the runs; sd is None for one.
        values: of each run, in the order of the seeds.
    """

    mean: float
    sd: float | None
    values: list[float]


@dataclass(frozen=True)
class Cell:
    """One arm at one rate, over its seeds.

    Accuracies are 0..1, losses in nats, times in seconds of training.

    Attributes:
        runs: the run folders, in the order of ``seeds``.
        steps: last step that all figures cover.
        steps_to_target, seconds_to_target: time until ``target``, which is 95% of the baseline's
            best at this rate unless given.
        drift: drift of surgery, mean over the runs; None for the baseline.
        head_lrs: the classifier's learning rates, as far as they are recorded.
        probe_top1, probe_loss: results of a linear probe of the start, mean over the runs; None if
            there is none.
        curve: for figures: steps; at each step the mean, minimum and maximum of top1 and loss, and
            the mean seconds.
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
    head_lrs: list[float]
    probe_top1: float | None
    probe_loss: float | None
    curve: dict[str, list[float]] = field(repr=False)


@dataclass(frozen=True)
class PairResult:
    """The two runs of one seed, the arm's first.

    Attributes:
        mcnemar_p: exact McNemar test of their best checkpoints on the same pictures; None without
            predictions. It concerns these two nets and says nothing about the arms.
        proof: hashes of what both runs share; an entry is None if a run has not recorded it.
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
    """The arm's cost as a multiple of its reference's, mean over the pairs; None if unrecorded."""

    seconds_per_step: float | None
    images_per_second: float | None
    peak_memory: float | None


@dataclass(frozen=True)
class RateComparison:
    """An arm compared with its reference at one rate.

    Attributes:
        steps: last step at which both were evaluated, of the longest pair.
        cut: whether a run of a pair continued beyond the compared range.
        aulc: the difference that the verdict is about.
        failures: failed runs of the arm and of the reference at this rate.
        p_corrected: p of ``aulc``, corrected (Holm) for all comparisons with the baseline in this
            report; None for one seed.
        one_seed: whether the verdict is about one run each, and so says nothing about the arms.
        verdict: "faster" or "slower"; for one seed "ahead in this run" or "behind in this run"; or
            "no detectable difference".
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
    one_seed: bool
    verdict: str
    sentence: str
    pairs: list[PairResult]


@dataclass(frozen=True)
class BestRateComparison:
    """An arm at its best rate compared with its reference at its own.

    Attributes:
        rates_tried: number of rates that each side could choose from: those that all ``seeds`` have
            finished.
        rates_begun: number of rates with any runs.
        cross_fitted: whether the choice used other pictures than the judgement; False if results
            per picture were not recorded.
        choices, reference_choices: how often each rate was chosen, as shares.
        accuracy: cross-fitted accuracy of the best checkpoints, arm minus reference.
        arm_accuracy, reference_accuracy: the two sides of it.
        aulc: (arm, reference) mean accuracy over the course of training, at the rates chosen most
            often.
        steps_to_target: (arm, reference) at those rates, to 95% of the reference's best there.
        p_corrected: p of ``accuracy``, corrected (Holm) for all comparisons with the baseline in
            this report; None for one seed.
        at_edge: sides whose best rate is the "smallest" or "largest" tried, so that a better one
            may lie beyond.
        one_seed: whether the verdict is about one seed, which also chose the rates.
        verdict: "better" or "worse"; for one seed "ahead in this run" or "behind in this run"; or
            "no detectable difference".
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
    one_seed: bool
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Everything that ``compare`` found.

    Attributes:
        cells: each arm at each rate.
        rates: each arm against the baseline at each rate.
        best: each arm against the baseline, best rate against best rate.
        controls: the full swap against its controls at each rate.
        gain: what the gain is due to, in sentences.
        unpaired: runs without a partner, which are in no comparison.
        unfinished: runs that are not yet included in means, because others of their rate are
            further ahead.
        repeated: runs that do not count, because another represents their cell, or because they
            failed under other settings.
        failed, waiting, allowed: see ``pairing.Field``.
        uneven: events in which the trainings of a pair differed, in sentences.
        warnings: what a reader must know to interpret the rest.
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
        """Return the results of ``arm`` at ``lr``, or None."""
        return next((each for each in self.cells if (each.arm, each.lr) == (arm, lr)), None)

    @property
    def judged(self) -> list[RateComparison | BestRateComparison]:
        """Everything with a verdict on an arm against the baseline, in the order of the report."""
        return [*self.rates, *self.best]

    def failing(self, verdicts: Collection[str], *, one_seed: bool = False) -> list[str]:
        """Describe the arms that got one of ``verdicts`` ("slower", "worse").

        With ``one_seed``, arms that are behind in a single run are included.
        """
        rates, best = self._asked(verdicts)
        found = [
            f"{e.arm} is slower than {e.reference} at learning rate {e.lr:g}"
            for e in rates
            if e.verdict == "slower"
        ]
        found += [
            f"{e.arm} is worse than {e.reference} at their best rates"
            for e in best
            if e.verdict == "worse"
        ]
        if one_seed:
            found += [
                f"{e.arm} is behind {e.reference} in one run at {e.lr:g}"
                for e in rates
                if e.verdict == BEHIND
            ]
            found += [
                f"{e.arm} is behind {e.reference} in one run at their best rates"
                for e in best
                if e.verdict == BEHIND
            ]
        lost = [place for place, seeds in self._lost(verdicts).items() if seeds > 1 or one_seed]
        return found + [
            f"{arm} failed in every run at learning rate {lr:g}" for arm, lr in sorted(lost)
        ]

    def of_one_seed(self, verdicts: Collection[str]) -> list[str]:
        """List the comparisons that ``failing`` with ``verdicts`` cannot judge.

        They have only one seed. Example: "arelu at learning rate 0.001".
        """
        rates, best = self._asked(verdicts)
        once = [(e.arm, e.lr) for e in rates if e.one_seed] + [
            place for place, n in self._lost(verdicts).items() if n == 1
        ]
        found = [f"{arm} at learning rate {lr:g}" for arm, lr in sorted(once)]
        return found + [f"{e.arm} at its best rate" for e in best if e.one_seed]

    def _asked(
        self, verdicts: Collection[str]
    ) -> tuple[list[RateComparison], list[BestRateComparison]]:
        return self.rates if "slower" in verdicts else [], self.best if "worse" in verdicts else []

    def _lost(self, verdicts: Collection[str]) -> Counter[tuple[str, float]]:
        """Count the failed seeds of arms that fail in all, and so have no curve to be slower."""
        failed = {(f.arm, f.lr, f.seed) for f in self.failed} if "slower" in verdicts else set()
        return Counter(
            (arm, lr)
            for arm, lr, _ in failed
            if self.cell(arm, lr) is None and self.cell(BASELINE, lr)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of comparison.json."""
        return asdict(self)
