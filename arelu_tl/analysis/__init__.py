"""Layer 3: statistics over run records. Pure functions, no torch."""

from arelu_tl.analysis.convergence import aulc, common_steps, steps_to_target
from arelu_tl.analysis.pairing import ArmResult, Comparison, PairComparison, compare, compare_runs, differences

__all__ = [
    "ArmResult",
    "Comparison",
    "PairComparison",
    "aulc",
    "common_steps",
    "compare",
    "compare_runs",
    "differences",
    "steps_to_target",
]
