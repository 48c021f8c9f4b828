"""Accuracy against learning rate: whether the swap helps, or a larger rate would have done."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.analysis.results import Comparison, Spread
from arelu_tl.render.figures.canvas import add_legend, arm_styles, house_style, new_figure


@house_style
def rates_figure(comparison: Comparison) -> Figure | None:
    """Best accuracy and AULC of each arm against the rate; None for a single rate.

    Whiskers are one standard deviation over the seeds; a ring marks each arm's best rate.
    """
    rates = sorted({cell.lr for cell in comparison.cells})
    if len(rates) < 2:
        return None
    figure = new_figure(11, 4.3)
    # A fixed layout, as in the convergence figure; fractions serve as well as inches here.
    best, way = figure.subplots(
        1,
        2,
        gridspec_kw={"left": 0.065, "right": 0.985, "bottom": 0.125, "top": 0.86, "wspace": 0.17},
    )
    chosen = {found.arm: found.lr for found in comparison.best}
    if comparison.best:
        chosen[BASELINE] = comparison.best[0].reference_lr
    styles = arm_styles(comparison.arms)
    gap = min(np.diff(np.log(rates)))
    for number, (arm, style) in enumerate(styles.items()):
        cells = [cell for lr in rates if (cell := comparison.cell(arm, lr)) is not None]
        # Offset the arms a little, so that no whisker hides another.
        beside = float(
            np.exp((number - (len(styles) - 1) / 2) * min(0.05 * gap, 0.3 * gap / len(styles)))
        )
        for axes, spreads in ((best, [c.best_top1 for c in cells]), (way, [c.aulc for c in cells])):
            at = [cell.lr * beside for cell in cells]
            axes.errorbar(
                at,
                [s.mean for s in spreads],
                yerr=_whiskers(spreads),
                capsize=2.5,
                elinewidth=1,
                zorder=3,
                **style.line(),
            )
            ring = [
                (x, s.mean)
                for x, s, cell in zip(at, spreads, cells, strict=True)
                if cell.lr == chosen.get(arm)
            ]
            for x, y in ring:
                axes.plot(
                    x,
                    y,
                    marker="o",
                    markersize=12,
                    markerfacecolor="none",
                    markeredgecolor=style.color,
                    zorder=4,
                )
    for axes, title in ((best, "best accuracy"), (way, "mean accuracy on the way (AULC)")):
        _finish(axes, rates, title)
    add_legend(
        figure,
        styles,
        {arm: arm for arm in styles},
        loc="upper left",
        bbox_to_anchor=(0.065, 0.985),
    )
    return figure


def _whiskers(spreads: list[Spread]) -> list[float] | None:
    return (
        [spread.sd or 0.0 for spread in spreads]
        if any(spread.sd is not None for spread in spreads)
        else None
    )


def _finish(axes: Axes, rates: list[float], title: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    # Labels of neighbours would overlap: of many rates, label every second, third, and so on.
    shown = rates[:: -(-len(rates) // 8)]
    axes.set_xticks(shown, [f"{lr:g}" for lr in shown])
    axes.set(xlabel="learning rate", ylim=(0, None))
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=7)
    axes.set_ylim(0, min(1.02, axes.get_ylim()[1]))
    axes.grid(True)
