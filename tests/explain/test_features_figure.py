"""The page of explain features draws what it is given, in the same colours for both arms, whatever a class is called."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image
from trained_runs import write_trained_run

from arelu_tl.explain.features.show import features_figure, features_report
from arelu_tl.explain.features.study import FeatureReport, explain_features
from arelu_tl.render.console import Output
from arelu_tl.render.figures.canvas import png

NAMES = ["$\\frac{", "日本", "a\x1b[31m", "<b>" * 30]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("features")
    for arm in ("relu", "arelu"):
        write_trained_run(place, "test_resnet", arm=arm, size=96, names=NAMES)
    stream = np.random.default_rng(0)
    Image.fromarray(stream.integers(0, 255, (96, 120, 3), dtype=np.uint8)).save(
        place / "a $picture$.png"
    )
    return place


@pytest.fixture(scope="module")
def report(place: Path) -> FeatureReport:
    return explain_features(place / "arelu-lr0.0001-s0", place / "a $picture$.png")


@pytest.fixture(scope="module")
def figure(report: FeatureReport) -> Figure:
    return features_figure(report)


def images(figure: Figure) -> list[AxesImage]:
    return [image for axes in figure.axes for image in axes.images]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_every_map_of_every_shown_site_is_drawn(figure: Figure, report: FeatureReport) -> None:
    drawn = [np.asarray(image.get_array()) for image in images(figure)]
    for _, shown in report.shown:
        for maps in shown.maps.values():
            assert maps.attention is not None
            for part in (*maps.before, *maps.attention, *maps.after, maps.mean_attention):
                assert any(
                    each.shape == part.shape and np.array_equal(each, part) for each in drawn
                )
    assert any(np.array_equal(each, report.picture) for each in drawn)


def test_colours_mean_the_same_in_both_arms(figure: Figure, report: FeatureReport) -> None:
    """Of each site, before and after have a scale around 0, attention one from 0, and of the evidence there is one."""
    for _, shown in report.shown:
        for row in ("before", "attention", "after"):
            scales: dict[str, set[tuple[float, float]]] = {arm: set() for arm in shown.maps}
            for arm, maps in shown.maps.items():
                for number, part in enumerate(getattr(maps, row)):
                    # What is the same in several rows, as the output of a channel above 0, does not tell which it is drawn in.
                    others = (maps.before, maps.attention, maps.after)
                    if (
                        np.ptp(part)
                        and sum(np.array_equal(part, each[number]) for each in others) == 1
                    ):
                        scales[arm] |= {
                            i.get_clim()
                            for i in images(figure)
                            if np.array_equal(np.asarray(i.get_array()), part)
                        }
            ((low, high),) = scales["relu"] | scales["arelu"]
            assert low == (0 if row == "attention" else -high)
            assert high > 0
            assert scales["arelu"]
    evidence = {image.get_clim() for image in images(figure) if image.get_cmap().name == "inferno"}
    ((low, high),) = evidence
    assert (low, high) == (
        0,
        max(
            float(a.evidence.shares.max()) for a in report.answers if a.evidence.shares is not None
        ),
    )


def test_names_of_any_kind_and_all_that_is_told(figure: Figure, report: FeatureReport) -> None:
    with Image.open(
        io.BytesIO(png(figure))
    ) as picture:  # would raise if $\\frac{ were read as mathematics
        assert 1500 < picture.width < 1600
    told = words(figure)
    for answer in report.answers:
        assert answer.arm in told
        assert f"({answer.top(1)[0][1]:.2f})" in told
    for site, shown in report.shown:
        assert site.title in told
        assert all(f"channel {channel}" in told for channel in shown.channels)
        assert f"{site.statistics['relu'].negative_share:.0%}" in told
    assert "a $picture$.png" in told
    assert "\x1b" not in told
    assert "Grad-CAM" in told


def test_the_table_tells_the_same_and_no_name_is_markup(
    report: FeatureReport, capsys: pytest.CaptureFixture[str]
) -> None:
    Output().report(*features_report(report, Path("a[bold].png")), data=None)
    told = capsys.readouterr().out
    assert "figure: a[bold].png" in told
    assert "\x1b" not in told
    for site, _ in report.shown:
        assert site.title in told
        assert f"{site.statistics['arelu'].attention_negative:.3f}" in told
    for answer in report.answers:
        assert f"{answer.top(1)[0][1]:.3f}" in told


def test_one_line_stands_for_what_cannot_be_drawn(place: Path, tmp_path: Path) -> None:
    run = write_trained_run(tmp_path, "mobilenetv3_small_050", arm="softplus", size=32)
    report = explain_features(
        run, place / "a $picture$.png", site=["blocks.0.0.se.act1", "blocks.0.0.bn1.act"]
    )
    told = words(features_figure(report))
    assert "not drawn: its channels are no maps over the picture" in told
    assert "does not keep 0 at 0" in told
    assert "one place only" in told
    assert "shown alone" in told


def test_eight_channels_fit_and_a_class_that_is_asked_for_is_among_the_bars(place: Path) -> None:
    run = place / "relu-lr0.0001-s0"
    figure = features_figure(
        explain_features(run, place / "a $picture$.png", channels=8, label=NAMES[2])
    )
    assert "a\\x1b[31m, asked for" in words(figure)
    figure.draw_without_rendering()
    whole = figure.bbox
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            at = text.get_window_extent()
            assert whole.x0 <= at.x0 <= at.x1 <= whole.x1, text
            assert whole.y0 <= at.y0 <= at.y1 <= whole.y1, text
