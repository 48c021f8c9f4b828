"""Layer 2: find the sites of a model, plan what becomes of each, apply, calibrate, and measure the drift."""

from arelu_tl.surgery.apply import apply_plan, restore_sites
from arelu_tl.surgery.calibrate import Drift, calibration_batches, measure_outputs, reestimate_batchnorm, relative_drift
from arelu_tl.surgery.convert import SurgeryReport, convert
from arelu_tl.surgery.plan import INITS, PlannedSite, Site, SurgeryPlan, find_sites, make_plan

__all__ = [
    "INITS",
    "Drift",
    "PlannedSite",
    "Site",
    "SurgeryPlan",
    "SurgeryReport",
    "apply_plan",
    "calibration_batches",
    "convert",
    "find_sites",
    "make_plan",
    "measure_outputs",
    "reestimate_batchnorm",
    "relative_drift",
    "restore_sites",
]
