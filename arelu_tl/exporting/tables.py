"""The output of ``arelu-tl export``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arelu_tl.render.console import Shown, line
from arelu_tl.render.grid import Column, Grid
from arelu_tl.render.text import percent

if TYPE_CHECKING:  # a comparison's tables need no torch
    from arelu_tl.exporting.report import ExportReport


def export_report(report: ExportReport) -> list[Shown]:
    """Show what was written, how it was proved, and which gains were folded."""
    files = ", ".join(f"{name} ({size:,} bytes)" for name, size in report.files.items())
    parts: list[Shown] = [f"wrote {report.path}: {files}"]
    if report.fold is not None:
        fold = report.fold
        total = len(fold.folded) + len(fold.kept)
        gains = f"the gains of {len(fold.folded)} of {total} activations"
        normalisations = f", {fold.batchnorms} normalisations" if fold.batchnorms else ""
        parts.append(line(f"in the weights around them: {gains}{normalisations}"))
        parts += [
            line(f"  {name} keeps its product: {reason}") for name, reason in fold.kept.items()
        ]
    for proof in report.proofs:
        parts.append(
            line(
                f"{proof.runtime}: {proof.answers} of {proof.inputs} pictures "
                f"within {proof.difference:.2g} of {proof.of} "
                f"({percent(proof.share)} of what is allowed; float32 itself costs {proof.own:.2g})"
            )
        )
    if report.accuracy is not None:
        change = report.accuracy
        parts.append(
            line(
                f"in fewer bits: accuracy {change.after:.4f} where the trained model has "
                f"{change.before:.4f}, the same class on {change.same:.1%} of {change.pictures} "
                "validation pictures"
            )
        )
    if report.form == "timm":
        parts.append(
            "loads with arelu_tl.load_model, and with timm alone: "
            "timm.create_model('local-dir:FOLDER', pretrained=True)"
        )
    elif report.unlike_timm is not None:
        parts.append(
            line(f"loads with arelu_tl.load_model, not with timm alone: {report.unlike_timm}")
        )
    if report.timings:
        parts.append(_timings(report))
    if report.url is not None:
        parts.append(f"uploaded: {report.url}")
    return parts


def _timings(report: ExportReport) -> Grid:
    columns = [
        Column("batch"),
        Column("ms"),
        Column("baseline ms"),
        Column("pictures/s", gives_way=1),
        Column("ratio"),
        Column("least .. greatest", gives_way=2),
        Column("rounds", gives_way=3),
    ]
    table = Grid(columns, title=f"beside {report.baseline}, in turns")
    for t in report.timings:
        table.add(
            str(t.batch), f"{t.milliseconds:.1f}", f"{t.baseline_milliseconds:.1f}",
            f"{t.pictures_per_second:.1f}", f"{t.ratio:.2f}",
            f"{t.least:.2f} .. {t.greatest:.2f}", str(t.rounds),
        )  # fmt: skip
    return table
