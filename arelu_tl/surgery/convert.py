"""Perform surgery (plan, apply, verify, calibrate, measure) and report what was done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from arelu_tl.activation.catalogue import SLOPED_ARMS, SURGERY_ARMS
from arelu_tl.backbone.loading import activation_counts
from arelu_tl.errors import NoSitesError, SurgeryError
from arelu_tl.records.settings import DRIFT_BUDGET, SurgerySettings
from arelu_tl.surgery.apply import Undo, apply_plan
from arelu_tl.surgery.calibrate import (
    BatchMoments,
    Drift,
    batchnorm_moments,
    correct_batchnorm,
    keep_statistics,
    measure_outputs,
    reestimate_batchnorm,
    relative_drift,
)
from arelu_tl.surgery.plan import PlannedSite, SurgeryPlan, make_plan
from arelu_tl.surgery.sites import Site, find_sites
from arelu_tl.surgery.verify import verify

BATCHNORM_MODES = ("corrected", "reestimated", "kept")
# Few pictures suffice to estimate drift; measuring it on all would double the cost of surgery.
_DRIFT_BATCHES = 2
# The same holds for the size of leaks, which is summed over all positions of all maps.
_TRACED = 8
# The strength for a drift budget is searched between 0 and _MOST_STRENGTH, in at most _SEARCH_STEPS
# steps, until the drift uses the share _ENOUGH of the budget. Strength 2 is a leak of twice what
# the ReLU lets through, which no alpha below 1 reaches at most sites.
_MOST_STRENGTH = 2.0
_FIRST_STRENGTH = 0.3
_SEARCH_STEPS = 8
_ENOUGH = 0.9
# The arm that keeps every ReLU and only re-estimates BatchNorm, to show the effect of that alone.
RECALIBRATED = "recalibrated"
_RECORDED = (
    "arm",
    "init",
    "parameters_added",
    "batchnorm",
    "batchnorm_layers",
    "strength",
    "drift_budget",
)


@dataclass(frozen=True)
class SurgeryReport:
    """What surgery did.

    Attributes:
        arm, init: as requested.
        sites: every site and how it was treated.
        parameters_added: number of added parameter values, learnable or frozen.
        drift: change of the outputs by surgery and calibration; None without calibration pictures.
        drift_uncalibrated: the same before BatchNorm was corrected; None if it was not, or if
            nothing else was done.
        batchnorm: how BatchNorm statistics were treated: corrected, reestimated or kept.
        batchnorm_layers: number of layers whose statistics were changed.
        strength: strength of calibrated's leaks, see ``make_plan``; None if the unmeasured grading
            was used.
        drift_budget: the budget for which the strength was chosen; None if it was not.
    """

    arm: str
    init: str
    sites: list[PlannedSite]
    parameters_added: int
    drift: Drift | None = None
    drift_uncalibrated: Drift | None = None
    batchnorm: str = "kept"
    batchnorm_layers: int = 0
    strength: float | None = None
    drift_budget: float | None = None

    @property
    def budget_kept(self) -> bool:
        """Whether the drift is within the budget; False if even the smallest leak exceeds it."""
        if self.drift_budget is None or self.drift is None:
            return True
        return self.drift.relative is not None and self.drift.relative <= self.drift_budget

    @property
    def replaced(self) -> int:
        """Number of replaced sites."""
        return sum(site.status == "replaced" for site in self.sites)

    @property
    def executed(self) -> int:
        """Number of sites that the forward pass runs."""
        return sum(site.site.runs for site in self.sites)

    def to_json(self) -> dict[str, Any]:
        """Return the content of surgery.json."""
        return {
            "arm": self.arm,
            "init": self.init,
            "parameters_added": self.parameters_added,
            "batchnorm": self.batchnorm,
            "batchnorm_layers": self.batchnorm_layers,
            "strength": self.strength,
            "drift_budget": self.drift_budget,
            "budget_kept": self.budget_kept,
            "drift": self.drift.to_json() if self.drift else None,
            "drift_before_calibration": self.drift_uncalibrated.to_json()
            if self.drift_uncalibrated
            else None,
            "sites": [site.to_json(self.arm) for site in self.sites],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SurgeryReport:
        """Read the content of a surgery.json.

        Raises:
            SurgeryError: ``record`` is not such content.
        """
        try:
            drifts = [
                None if record[key] is None else Drift(**record[key])
                for key in ("drift", "drift_before_calibration")
            ]
            return cls(
                **{key: record[key] for key in _RECORDED},
                drift=drifts[0],
                drift_uncalibrated=drifts[1],
                sites=[PlannedSite.from_json(site) for site in record["sites"]],
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise SurgeryError(f"no record of a surgery: {type(error).__name__} {error}") from None


def convert(
    model: nn.Module,
    *,
    arm: str = "arelu",
    init: str = "calibrated",
    alpha: float | None = None,
    beta: float | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    example_input: Tensor | None = None,
    calibration: Sequence[Tensor] | None = None,
    granularity: str = "site",
    share_sites: bool = False,
    batchnorm: str = "corrected",
    drift_budget: float | None = DRIFT_BUDGET,
    inplace: bool = True,
) -> SurgeryReport:
    """Replace every ReLU in ``model``'s forward pass, in place, and verify that none is left.

    Args:
        model: a timm model or any other module; unchanged if an error is raised.
        arm: "arelu", a control or rival of ``activation.SURGERY_ARMS``, or "recalibrated": every
            ReLU stays, and BatchNorm statistics are re-estimated from ``calibration``. The latter
            ignores ``init`` and ``batchnorm``: with unchanged sites there is nothing to correct.
        init, alpha, beta, include, exclude, granularity: see ``make_plan``.
        example_input: pictures (N, C, H, W) on the model's device, for the forward pass that finds
            the sites. Not needed for models that run on their own input size (which timm models
            declare) or on 3 x 224 x 224.
        calibration: batches of preprocessed training pictures, each (B, C, H, W) with B >= 2, on
            the model's device. With ``init="calibrated"`` they correct BatchNorm; with any init
            they measure the drift.
        share_sites: one replacement for all calls of a module, instead of one per call.
        batchnorm: with ``init="calibrated"``: "corrected" by the change of each layer's input
            (``correct_batchnorm``), "reestimated" from the pictures, or "kept".
        drift_budget: with ``init="calibrated"`` and calibration pictures: the largest relative
            drift that surgery may cause on them; leaks are made as strong as it allows. None or 0
            uses the unmeasured grading, whatever its drift.
        inplace: if the ReLU overwrote its input, AReLU's backward pass uses its output and stores
            nothing more. False: it uses a copy of the input, which stores one more map per site
            and has less rounding error. The function is the same.

    Raises:
        NoSitesError: the model runs no ReLU; the message names its activations.
        SurgeryError: an unknown arm, init or mode, a pattern that matches nothing, a site with
            hooks, or a remaining ReLU; "recalibrated" without pictures or without BatchNorm.
        ConfigError: the arm cannot be used at some site.
    """
    settings = SurgerySettings(
        arm=arm,
        init=init,
        alpha=alpha,
        beta=beta,
        include=include,
        exclude=exclude,
        granularity=granularity,
        share_sites=share_sites,
        batchnorm=batchnorm,
        drift_budget=drift_budget,
        inplace=inplace,
    )
    return operate(model, settings, example_input=example_input, calibration=calibration)


def operate(
    model: nn.Module,
    settings: SurgerySettings,
    *,
    example_input: Tensor | None = None,
    calibration: Sequence[Tensor] | None = None,
) -> SurgeryReport:
    """Do the same as ``convert``, with the choices in ``settings``."""
    arm, init, batchnorm, drift_budget = (
        settings.arm,
        settings.init,
        settings.batchnorm,
        settings.drift_budget,
    )
    batches = [] if calibration is None else list(calibration)
    _check(arm, init, batchnorm, drift_budget, batches)
    measured = init == "calibrated" and bool(drift_budget) and bool(batches) and arm in SLOPED_ARMS
    # One picture would suffice to find the sites; estimating the size of leaks takes a few more.
    example = (
        batches[0][:_TRACED] if batches and (measured or example_input is None) else example_input
    )
    sites = find_sites(model, example, share=settings.share_sites)
    if not any(site.runs for site in sites):
        counts = (
            ", ".join(f"{name} x{n}" for name, n in activation_counts(model).items())
            or "no activation modules"
        )
        raise NoSitesError(
            f"{type(model).__name__} runs no ReLU or ReLU6 to replace; it has {counts}"
        )
    choices: dict[str, Any] = {
        "init": init, "alpha": settings.alpha, "beta": settings.beta, "include": settings.include,
        "exclude": settings.exclude, "granularity": settings.granularity,
    }  # fmt: skip
    plan = make_plan(sites, **choices, strength=_MOST_STRENGTH if measured else None)
    if arm == RECALIBRATED:
        plan, batchnorm = plan.keeping(), "reestimated"
    elif init != "calibrated":
        batchnorm = "kept"
    operation = _Operation(model, arm, batchnorm, batches, settings.inplace)
    strength = None
    try:
        operation.perform(plan, quick=measured)
        if arm == RECALIBRATED and not operation.layers:
            raise SurgeryError(
                f"{type(model).__name__} runs no BatchNorm with statistics: {arm} has nothing to "
                "re-estimate"
            )
        verify(model, plan, None if example is None else example[:1])
        if measured and drift_budget:
            strength = _search(operation, sites, choices, drift_budget)
    except BaseException:
        operation.undo()
        raise
    return SurgeryReport(
        arm=arm,
        init=init,
        sites=operation.plan.sites,
        parameters_added=sum(p.numel() for module in operation.new for p in module.parameters()),
        drift=operation.drift,
        drift_uncalibrated=operation.uncalibrated if operation.layers and plan.replaced else None,
        batchnorm=operation.batchnorm if operation.layers else "kept",
        batchnorm_layers=operation.layers,
        strength=strength,
        drift_budget=drift_budget if measured else None,
    )


def _check(
    arm: str, init: str, batchnorm: str, drift_budget: float | None, batches: Sequence[Tensor]
) -> None:
    if arm == "maxout":
        raise SurgeryError(
            "arm maxout cannot stand at a ReLU: of one channel it is the identity, of more it "
            "drops channels"
        )
    if arm not in (*SURGERY_ARMS, RECALIBRATED):
        raise SurgeryError(
            f"unknown arm {arm!r}: surgery makes {', '.join((*SURGERY_ARMS, RECALIBRATED))}"
        )
    if arm == RECALIBRATED and not batches:
        raise SurgeryError(
            f"arm {arm} re-estimates BatchNorm from calibration pictures: give some (inspect: "
            "`images=FOLDER`)"
        )
    if batchnorm not in BATCHNORM_MODES:
        raise SurgeryError(f"unknown batchnorm {batchnorm!r}: {', '.join(BATCHNORM_MODES)}")
    if drift_budget is not None and not drift_budget >= 0:
        raise SurgeryError(f"a drift budget must not be negative: {drift_budget}")
    if any(len(batch) < 2 or batch.dim() < 2 for batch in batches):
        raise SurgeryError("calibration takes a list of batches of at least two pictures each")


class _Operation:
    """Surgery on one model, which can be undone and repeated with another plan."""

    plan: SurgeryPlan
    new: list[nn.Module]

    def __init__(
        self, model: nn.Module, arm: str, batchnorm: str, batches: Sequence[Tensor], inplace: bool
    ) -> None:
        self.model = model
        self.arm = arm
        self.inplace = inplace
        self.batchnorm = batchnorm
        self.batches = batches
        self.probe = batches[:_DRIFT_BATCHES]
        self.drift: Drift | None = None
        self.uncalibrated: Drift | None = None
        self.layers = 0
        self._put_statistics_back = keep_statistics(model)
        self._put_modules_back: Undo | None = None
        self._before = measure_outputs(model, self.probe) if self.probe else None
        self._moments: list[BatchMoments] = (
            batchnorm_moments(model, batches) if batchnorm == "corrected" else []
        )

    def perform(self, plan: SurgeryPlan, *, quick: bool = False) -> None:
        """Apply ``plan``, calibrate BatchNorm and measure; ``quick`` uses only the first batch."""
        self.plan = plan
        self.new, self._put_modules_back = apply_plan(
            self.model, plan, arm=self.arm, inplace=self.inplace
        )
        batches = self.batches[:1] if quick else self.batches
        self.drift = self.uncalibrated = None if quick else self._measure()
        if self.batchnorm == "corrected":
            self.layers = (
                correct_batchnorm(self.model, batches, self._moments[: len(batches)])
                if batches
                else 0
            )
        elif self.batchnorm == "reestimated":
            self.layers = reestimate_batchnorm(self.model, batches)
        if self.layers or quick:
            self.drift = self._measure(quick=quick)

    def undo(self) -> None:
        """Restore the model to its state before ``perform``."""
        if self._put_modules_back is not None:
            self._put_modules_back()
            self._put_modules_back = None
        self._put_statistics_back()

    def _measure(self, *, quick: bool = False) -> Drift | None:
        if self._before is None:
            return None
        after = measure_outputs(self.model, self.probe[:1] if quick else self.probe)
        features, classes = (part[: len(after[0])] for part in self._before)
        return relative_drift((features, classes), after)


def _search(
    operation: _Operation, sites: Sequence[Site], choices: dict[str, Any], budget: float
) -> float:
    """Apply the strongest leaks found that keep ``budget``, or strength 0 if none do.

    Returns:
        Their strength.
    """

    def drift_at(strength: float, *, quick: bool) -> float:
        operation.undo()
        # Statistics estimated from few pictures cause drift themselves, so a quick search would
        # mislead.
        quick = quick and operation.batchnorm != "reestimated"
        operation.perform(make_plan(sites, **choices, strength=strength), quick=quick)
        relative = operation.drift.relative if operation.drift is not None else None
        return math.inf if relative is None else relative

    low, high, guess = 0.0, _MOST_STRENGTH, _FIRST_STRENGTH
    for _ in range(_SEARCH_STEPS):
        drift = drift_at(guess, quick=True)
        low, high = (guess, high) if drift <= budget else (low, guess)
        if low == high or _ENOUGH * budget <= drift <= budget:
            break
        # Drift is roughly proportional to the leaks; if it is not, halve the interval.
        proportional = guess * (1 + _ENOUGH) / 2 * budget / drift if 0 < drift < math.inf else 0.0
        guess = (
            proportional
            if low < proportional < high
            else high
            if proportional >= high
            else (low + high) / 2
        )
    # With all pictures the correction of BatchNorm differs slightly from that of the quick search.
    for retreat in (0.95, 0.9, 0.8, 0.5, 0.0):
        if drift_at(low, quick=False) <= budget or low == 0:
            return low
        low *= retreat
    drift_at(low, quick=False)
    return low
