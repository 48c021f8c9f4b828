"""Draw the mistakes of a model that it was most confident of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.models.evaluate import EvaluationReport
from arelu_tl.render.figures.canvas import DPI, MUTED, drawable, house_style, new_figure, panel

MOST_SHOWN = 24
_COLUMNS = 6
# Inches.
_SIDE, _GAP, _WORDS, _TITLE, _MARGIN = 1.5, 0.25, 0.5, 0.5, 0.2
# Characters of 7.5 points that fit below a picture.
_LONGEST_NAME = 14


@house_style
def mistakes_figure(report: EvaluationReport) -> Figure | None:
    """Draw the most confident mistakes as thumbnails; None without mistakes.

    Below each are the true class, and the predicted class with its probability.
    """
    wrong = report.mistakes()
    if not wrong:
        return None
    shown = wrong[:MOST_SHOWN]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    step = _SIDE + _GAP
    width = max(4.2, columns * step - _GAP + 2 * _MARGIN)
    height = _TITLE + rows * (_SIDE + _WORDS) + _MARGIN
    figure = new_figure(width, height)
    heading = (
        f"the surest {len(shown)} of {len(wrong)} mistakes"
        if len(shown) < len(wrong)
        else f"mistakes: {len(wrong)}"
    )
    figure.text(
        _MARGIN / width,
        1 - 0.32 / height,
        f"{heading}, {report.images} pictures",
        fontsize=10,
        fontweight="bold",
    )
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        bottom = height - _TITLE - row * (_SIDE + _WORDS) - _SIDE
        axes = panel(figure, _MARGIN + column * step, bottom, _SIDE, _SIDE)
        _show(axes, report.root / report.paths[index])
        label, predicted = (
            report.classes[values[index]] for values in (report.labels, report.predicted)
        )
        words = f"true: {drawable(label, _LONGEST_NAME + 5)}\n"
        words += f"said: {drawable(predicted, _LONGEST_NAME)} ({report.probability[index]:.2f})"
        # In figure coordinates: the axes shrink with a picture's shape.
        left, top = (_MARGIN + column * step) / width, (bottom - 0.06) / height
        figure.text(
            left, top, words, va="top", ha="left", fontsize=7.5, linespacing=1.3, parse_math=False
        )
    return figure


def _show(axes: Axes, path: Path) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    try:
        picture = open_picture(path)
    except (OSError, UndecodableError):
        axes.text(
            0.5,
            0.5,
            "the file is gone",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=MUTED,
        )
        return
    picture.thumbnail((round(_SIDE * DPI),) * 2)
    axes.imshow(np.asarray(picture))
    axes.set_anchor("SW")
