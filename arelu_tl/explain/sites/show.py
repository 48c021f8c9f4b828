"""The report of ``arelu-tl inspect``: sites, totals, cost, and drift under each init."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from arelu_tl.explain.sites.cost import Cost
from arelu_tl.explain.sites.inspection import Inspection
from arelu_tl.render.console import Shown, line
from arelu_tl.render.grid import Column, Grid
from arelu_tl.surgery.convert import SurgeryReport
from arelu_tl.surgery.plan import PlannedSite

KERNEL_WARNING = (
    "are kernels of a linear attention, which divides by sums of them and may become unstable once "
    "they leak: should training not be finite, leave them out with --exclude"
)


def inspection_report(inspection: Inspection, model: str, plot: Path | None) -> list[Shown]:
    """Make the output of ``inspect``, from top to bottom."""
    report = inspection.report
    parts: list[Shown] = [sites_table(report), "", *map(line, _totals(inspection, model))]
    if inspection.cost is not None:
        parts += map(line, _cost_lines(inspection.cost))
    if inspection.inits:
        parts += ["", _drift_table(inspection)]
        if not report.budget_kept:
            parts.append(
                line(
                    f"even the least leak drifts further than the budget of {report.drift_budget:g}"
                )
            )
        parts += [line(f"{init}: {reason}") for init, reason in inspection.failures.items()]
    else:
        parts.append(
            line(
                "drift not measured, and leaks graded by depth; "
                "give --images FOLDER to measure them under every --init"
            )
        )
    kernels = sum(p.site.role == "kernel" and p.status == "replaced" for p in report.sites)
    if kernels:
        parts.append(line(f"{kernels} sites {KERNEL_WARNING}"))
    if plot is not None:
        parts.append(f"figure: {plot}")
    return parts


def sites_table(report: SurgeryReport) -> Grid:
    """Show a row per site, with the plan for it."""
    table = Grid(
        [
            Column("#"),
            Column("site", "name"),
            Column("kind", "text", gives_way=3),
            Column("operator", "text", gives_way=7),
            Column("after", "name", gives_way=8),
            Column("shape", gives_way=4),
            Column("x < 0", gives_way=1),
            Column("status", "text"),
            Column("alpha0"),
            Column("beta0"),
            Column("scale", gives_way=2),
            Column("pairs", gives_way=6),
        ]
    )
    for number, planned in enumerate(report.sites):
        table.add(str(number), *_cells(planned, report.arm))
    return table


def _cells(planned: PlannedSite, arm: str) -> list[str]:
    site = planned.site
    kind = f"shared {site.call}/{site.calls}" if site.kind == "shared" else site.kind
    if site.role != "activation":
        kind += f", {site.role}"
    name = site.name if len(site.names) == 1 else f"{site.name} = {', '.join(site.names[1:])}"
    recorded = planned.to_json(arm)
    values = [
        "-" if recorded[k] is None else f"{recorded[k]:.4g}"
        for k in ("alpha0", "beta0", "scale", "num_parameters")
    ]
    return [
        name,
        kind,
        f"{site.operator} (in place)" if site.inplace else site.operator,
        site.preceding,
        "x".join(map(str, site.shape[1:])) or "-",
        "-" if site.negative_share is None else f"{site.negative_share:.0%}",
        planned.status,
        *values,
    ]


def _totals(inspection: Inspection, model: str) -> list[str]:
    report = inspection.report
    kinds = Counter(p.site.kind for p in report.sites if p.site.runs)
    made_up = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    kept = Counter(p.status for p in report.sites if p.status != "replaced")
    left = "".join(f", {n} {status}" for status, n in kept.items())
    share = report.parameters_added / inspection.parameters if inspection.parameters else 0.0
    return [
        f"{model} (weights: {inspection.weights}): {report.replaced} of {report.executed} sites "
        f"would be replaced ({made_up}{left}); {report.parameters_added} parameters added to "
        f"{inspection.parameters:,} ({share:.2g} of them)",
        "counted at the dispatcher: none but those named above is left",
    ]


def _cost_lines(cost: Cost) -> list[str]:
    of_model = f" of {cost.model_flops / 1e9:.3g} GFLOPs in all" if cost.model_flops else ""
    return [
        f"one picture, forward: {cost.elements / 1e6:.3g} M elements; "
        f"ReLU {cost.relu_flops / 1e6:.3g} MFLOPs and {cost.relu_bytes / 1e6:.3g} MB moved",
        f"AReLU {cost.arelu_flops / 1e6:.3g} MFLOPs "
        f"({cost.arelu_flops / cost.relu_flops:g}x){of_model} and "
        f"{cost.arelu_bytes / 1e6:.3g} MB "
        f"({cost.arelu_bytes / cost.relu_bytes:g}x, without fusion)",
    ]


def _drift_table(inspection: Inspection) -> Grid:
    images = next((r.drift.images for r in inspection.inits.values() if r.drift), 0)
    headings = ("before calibration", "drift", "top-1 kept", "strength")
    table = Grid(
        [Column("init", "name"), *map(Column, headings)], title=f"drift on {images} pictures"
    )
    for init, report in inspection.inits.items():
        early, drift = report.drift_uncalibrated, report.drift
        table.add(
            (init, "bold" * (init == inspection.report.init)),
            "-" if early is None else _size(early.relative),
            "-" if drift is None else _size(drift.relative),
            "-" if drift is None else f"{drift.top1_agreement:.0%}",
            "-" if report.strength is None else f"{report.strength:.3g}",
        )
    return table


def _size(relative: float | None) -> str:
    return "overflow" if relative is None else f"{relative:.3g}"
