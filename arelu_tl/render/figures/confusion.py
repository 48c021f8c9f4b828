"""Which class was taken for which, of two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from arelu_tl.render.figures.canvas import INK, drawable, house_style, new_figure, panel

# Up to so many classes a cell has room for its count, and a matrix for its names.
MOST_COUNTED = 15
MOST_DRAWN = 60

Counts = NDArray[np.int64]


def confusion_matrix(labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> Counts:
    """How often class i was taken for class j (C, C).

    Raises:
        KeyError: a label is not among ``classes``.
    """
    number = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, ([number[name] for name in labels], [number[name] for name in predicted]), 1)
    return counts


@house_style
def confusion_figure(matrices: Sequence[tuple[str, Counts]], classes: Sequence[str]) -> Figure | None:
    """A matrix for each (title, counts); shades are shares of the true class. None for more classes than can be read."""
    count = len(classes)
    if count > MOST_DRAWN:
        return None
    names = [drawable(name, 14) for name in classes]
    size = 8 if count <= MOST_COUNTED else 5.5 if count <= 40 else 4
    # Inches: a matrix, and what the names beside and below it take.
    side, room = min(5.3, max(2.4, 0.42 * count)), 0.35 + 0.0095 * size * max(map(len, names))
    figure = new_figure(room + 2 * side + 1.4, room + side + 0.55)
    for number, (title, counts) in enumerate(matrices):
        axes = panel(figure, room + number * (side + 0.2), room + 0.15, side, side)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(drawable(title, 60), loc="left", fontsize=10, fontweight="bold", y=1.0, pad=6, parse_math=False)
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names if number == 0 else [""] * count, fontsize=size, parse_math=False)
        axes.set_xlabel("predicted")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if count <= MOST_COUNTED:
            _write_counts(axes, counts, shares)
    figure.axes[0].set_ylabel("true class")
    bar = figure.colorbar(drawn, cax=panel(figure, room + 2 * side + 0.35, room + 0.15, 0.13, side))
    bar.outline.set_visible(False)
    bar.set_label("share of the true class")
    return figure


def _write_counts(axes: Axes, counts: Counts, shares: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(counts):
        if value:
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(value), ha="center", va="center", fontsize=7.5, color=color)
