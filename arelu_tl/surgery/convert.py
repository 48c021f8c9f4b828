"""The one verb of surgery: plan, apply, calibrate, measure; a report of what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from arelu_tl.backbone import activation_counts
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.apply import apply_plan, set_modules
from arelu_tl.surgery.calibrate import Drift, measure_outputs, reestimate_batchnorm, relative_drift
from arelu_tl.surgery.plan import PlannedSite, find_sites, make_plan

# Drift is a sample statistic that settles soon; measuring it on everything would double the cost of surgery.
_DRIFT_BATCHES = 2


@dataclass(frozen=True)
class SurgeryReport:
    """What surgery did.

    Attributes:
        arm, init: as asked.
        sites: every site with what became of it.
        parameters_added: learnable numbers that the model has more.
        drift: outputs after surgery and calibration against before; None without calibration pictures.
        drift_uncalibrated: the same before BatchNorm was re-estimated; None where it was not.
        batchnorm_layers: BatchNorm layers whose statistics were re-estimated.
    """

    arm: str
    init: str
    sites: list[PlannedSite]
    parameters_added: int
    drift: Drift | None = None
    drift_uncalibrated: Drift | None = None
    batchnorm_layers: int = 0

    @property
    def replaced(self) -> int:
        return sum(site.status == "replaced" for site in self.sites)

    def to_json(self) -> dict[str, Any]:
        """Content of surgery.json."""
        return {
            "arm": self.arm,
            "init": self.init,
            "parameters_added": self.parameters_added,
            "batchnorm_layers_reestimated": self.batchnorm_layers,
            "drift": self.drift.to_json() if self.drift else None,
            "drift_before_calibration": self.drift_uncalibrated.to_json() if self.drift_uncalibrated else None,
            "sites": [site.to_json() for site in self.sites],
        }


def convert(
    model: nn.Module,
    *,
    arm: str = "arelu",
    init: str = "calibrated",
    alpha: float | None = None,
    beta: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    example_input: Tensor | None = None,
    calibration: Sequence[Tensor] | None = None,
) -> SurgeryReport:
    """Replace the ReLUs of ``model`` by AReLU, in place.

    Args:
        model: a timm model or any other module; stays unchanged when an error is raised.
        arm: "arelu".
        init, alpha, beta, include, exclude: see ``make_plan``.
        example_input: pictures (N, C, H, W) that a first forward pass runs on, to order the sites.
        calibration: batches of preprocessed training pictures, each (B, C, H, W) with B >= 2, on the model's device.
            With ``init="calibrated"`` they re-estimate BatchNorm; with any init they measure the drift.

    Raises:
        SurgeryError: the model has no ReLU (its activations are named), a pattern matches nothing, a site has hooks.
    """
    if arm != "arelu":
        raise SurgeryError(f"unknown arm {arm!r}: surgery makes arelu")
    sites = find_sites(model, example_input)
    if not sites:
        counts = ", ".join(f"{name} x{n}" for name, n in activation_counts(model).items()) or "no activation modules"
        raise SurgeryError(f"{type(model).__name__} has no ReLU or ReLU6 to replace; it has {counts}")
    plan = make_plan(sites, init=init, alpha=alpha, beta=beta, include=include, exclude=exclude)
    calibration = calibration or []
    probe = calibration[:_DRIFT_BATCHES]
    before = measure_outputs(model, probe) if probe else None
    originals = {planned.site.names: model.get_submodule(planned.site.name) for planned in plan.replaced}
    added = sum(m.alpha.numel() + m.beta.numel() for m in apply_plan(model, plan))
    try:
        uncalibrated = final = relative_drift(before, measure_outputs(model, probe)) if before else None
        layers = reestimate_batchnorm(model, calibration) if init == "calibrated" else 0
        if layers and before:
            final = relative_drift(before, measure_outputs(model, probe))
    except BaseException:
        for names, original in originals.items():
            set_modules(model, names, original)
        raise
    return SurgeryReport(
        arm=arm,
        init=init,
        sites=plan.sites,
        parameters_added=added,
        drift=final,
        drift_uncalibrated=uncalibrated if layers else None,
        batchnorm_layers=layers,
    )
