"""Figures hold the numbers they claim to show, and nothing in a name can break them."""

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.text import Text
from PIL import Image
from report_study import Study, write_grid
from run_folders import write_run

from arelu_tl.activation.functional import arelu
from arelu_tl.analysis.comparison import compare
from arelu_tl.analysis.results import Comparison
from arelu_tl.errors import ArtefactError
from arelu_tl.records.runs import load_run
from arelu_tl.render.figures.canvas import arm_styles, drawable, png, svg
from arelu_tl.render.figures.confusion import confusion_figure, confusion_matrix
from arelu_tl.render.figures.convergence import convergence_figure
from arelu_tl.render.figures.rates import rates_figure
from arelu_tl.render.figures.sites import activations_figure, read_site_values, site_values_figure


def lines_of(figure: Figure, panel: int) -> list[np.ndarray]:
    """What is drawn as curves in a panel, in order: (N, 2) each; the target, marks and the ends of whiskers are none."""
    return [
        np.asarray(line.get_xydata())
        for line in figure.axes[panel].lines
        if line.get_marker() not in ("None", "", None) and line.get_linestyle() != "None"
    ]


def grid(
    tmp_path: Path, rates: tuple[float, ...], seeds: tuple[int, ...], **settings: int
) -> Comparison:
    write_grid(tmp_path, ("relu", "arelu", "leaky"), rates, seeds, **settings)
    return compare([tmp_path])


def test_convergence_draws_each_arm_of_each_rate(study: Study) -> None:
    figure = convergence_figure(study.comparison, "a title")
    rates = sorted({cell.lr for cell in study.comparison.cells})
    assert len(figure.axes) == 3 * len(rates)
    for row, lr in enumerate(rates):
        for column, (x, y) in enumerate((("step", "top1"), ("seconds", "top1"), ("step", "loss"))):
            drawn = lines_of(figure, 3 * row + column)
            for arm, line in zip(study.comparison.arms, drawn, strict=True):
                cell = study.comparison.cell(arm, lr)
                assert cell is not None
                np.testing.assert_allclose(line, np.transpose([cell.curve[x], cell.curve[y]]))
            bands = [
                patch
                for patch in figure.axes[3 * row + column].findobj(Polygon)
                if patch.get_alpha() == 0.16
            ]
            assert len(bands) == 3
    assert len(figure.legends) == 1
    assert all(axes.get_legend() is None for axes in figure.axes)
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert {f"learning rate {lr:g}" for lr in rates} <= set(shown)
    assert any(text.startswith("target ") for text in shown)


def test_one_seed_has_no_band_and_tells_the_area_in_the_legend(tmp_path: Path) -> None:
    comparison = grid(tmp_path, (1e-3,), (0,))
    figure = convergence_figure(comparison, "")
    assert not [patch for patch in figure.axes[0].findobj(Polygon) if patch.get_alpha() == 0.16]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    cell = comparison.cell("arelu", 1e-3)
    assert cell is not None
    assert f"arelu (AULC {cell.aulc.mean:.3f})" in shown


def test_where_an_arm_reached_the_target_is_marked_by_the_median(tmp_path: Path) -> None:
    for seed, slow in ((0, 0.0), (1, 0.0), (2, 0.1)):
        write_run(tmp_path, "relu", [0.1, 0.3, 0.5, 0.9], lr=1e-3, seed=seed)
        write_run(tmp_path, "arelu", [0.1, 0.9 - slow, 0.95, 0.95], lr=1e-3, seed=seed)
    figure = convergence_figure(compare([tmp_path]), "")
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert "step 10  arelu" in shown
    assert "step 30  relu" in shown
    assert "5 s  arelu" in shown


def test_two_hundred_evaluations_have_few_markers(tmp_path: Path) -> None:
    figure = convergence_figure(grid(tmp_path, (1e-3,), (0,), evaluations=200), "")
    for line in figure.axes[0].lines:
        if line.get_marker() not in ("None", "", None):
            start, every = line.get_markevery()
            assert len(range(start, 200, every)) <= 15


def test_a_loss_that_blew_up_is_drawn_on_a_logarithmic_axis(tmp_path: Path) -> None:
    write_run(tmp_path, "relu", [0.1, 0.2, 0.3], lr=1e-3, losses=[2.0, 1.5, 1.0])
    write_run(tmp_path, "arelu", [0.1, 0.2, 0.3], lr=1e-3, losses=[2.0, 900.0, 1.0])
    figure = convergence_figure(compare([tmp_path]), "")
    assert figure.axes[2].get_yscale() == "log"
    assert figure.axes[2].get_ylim()[1] > 900


def test_files_are_a_png_and_valid_xml_and_no_name_is_taken_for_mathematics(study: Study) -> None:
    figure = convergence_figure(study.comparison, "a $x$ \\frac{ $ title\x1b[31m")
    with Image.open(io.BytesIO(png(figure))) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] == 1716
    root = ET.fromstring(svg(figure))
    assert root.tag.endswith("svg")
    (title,) = [text for text in figure.texts if "title" in text.get_text()]
    assert title.get_text() == "a $x$ \\frac{ $ title\\x1b[31m"
    assert not title.get_parse_math()
    assert all(not text.get_parse_math() for text in figure.legends[0].get_texts())


def test_the_same_figure_is_the_same_file(study: Study) -> None:
    assert svg(convergence_figure(study.comparison, "x")) == svg(
        convergence_figure(study.comparison, "x")
    )


