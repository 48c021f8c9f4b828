"""Layer 3: statistics over run records. Pure functions, no torch. Every name loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arelu_tl.lazy import lazy_names

if TYPE_CHECKING:
    from arelu_tl.analysis.censoring import TimeToTarget as TimeToTarget
    from arelu_tl.analysis.comparison import compare as compare
    from arelu_tl.analysis.comparison import compare_runs as compare_runs
    from arelu_tl.analysis.convergence import aulc as aulc
    from arelu_tl.analysis.convergence import common_steps as common_steps
    from arelu_tl.analysis.convergence import steps_to_target as steps_to_target
    from arelu_tl.analysis.pairing import BASELINE as BASELINE
    from arelu_tl.analysis.pairing import differences as differences
    from arelu_tl.analysis.results import BestRateComparison as BestRateComparison
    from arelu_tl.analysis.results import Cell as Cell
    from arelu_tl.analysis.results import Comparison as Comparison
    from arelu_tl.analysis.results import PairResult as PairResult
    from arelu_tl.analysis.results import RateComparison as RateComparison
    from arelu_tl.analysis.statistics import PairedDifference as PairedDifference

# A trained run needs the area under a curve, not scipy, which most of the rest imports.
_HOMES = {
    "BASELINE": "arelu_tl.analysis.pairing",
    "BestRateComparison": "arelu_tl.analysis.results",
    "Cell": "arelu_tl.analysis.results",
    "Comparison": "arelu_tl.analysis.results",
    "PairResult": "arelu_tl.analysis.results",
    "PairedDifference": "arelu_tl.analysis.statistics",
    "RateComparison": "arelu_tl.analysis.results",
    "TimeToTarget": "arelu_tl.analysis.censoring",
    "aulc": "arelu_tl.analysis.convergence",
    "common_steps": "arelu_tl.analysis.convergence",
    "compare": "arelu_tl.analysis.comparison",
    "compare_runs": "arelu_tl.analysis.comparison",
    "differences": "arelu_tl.analysis.pairing",
    "steps_to_target": "arelu_tl.analysis.convergence",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
