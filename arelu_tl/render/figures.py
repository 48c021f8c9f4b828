"""Figures, readable in greyscale and for the colour-blind: arms differ in colour, line and marker."""

from __future__ import annotations

import io
from math import prod
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from arelu_tl.analysis import ArmResult, PairComparison
from arelu_tl.records.storage import write_bytes
from arelu_tl.surgery import SurgeryReport

# Okabe and Ito's palette: distinct under every common form of colour blindness, and of different lightness.
_STYLES = {
    "relu": {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    "arelu": {"color": "#D55E00", "linestyle": "-", "marker": "o"},
}


def draw_convergence(pair: PairComparison, path: Path, *, title: str) -> None:
    """Validation accuracy and loss of both arms against steps, with the step at which each reached the target.

    Raises:
        StorageError: ``path`` cannot be written.
    """
    # No pyplot: it keeps global state and looks for a display.
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss = figure.subplots(1, 2)
    for result in (pair.baseline, pair.arm):
        style = {**_STYLES.get(result.arm, {"marker": "^"}), "linewidth": 1.8, "markersize": 4.5}
        label = f"{result.arm} (AULC {result.aulc:.3f})"
        accuracy.plot(result.curve["step"], result.curve["top1"], label=label, **style)
        loss.plot(result.curve["step"], result.curve["loss"], label=result.arm, **style)
        _mark_target(accuracy, result, pair.target)
    accuracy.axhline(pair.target, color="0.5", linewidth=0.9, linestyle=":")
    # Above the line, at the side where late in training the curves have left it.
    accuracy.annotate(
        f"target {pair.target:.1%}", (0.01, pair.target), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", fontsize=8, color="0.35",
    )  # fmt: skip
    accuracy.set(xlabel="optimiser step", ylabel="validation accuracy", ylim=(0, 1.02))
    loss.set(xlabel="optimiser step", ylabel="validation loss (nats)")
    loss.set_ylim(bottom=0)
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left=0)
    for axes in (accuracy, loss):
        # Above the axes: inside, there is no corner that some curve or label does not use.
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    # A folder's name may hold $ and other things that matplotlib would take for mathematics.
    figure.suptitle(title, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())


_KINDS = {"module": ("#0072B2", "o"), "shared": ("#D55E00", "s"), "functional": ("#009E73", "^")}


def draw_sites(report: SurgeryReport, path: Path, *, title: str) -> None:
    """alpha0 of every site by depth, with the site's size behind it; sites that stay ReLUs are crosses at 0.

    Raises:
        StorageError: ``path`` cannot be written.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sites = [p for p in report.sites if p.site.runs]
    size = axes.twinx()
    size.bar(range(len(sites)), [prod(p.site.shape[1:]) for p in sites], color="0.88", width=1.0)
    size.set(ylabel="elements a picture (grey)", yscale="log")
    # The bars stand on the second axes; the points must be drawn over them.
    axes.set_zorder(size.get_zorder() + 1)
    axes.patch.set_visible(False)
    for kind, (color, marker) in _KINDS.items():
        at = [i for i, p in enumerate(sites) if p.status == "replaced" and p.site.kind == kind]
        if at:
            axes.plot(at, [sites[i].alpha0 for i in at], linestyle="", marker=marker, color=color, markersize=5, label=kind)
    left = [i for i, p in enumerate(sites) if p.status != "replaced"]
    if left:
        axes.plot(left, [0.0] * len(left), linestyle="", marker="x", color="0.2", label="stays a ReLU")
    axes.set(
        xlabel="site, in the order of the forward pass", ylabel="alpha0 (slope of negatives before scale)", ylim=(-0.03, 1.02)
    )
    axes.grid(alpha=0.3)
    for each in (axes, size):
        each.spines[["top"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
    figure.suptitle(f"{title}: init {report.init}, {report.replaced} of {report.executed} sites", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())


def _mark_target(axes: Axes, result: ArmResult, target: float) -> None:
    if result.steps_to_target is None:
        return
    color = _STYLES.get(result.arm, {}).get("color", "0.3")
    axes.plot([result.steps_to_target] * 2, [0, target], color=color, linewidth=1, linestyle=":")
    axes.annotate(
        f"step {result.steps_to_target}", (result.steps_to_target, 0.02), xytext=(3, 0), textcoords="offset points",
        fontsize=8, color=color, rotation=90, va="bottom",
    )  # fmt: skip