def test_accuracy_against_rate(study: Study, tmp_path: Path) -> None:
    figure = rates_figure(study.comparison)
    assert figure is not None
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    rates = sorted({cell.lr for cell in study.comparison.cells})
    for panel, key in ((0, "best_top1"), (1, "aulc")):
        curves = [line for line in lines_of(figure, panel) if len(line) == len(rates)]
        for arm, line in zip(study.comparison.arms, curves, strict=True):
            cells = [study.comparison.cell(arm, lr) for lr in rates]
            np.testing.assert_allclose(line[:, 1], [getattr(cell, key).mean for cell in cells])
            np.testing.assert_allclose(line[:, 0], rates, rtol=0.2)
    assert rates_figure(grid(tmp_path, (1e-3,), (0,))) is None


def test_alpha_and_beta_by_site_first_site_on_top(study: Study) -> None:
    run = next(run for run in study.runs if run.config.arm == "arelu" and run.status == "finished")
    values = read_site_values(run)
    assert values is not None
    assert values.names == ["act0", "act1", "act2"]
    rows = [row for row in run.metrics if row["split"] == "val"]
    assert values.steps.tolist() == [row["step"] for row in rows]
    np.testing.assert_allclose(values.alpha[2], [row["sites"]["act2"][0] for row in rows])
    figure = site_values_figure(values)
    assert figure is not None
    level, change = figure.axes[0], figure.axes[1]
    np.testing.assert_allclose(np.asarray(level.collections[0].get_array()), values.alpha)
    np.testing.assert_allclose(
        np.asarray(change.collections[0].get_array()), values.alpha - values.alpha[:, :1]
    )
    assert level.get_ylim()[0] > level.get_ylim()[1]
    assert [label.get_text() for label in level.get_yticklabels()] == values.names


def test_learnt_activations_are_those_that_run(study: Study) -> None:
    run = next(run for run in study.runs if run.config.arm == "arelu" and run.status == "finished")
    assert run.surgery is not None
    run.surgery["sites"][1]["cap"] = 1.5
    values = read_site_values(run)
    run.surgery["sites"][1]["cap"] = None
    assert values is not None
    x = np.linspace(-3, 3, 25)
    for site, name in enumerate(values.names):
        alpha, beta = (
            torch.tensor([told[site, -1]], dtype=torch.float64)
            for told in (values.alpha, values.beta)
        )
        cap = None if np.isinf(values.cap[site]) else float(values.cap[site])
        expected = arelu(
            torch.tensor(x), alpha, beta, scale=torch.tensor(values.scale[site]), cap=cap
        )
        np.testing.assert_allclose(
            values.outputs(x, -1)[site], expected.numpy(), atol=1e-12, err_msg=name
        )
    figure = activations_figure(values)
    drawn = [np.asarray(line.get_xydata()) for line in figure.axes[0].lines]
    np.testing.assert_allclose(drawn[2][:, 1], values.outputs(drawn[2][:, 0], -1)[2])


def test_runs_without_learnt_sites_have_none(study: Study, tmp_path: Path) -> None:
    leaky = next(run for run in study.runs if run.config.arm == "leaky")
    assert read_site_values(leaky) is None
    run = load_run(write_run(tmp_path, "arelu", [0.1]))
    values = read_site_values(run)
    assert values is not None
    assert site_values_figure(values) is None  # a single record has no course
    run.metrics[0]["sites"] = {"act0": [0.1]}
    with pytest.raises(ArtefactError, match=r"metrics\.jsonl"):
        read_site_values(run)


def test_confusion_matrices(study: Study) -> None:
    classes = ["$a$ \\frac{", "b\x00", "日"]
    counts = confusion_matrix(["b\x00", "b\x00", "日"], ["b\x00", "日", "日"], classes)
    assert counts.tolist() == [[0, 0, 0], [0, 1, 1], [0, 0, 1]]
    figure = confusion_figure([("relu", counts), ("arelu", counts.T)], classes)
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "1"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "$a$ \\frac{",
        "b\\x00",
        "□",
    ]
    png(figure)  # would raise if \frac{ were read as mathematics
    many = [f"class {n}" for n in range(40)]
    figure = confusion_figure([("relu", np.eye(40, dtype=np.int64))] * 2, many)
    assert figure is not None
    assert not figure.axes[0].texts
    assert (
        confusion_figure([("relu", np.eye(61, dtype=np.int64))] * 2, [str(n) for n in range(61)])
        is None
    )


def test_every_arm_looks_different_by_colour_line_and_marker() -> None:
    arms = ["relu", "arelu", "arelu (init paper)", "leaky", "prelu", "arelu-frozen", "recalibrated"]
    styles = arm_styles(arms)
    assert len({style.color for style in styles.values()}) == len(arms)
    assert len({style.marker for style in styles.values()}) == len(arms)
    assert styles["relu"].marker == "s"
    assert styles["arelu"].linestyle == "-"
    assert styles["relu"].linestyle != "-"
    assert arm_styles(["relu", "arelu"])["arelu"] == styles["arelu"]
    many = arm_styles([f"arm {n}" for n in range(30)])
    assert len(set(many.values())) == 30


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\nb\u202e", "a\\nb\\u202e"),
        ("日本", "□□"),
        ("n" * 50, "n" * 6 + "…" + "n" * 3),
        ("Äé√", "Äé√"),
    ],
)
def test_foreign_text_is_drawable(text: str, shown: str) -> None:
    assert drawable(text, 10) == shown
