"""Layer 2: find the sites of a model, plan what becomes of each, apply, verify, calibrate, and measure the drift."""

from arelu_tl.surgery.apply import apply_plan, restore_sites
from arelu_tl.surgery.calibrate import (
    Drift,
    batchnorm_moments,
    calibration_batches,
    correct_batchnorm,
    measure_outputs,
    reestimate_batchnorm,
    relative_drift,
)
from arelu_tl.surgery.convert import BATCHNORM_MODES, DRIFT_BUDGET, RECALIBRATED, SurgeryReport, convert
from arelu_tl.surgery.cost import Cost, activation_cost, model_flops
from arelu_tl.surgery.observe import Passage, observe_sites
from arelu_tl.surgery.plan import GRANULARITIES, INITS, PlannedSite, SurgeryPlan, make_plan, matching_sites
from arelu_tl.surgery.sites import Site, find_sites
from arelu_tl.surgery.verify import verify
from arelu_tl.surgery.watch import watch_sites

__all__ = [
    "BATCHNORM_MODES",
    "DRIFT_BUDGET",
    "GRANULARITIES",
    "INITS",
    "RECALIBRATED",
    "Cost",
    "Drift",
    "Passage",
    "PlannedSite",
    "Site",
    "SurgeryPlan",
    "SurgeryReport",
    "activation_cost",
    "apply_plan",
    "batchnorm_moments",
    "calibration_batches",
    "convert",
    "correct_batchnorm",
    "find_sites",
    "make_plan",
    "matching_sites",
    "measure_outputs",
    "model_flops",
    "observe_sites",
    "reestimate_batchnorm",
    "relative_drift",
    "restore_sites",
    "verify",
    "watch_sites",
]
