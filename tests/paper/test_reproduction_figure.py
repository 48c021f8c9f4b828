"""The curves of a reproduction: each activation is drawn where it was measured, and every letter stands on the paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.analysis.results import Spread
from arelu_tl.paper.results import Column, Entry, Reproduction
from arelu_tl.paper.show import reproduction_figure, reproduction_markdown


def entry(name: str, height: float) -> Entry:
    spread = Spread(height, 0.1, [height - 0.1, height + 0.1])
    mean = [0.1, height / 2, height]
    curve = {
        "step": [0.0, 5.0, 10.0],
        "mean": mean,
        "low": [m - 0.1 for m in mean],
        "high": [m + 0.1 for m in mean],
    }
    return Entry(name, [0, 1], spread, spread, spread, spread, 0, curve)


def made(studies: dict[str, tuple[float, ...]], *, transfer: bool = False) -> Reproduction:
    """All nineteen, the later the better, in a column for each study and rate."""
    names = list(CATALOGUE)
    columns = [
        Column(
            study,
            "sgd",
            lr,
            {n: entry(n, 0.3 + 0.03 * i) for i, n in enumerate(names)},
            best,
            {"fixed": 0.1},
            1,
            19,
        )
        for study, rates in studies.items()
        for lr in rates
        for best in [{"fixed": "tanh", "learnable": "slaf"}]
    ]
    groups = {name: "learnable" if each.learnable else "fixed" for name, each in CATALOGUE.items()}
    return Reproduction(
        names, groups, {name: each.title for name, each in CATALOGUE.items()}, columns, [], transfer
    )


def test_one_training_each_is_said_beside_the_marks() -> None:
    told = made({"sgd": (1e-4,)})
    once = "Of one training each: another seed may place them otherwise."
    assert once not in reproduction_markdown(told, "")
    (column,) = told.columns
    single = {name: replace(each, seeds=[0]) for name, each in column.entries.items()}
    assert once in reproduction_markdown(
        replace(told, columns=[replace(column, entries=single)]), ""
    )


@pytest.mark.parametrize(
    ("studies", "transfer"),
    [
        ({"sgd": (1e-2, 1e-3, 1e-4, 1e-5), "adam": (1e-2, 1e-3, 1e-4, 1e-5)}, False),
        ({"sgd": (1e-4,)}, False),
        ({"digits-to-sklearn-digits": (1e-5,), "sklearn-digits-to-digits": (1e-5,)}, True),
    ],
    ids=["table", "cell", "transfer"],
)
def test_every_curve_is_drawn_and_every_letter_is_on_the_paper(
    studies: dict[str, tuple[float, ...]], transfer: bool
) -> None:
    told = made(studies, transfer=transfer)
    figure = reproduction_figure(told)
    assert len(figure.axes) == len(told.columns)
    for axes, column in zip(figure.axes, told.columns, strict=True):
        drawn = [np.asarray(line.get_ydata()) for line in axes.lines]
        assert len(drawn) == 19
        for each in column.entries.values():
            assert any(np.array_equal(line, each.curve["mean"]) for line in drawn)
        words = " ".join(text.get_text() for text in axes.texts)
        assert "Tanh" in words
        assert "SLAF" in words
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    boxes = [
        t.get_window_extent()
        for t in figure.findobj(Text)
        if t.get_text().strip() and t.get_visible()
    ]
    assert boxes
    assert all(
        box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1
        for box in boxes
    )
    legend = figure.legends[0].get_window_extent()
    titles = [axes.title.get_window_extent() for axes in figure.axes] + [
        axes._left_title.get_window_extent() for axes in figure.axes
    ]
    assert all(title.y1 <= legend.y0 for title in titles)
