"""Layer 3: statistics over run records. Pure functions, no torch."""

from arelu_tl.analysis.comparison import compare, compare_runs
from arelu_tl.analysis.convergence import TimeToTarget, aulc, common_steps, steps_to_target
from arelu_tl.analysis.pairing import BASELINE, differences
from arelu_tl.analysis.results import BestRateComparison, Cell, Comparison, PairResult, RateComparison
from arelu_tl.analysis.statistics import PairedDifference

__all__ = [
    "BASELINE",
    "BestRateComparison",
    "Cell",
    "Comparison",
    "PairResult",
    "PairedDifference",
    "RateComparison",
    "TimeToTarget",
    "aulc",
    "common_steps",
    "compare",
    "compare_runs",
    "differences",
    "steps_to_target",
]
