"""Confusion matrices of one run, or of two side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from arelu_tl.render.figures.canvas import INK, color_bar, drawable, house_style, new_figure, panel

# Up to MOST_COUNTED classes, a cell of two matrices has room for its count; up to MOST_DRAWN, a
# matrix has room for the names.
MOST_COUNTED = 15
MOST_DRAWN = 60
_ROOM_FOR_A_COUNT = 0.35

Counts = NDArray[np.int64]


def confusion_matrix(
    labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]
) -> Counts:
    """Count how often class i was predicted as class j (C, C).

    Raises:
        KeyError: a label is not among ``classes``.
    """
    number = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, ([number[name] for name in labels], [number[name] for name in predicted]), 1)
    return counts


def most_confused(counts: Counts, classes: Sequence[str], most: int) -> tuple[Counts, list[str]]:
    """Reduce the matrix to at most ``most`` rows and columns.

    The classes with the most mistakes are kept, in their own order; all others become one class,
    the last. Its diagonal cell counts pictures of these others predicted as any of them.
    """
    if len(classes) <= most:
        return counts, list(classes)
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    kept = np.sort(np.argsort(-mistakes, kind="stable")[: most - 1])
    group = np.full(len(classes), most - 1)
    group[kept] = np.arange(most - 1)
    merged = np.zeros((most, most), dtype=np.int64)
    np.add.at(merged, (group[:, None], group[None, :]), counts)
    return merged, [classes[i] for i in kept] + [f"{len(classes) - len(kept)} others"]


@house_style
def confusion_figure(
    matrices: Sequence[tuple[str, Counts]], classes: Sequence[str]
) -> Figure | None:
    """A matrix for each (title, counts), shaded by the share of the true class.

    None for more classes than can be read.
    """
    count = len(classes)
    if count > MOST_DRAWN:
        return None
    names = [drawable(name, 14) for name in classes]
    # Inches: the side of a matrix, and the room for the names beside and below it.
    side = min(5.3 if len(matrices) > 1 else 9.5, max(2.4, 0.42 * count))
    size = min(8, max(4, 43 * side / count))
    room = 0.35 + 0.0095 * size * max(map(len, names))
    edge = room + len(matrices) * (side + 0.2) - 0.2
    figure = new_figure(edge + 1.2, room + side + 0.55)
    for number, (title, counts) in enumerate(matrices):
        axes = panel(figure, room + number * (side + 0.2), room + 0.15, side, side)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(
            drawable(title, 60),
            loc="left",
            fontsize=10,
            fontweight="bold",
            y=1.0,
            pad=6,
            parse_math=False,
        )
        axes.set_xticks(
            range(count),
            names,
            rotation=90 if max(map(len, names)) > 2 else 0,
            fontsize=size,
            parse_math=False,
        )
        axes.set_yticks(
            range(count), names if number == 0 else [""] * count, fontsize=size, parse_math=False
        )
        axes.set_xlabel("predicted")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if side / count >= _ROOM_FOR_A_COUNT:
            _write_counts(axes, counts, shares)
    figure.axes[0].set_ylabel("true class")
    color_bar(
        figure,
        drawn,
        panel(figure, edge + 0.15, room + 0.15, 0.13, side),
        label="share of the true class",
    )
    return figure


def _write_counts(axes: Axes, counts: Counts, shares: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(counts):
        if value:
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(value), ha="center", va="center", fontsize=7.5, color=color)
