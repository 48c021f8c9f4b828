"""What a comparison finds, as data: the content of comparison.json, which tables, figures and the report are drawn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.pairing import BASELINE, Failure
from arelu_tl.analysis.statistics import PairedDifference

# What a verdict can say of several seeds beside the words of its own, and of one seed, which knows of itself alone.
NOT_DETECTABLE: Final = "no detectable difference"
AHEAD: Final = "ahead in this run"
BEHIND: Final = "behind in this run"


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
        mcnemar_p: exact McNemar test of their best checkpoints on the same pictures; None without predictions. It is about these
            two nets and says nothing of the arms.
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
        p_corrected: p of ``aulc``, corrected (Holm) for all comparisons with the baseline in this report; None for one seed.
        one_seed: whether the verdict is of one run each, so that it says nothing of the arms.
        verdict: "faster" or "slower", of one seed "ahead in this run" or "behind in this run"; "no detectable difference".
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
        p_corrected: p of ``accuracy``, corrected (Holm) for all comparisons with the baseline in this report; None for one seed.
        at_edge: those whose best rate is the "smallest" or "largest" that was tried, so that a better one may lie beyond.
        one_seed: whether the verdict is of one seed, by which the rates were chosen, too.
        verdict: "better" or "worse", of one seed "ahead in this run" or "behind in this run"; "no detectable difference".
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

    @property
    def judged(self) -> list[RateComparison | BestRateComparison]:
        """Everything that has a verdict of an arm beside the baseline, in the order in which it is told."""
        return [*self.rates, *self.best]

    def failing(self, verdicts: Collection[str], *, one_seed: bool = False) -> list[str]:
        """Whoever got one of ``verdicts`` ("slower", "worse"), in words; with ``one_seed`` also who is behind in one run."""
        rates, best = self._asked(verdicts)
        found = [f"{e.arm} is slower than {e.reference} at learning rate {e.lr:g}" for e in rates if e.verdict == "slower"]
        found += [f"{e.arm} is worse than {e.reference} at their best rates" for e in best if e.verdict == "worse"]
        if one_seed:
            found += [f"{e.arm} is behind {e.reference} in one run at {e.lr:g}" for e in rates if e.verdict == BEHIND]
            found += [f"{e.arm} is behind {e.reference} in one run at their best rates" for e in best if e.verdict == BEHIND]
        lost = [place for place, seeds in self._lost(verdicts).items() if seeds > 1 or one_seed]
        return found + [f"{arm} failed in every run at learning rate {lr:g}" for arm, lr in sorted(lost)]

    def of_one_seed(self, verdicts: Collection[str]) -> list[str]:
        """Whom ``failing`` with ``verdicts`` says nothing of, because there is one seed: "arelu at learning rate 0.001"."""
        rates, best = self._asked(verdicts)
        once = [(e.arm, e.lr) for e in rates if e.one_seed] + [place for place, n in self._lost(verdicts).items() if n == 1]
        found = [f"{arm} at learning rate {lr:g}" for arm, lr in sorted(once)]
        return found + [f"{e.arm} at its best rate" for e in best if e.one_seed]

    def _asked(self, verdicts: Collection[str]) -> tuple[list[RateComparison], list[BestRateComparison]]:
        return self.rates if "slower" in verdicts else [], self.best if "worse" in verdicts else []

    def _lost(self, verdicts: Collection[str]) -> Counter[tuple[str, float]]:
        """In how many seeds an arm failed where it never gets through, and so has no curve to be slower by."""
        failed = {(f.arm, f.lr, f.seed) for f in self.failed} if "slower" in verdicts else set()
        return Counter((arm, lr) for arm, lr, _ in failed if self.cell(arm, lr) is None and self.cell(BASELINE, lr))

    def to_json(self) -> dict[str, Any]:
        """Content of comparison.json."""
        return asdict(self)
