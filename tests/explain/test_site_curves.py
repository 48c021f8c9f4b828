"""Curves of a run are those that its activations compute, and the catalogue's derivatives are their slopes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_runs import write_trained_run

from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.explain.activations.study import catalogue_shapes, run_curves
from arelu_tl.records.weights import load_weights

TINY: dict[str, Any] = {"name": "test_resnet", "size": 32}


def expected(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray, scale: float) -> np.ndarray:
    """Equation 3 of the paper, times the scale: (N, C)."""
    left, right = scale * np.clip(alpha, 0.01, 0.99), scale * (1 + 1 / (1 + np.exp(-beta)))
    return np.where(x[:, None] < 0, x[:, None] * left, x[:, None] * right)


@pytest.mark.parametrize("granularity", ["site", "channel"])
def test_an_arelus_curve_is_the_papers_formula_with_what_was_learnt(
    tmp_path: Path, granularity: str
) -> None:
    run = write_trained_run(tmp_path, **TINY, granularity=granularity)
    weights, card = load_weights(run / "best.safetensors")
    assert card is not None
    curves = run_curves(run)
    records = card["sites"]
    assert [site.name for site in curves.sites] == [record["name"] for record in records]  # type: ignore[attr-defined]
    assert (curves.arm, curves.step) == ("arelu", 10)
    widths = set()
    for site, record in zip(curves.sites, records, strict=True):  # type: ignore[arg-type, call-overload]
        alpha, beta = (
            weights[f"{site.name}.{which}"].double().numpy() for which in ("alpha", "beta")
        )
        now = expected(curves.x, alpha, beta, record["scale"])
        before = expected(
            curves.x, np.array([record["alpha0"]]), np.array([record["beta0"]]), record["scale"]
        )
        np.testing.assert_allclose(site.final, now.mean(1), atol=1e-5)
        np.testing.assert_allclose(site.low, now.min(1), atol=1e-5)
        np.testing.assert_allclose(site.high, now.max(1), atol=1e-5)
        np.testing.assert_allclose(site.start, before[:, 0], atol=1e-5)
        assert site.change == pytest.approx(np.abs(site.final - site.start).max())
        assert site.learnt["alpha"] == pytest.approx((record["alpha0"], alpha.mean()), rel=1e-5)
        widths.add((site.channels, alpha.size))
    assert all(drawn == learnt for drawn, learnt in widths)
    assert (max(widths) == (1, 1)) == (granularity == "site")


def test_slopes_are_told_from_the_curve(tmp_path: Path) -> None:
    curves = run_curves(write_trained_run(tmp_path, **TINY))
    for site in curves.sites:
        left, right = site.slopes(curves.x)
        inside = np.abs(curves.x) <= 1
        np.testing.assert_allclose(
            site.final[inside],
            np.where(curves.x < 0, left, right)[inside] * curves.x[inside],
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("arm", "learns"),
    [("prelu", ["weight"]), ("leaky", []), ("silu", []), ("pau", ["numerator 0", "denominator 3"])],
)
def test_every_arm_that_puts_something_in_has_curves(
    tmp_path: Path, arm: str, learns: list[str]
) -> None:
    curves = run_curves(write_trained_run(tmp_path, **TINY, arm=arm))
    assert len(curves.sites) == 12
    assert all(set(learns) <= set(site.learnt) for site in curves.sites)
    assert all(np.isfinite(site.final).all() for site in curves.sites)
    if arm == "pau":
        start = curves.sites[0].learnt["numerator 1"][0]
        assert CATALOGUE["pau"].make().numerator[1].item() == pytest.approx(start)  # type: ignore[operator, union-attr]
    if arm == "silu":
        np.testing.assert_allclose(
            curves.sites[0].final, curves.x / (1 + np.exp(-curves.x)), atol=1e-5
        )


def test_a_caps_curve_reaches_beyond_it(tmp_path: Path) -> None:
    curves = run_curves(write_trained_run(tmp_path, "tf_efficientnet_lite0", size=32))
    assert {site.cap for site in curves.sites} == {6.0}
    assert curves.x[-1] == 8
    for site in curves.sites:
        assert site.final.max() == pytest.approx(min(6.0, site.slopes(curves.x)[1] * 8), rel=1e-4)


def test_what_has_learnt_no_activation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keeps every ReLU"):
        run_curves(write_trained_run(tmp_path, **TINY, arm="relu"))
    with pytest.raises(DataError, match="neither a run"):
        run_curves(tmp_path / "nothing")


def test_the_catalogues_shapes_are_all_of_it_with_slopes_that_differences_confirm() -> None:
    shapes = catalogue_shapes()
    assert [shape.name for shape in shapes][: len(CATALOGUE)] == list(CATALOGUE)
    assert [shape.title for shape in shapes][len(CATALOGUE) :] == ["ELSA(Tanh)", "ELSA(GELU)"]
    for shape in shapes:
        steps = np.diff(shape.y) / np.diff(shape.x)
        between = (shape.slope[1:] + shape.slope[:-1]) / 2
        # At a kink the two sides differ, for one step or two.
        assert np.sum(np.abs(steps - between) > 0.02) <= 4, shape.name
    arelu = next(shape for shape in shapes if shape.name == "arelu")
    np.testing.assert_allclose(arelu.slope[[0, -1]], [0.9, 1 + 1 / (1 + np.exp(-2))], rtol=1e-6)
    tanh, attended = (next(s for s in shapes if s.name == name) for name in ("tanh", "elsa-tanh"))
    attention = np.where(tanh.x < 0, 0.9, 1 / (1 + np.exp(-2.0))) * tanh.x
    np.testing.assert_allclose(attended.y, tanh.y + attention, atol=1e-6)
