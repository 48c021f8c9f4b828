"""The figures of ``explain`` hold the numbers they claim to show, however many sites there are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from arelu_tl.explain.activations.report import RunCurves, Shape, SiteCurve
from arelu_tl.explain.activations.show import found_in_curves, gallery_figure, site_curves_figures
from arelu_tl.explain.gradients.report import (
    GradientPoint,
    GradientReport,
    SiteGradient,
    WeightGradient,
)
from arelu_tl.explain.gradients.show import gradients_figure
from arelu_tl.render.figures.canvas import png
from arelu_tl.render.figures.sites import SiteValues

SITES, LAYERS = 6, 9


def point(arm: str, step: int, seed: int, *, layers: int = LAYERS) -> GradientPoint:
    stream = np.random.default_rng(seed)

    def drawn(count: int) -> list[list[float]]:
        return stream.uniform(0.01, 1, (count, 5)).tolist()

    sites = [
        SiteGradient(f"site {n}", a, b, c * d, d, e)
        for n, (a, b, c, d, e) in enumerate(drawn(SITES))
    ]
    weights = [
        WeightGradient(f"layer {n}", a, b, c, d * e, e)
        for n, (a, b, c, d, e) in enumerate(drawn(layers))
    ]
    return GradientPoint(arm, step, "training", sites, weights)


def report(*points: GradientPoint) -> GradientReport:
    return GradientReport("m", "d", 1e-3, 0, 8, 2, 0.01, list(points))


def marked(figure: Figure, panel: int) -> list[np.ndarray]:
    """The curves with markers in a panel, in order: (N, 2) each."""
    return [
        np.asarray(line.get_xydata())
        for line in figure.axes[panel].lines
        if line.get_marker() not in ("None", "", None)
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_gradients_by_depth_at_both_ends_and_medians_along_training() -> None:
    points = [
        point(arm, step, 10 * n + step)
        for n, arm in enumerate(("relu", "arelu"))
        for step in (0, 3, 6)
    ]
    figure = gradients_figure(report(*points), "a $x$ title")
    assert len(figure.axes) == 12
    of = (
        lambda p: [s.norm for s in p.sites],
        lambda p: [s.vanishing for s in p.sites],
        lambda p: [s.gain for s in p.sites],
        lambda p: [w.relative for w in p.weights],
    )
    for row, values in enumerate(of):
        for arm in range(2):
            start, middle, end = points[3 * arm : 3 * arm + 3]
            np.testing.assert_allclose(marked(figure, 3 * row)[arm][:, 1], values(start))
            np.testing.assert_allclose(marked(figure, 3 * row + 1)[arm][:, 1], values(end))
            medians = [(p.step, np.median(values(p))) for p in (start, middle, end)]
            np.testing.assert_allclose(marked(figure, 3 * row + 2)[arm], medians)
    dotted = [line for line in figure.axes[3].lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(np.asarray(dotted[0].get_ydata()), [s.zero for s in points[0].sites])
    assert {"at the start", "after 6 steps", "a $x$ title", "relu", "arelu"} <= set(texts(figure))
    png(figure)


def test_a_start_alone_and_an_arm_that_was_not_trained() -> None:
    figure = gradients_figure(
        report(point("relu", 0, 1, layers=0), point("arelu", 0, 2, layers=0)), ""
    )
    assert len(figure.axes) == 3
    figure = gradients_figure(
        report(point("relu", 0, 1), point("arelu", 0, 2), point("arelu", 9, 3)), ""
    )
    assert len(figure.axes) == 12
    assert "after 9 steps" in texts(figure)
    assert len(marked(figure, 1)) == 1
    figure = gradients_figure(
        report(
            *(
                point(arm, step, 1)
                for arm, step in [("relu", 0), ("relu", 4), ("arelu", 0), ("arelu", 6)]
            )
        ),
        "",
    )
    assert "after 4 (relu), 6 (arelu) steps" in texts(figure)


def test_sites_that_no_gradient_reaches_have_no_place_in_the_median() -> None:
    cut = point("relu", 0, 1)
    sites = [SiteGradient("cut", 0.0, 0.0, 1.0, 1.0, None), *cut.sites[1:]]
    points = [GradientPoint("relu", step, "start", sites, cut.weights) for step in (0, 5)]
    figure = gradients_figure(report(*points, point("arelu", 0, 2), point("arelu", 5, 2)), "")
    assert np.isnan(marked(figure, 0)[0][0, 1])
    np.testing.assert_allclose(
        marked(figure, 2)[0][:, 1], np.median([s.norm for s in cut.sites[1:]])
    )
    png(figure)


def curves(count: int, *, channels: int = 1, moved: float = 0.1) -> RunCurves:
    x = np.linspace(-4, 4, 41)
    sites = []
    for n in range(count):
        start = np.where(x < 0, 0.1 * x, x)
        final = start * (1 + moved * (n + 1) / count)
        spread = 0.05 * np.abs(x) if channels > 1 else 0 * x
        learnt = {"alpha": (0.1, 0.2), "beta": (2.0, 2.5)}
        sites.append(
            SiteCurve(
                f"blocks.{n}.act",
                None,
                1.0,
                channels,
                start,
                final,
                final - spread,
                final + spread,
                learnt,
            )
        )
    return RunCurves("m", "arelu", 20, x, sites)


@pytest.mark.parametrize("count", [1, 7, 50])
def test_every_site_has_a_panel_however_many_there_are(count: int) -> None:
    told = curves(count)
    figures = list(site_curves_figures(told, None, "a title"))
    assert len(figures) == -(-count // 49)
    shown = 0
    for figure in figures:
        half = len(figure.axes) // 2
        for panel, site in zip(
            figure.axes[:half] if count == 1 else figure.axes[0::2],
            told.sites[shown:],
            strict=False,
        ):
            drawn = [np.asarray(line.get_ydata()) for line in panel.lines]
            assert any(np.array_equal(line, site.final) for line in drawn)
            assert any(np.array_equal(line, site.start) for line in drawn)
        shown += half
    assert shown == count
    assert f"{count - 1}  blocks.{count - 1}.act" in texts(figures[-1])
    assert "α 0.1→0.2  β 2→2.5" in texts(figures[0])
    with Image.open(io.BytesIO(png(figures[-1]))) as picture:
        assert picture.size[0] == 1716


def test_the_course_and_the_band_of_channels_stand_below_on_one_scale() -> None:
    told = curves(3, channels=4)
    names = [site.name for site in told.sites]
    alpha = np.tile([0.1, 0.2, 0.3], (3, 1))
    course = SiteValues(
        names, np.array([0, 10, 20]), alpha, np.full((3, 3), 2.0), np.ones(3), np.full(3, np.inf)
    )
    (figure,) = site_curves_figures(told, course, "")
    strips = figure.axes[1:6:2]
    assert len({strip.get_ylim() for strip in strips}) == 1
    assert all(strip.collections for strip in strips)
    below = told.x < 0
    lines = [np.asarray(line.get_ydata()) for line in strips[0].lines]
    for value in (0.2, 0.3):
        np.testing.assert_allclose(
            np.min([np.abs(line[below] - (value - 0.1) * told.x[below]).max() for line in lines]),
            0,
            atol=1e-12,
        )
    assert "on the way, by step" in texts(figure)
    assert "least to greatest of its channels" in texts(figure)


def test_what_has_not_moved_says_so_and_has_no_strip() -> None:
    still = curves(2, moved=0.0)
    (figure,) = site_curves_figures(still, None, "")
    assert len(figure.axes) == 2
    assert (
        found_in_curves(still)
        == "None of the 2 activations of arelu differs from its start (for x from -4 to 4)."
    )
    assert (
        "by at most 0.3 at the median site and 0.4 at the one that moved most, blocks.1.act"
        in found_in_curves(curves(2))
    )


def test_the_gallery_draws_f_and_its_derivative_with_formula_and_what_is_learnt() -> None:
    x = np.linspace(-5, 5, 21)
    shapes = [
        Shape(
            f"s{n}",
            f"Shape{n}",
            "a formula that is longer than the panel is wide",
            n,
            "",
            x,
            n * x,
            x * 0 + n,
        )
        for n in range(7)
    ]
    figure = gallery_figure(shapes)
    assert len(figure.axes) == 7
    for panel, shape in zip(figure.axes, shapes, strict=True):
        drawn = [np.asarray(line.get_ydata()) for line in panel.lines]
        assert any(np.array_equal(line, shape.y) for line in drawn)
        assert any(np.array_equal(line, shape.slope) for line in drawn)
    assert {"Shape0", "Shape1 (learns 1)", "Shape6 (learns 6)"} <= set(texts(figure))
    png(figure)
