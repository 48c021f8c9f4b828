"""Summarise one arm at one rate over its seeds: means, spreads, and the mean curve for figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arelu_tl.analysis.censoring import TimeToTarget, time_to_target
from arelu_tl.analysis.curves import Curve
from arelu_tl.analysis.pairing import Entrant
from arelu_tl.analysis.results import Cell, Spread


def make_cells(entrants: Sequence[Entrant], targets: Mapping[float, float]) -> list[Cell]:
    """Make a cell for each arm and rate of ``entrants``, sorted by rate, with the rate's target."""
    grouped: dict[tuple[float, str], list[Entrant]] = defaultdict(list)
    for each in entrants:
        grouped[each.lr, each.arm].append(each)
    return [_cell(arm, lr, members, targets[lr]) for (lr, arm), members in sorted(grouped.items())]


def _cell(arm: str, lr: float, members: Sequence[Entrant], target: float) -> Cell:
    curves = [each.curve for each in members]
    steps, seconds = to_target(curves, target)
    drifts = [((each.run.surgery or {}).get("drift") or {}).get("relative") for each in members]

    def mean_recorded(key: str) -> float | None:
        recorded: list[Mapping[str, Any]] = [each.run.summary for each in members]
        return _mean([summary.get(key) for summary in recorded])

    probes: list[Mapping[str, Any]] = [each.run.summary.get("probe") or {} for each in members]
    return Cell(
        arm=arm,
        lr=lr,
        seeds=[each.seed for each in members],
        runs=[str(each.run.path) for each in members],
        steps=max(curve.end for curve in curves),
        final_top1=_spread([float(c.top1[-1]) for c in curves]),
        best_top1=_spread([float(c.top1.max()) for c in curves]),
        final_loss=_spread([float(c.loss[-1]) for c in curves]),
        aulc=_spread([c.aulc for c in curves]),
        target=target,
        steps_to_target=steps,
        seconds_to_target=seconds,
        seconds=_spread([float(c.seconds[-1]) for c in curves]),
        seconds_per_step=_mean([seconds_per_step(each) for each in members]),
        images_per_second=mean_recorded("images_per_second"),
        peak_memory_bytes=mean_recorded("peak_memory_bytes"),
        drift=_mean(drifts),
        head_lrs=sorted({s["head_lr"] for each in members if "head_lr" in (s := each.run.summary)}),
        probe_top1=_mean([probe.get("top1") for probe in probes]),
        probe_loss=_mean([probe.get("loss") for probe in probes]),
        curve=_mean_curve(curves),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _spread(values: Sequence[float]) -> Spread:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), sd, list(values))


def _mean_curve(curves: Sequence[Curve]) -> dict[str, list[float]]:
    """Return mean, minimum and maximum over the runs at each step at which all were evaluated."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    mean: dict[str, list[float]] = {"step": [int(step) for step in steps]}
    for key in ("top1", "loss", "seconds"):
        values = np.stack([getattr(c, key)[np.searchsorted(c.steps, steps)] for c in curves])
        mean[key] = values.mean(0).tolist()
        if key != "seconds":
            mean[f"{key}_low"], mean[f"{key}_high"] = (
                values.min(0).tolist(),
                values.max(0).tolist(),
            )
    return mean


def to_target(curves: Sequence[Curve], target: float) -> tuple[TimeToTarget, TimeToTarget]:
    """Return the (steps, seconds) that several runs needed to reach the target."""
    reached = [curve.reached(target) for curve in curves]
    steps = [
        None if at is None else float(c.steps[at]) for c, at in zip(curves, reached, strict=True)
    ]
    seconds = [
        None if at is None else float(c.seconds[at]) for c, at in zip(curves, reached, strict=True)
    ]
    return time_to_target(steps, [c.end for c in curves]), time_to_target(
        seconds, [float(c.seconds[-1]) for c in curves]
    )


def seconds_per_step(entrant: Entrant) -> float | None:
    """Return the seconds of training per step; None before the first step."""
    curve = entrant.curve
    return float(curve.seconds[-1] / curve.end) if curve.end else None
