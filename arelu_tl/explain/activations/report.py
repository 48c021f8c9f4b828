"""Activations as curves: those that a run has learnt, and the catalogue's. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SiteCurve:
    """A site's activation at the start and after training, at the inputs x (N,) of ``RunCurves``.

    Attributes:
        name: of the site.
        cap: upper bound of its output; None for no cap.
        scale: AReLU's constant on both branches; 1 for other activations.
        channels: number of its curves: 1, or one per channel.
        start, final: y (N,), means over the channels.
        low, high: least and greatest of the channels' final curves (N,); equal to ``final`` where
            there is one curve.
        learnt: {parameter: (start, final)}, means over the channels; {} where there are no
            parameters.
    """

    name: str
    cap: float | None
    scale: float
    channels: int
    start: Floats = field(repr=False)
    final: Floats = field(repr=False)
    low: Floats = field(repr=False)
    high: Floats = field(repr=False)
    learnt: dict[str, tuple[float, float]]

    @property
    def change(self) -> float:
        """The largest |final - start|."""
        return float(np.abs(self.final - self.start).max())

    def slopes(self, x: Floats) -> tuple[float, float]:
        """Return the mean final slopes (between -1 and 0, between 0 and 1)."""
        below, zero, above = np.interp((-1.0, 0.0, 1.0), x, self.final)
        return float(zero - below), float(above - zero)


_CURVES = ("start", "final", "low", "high")


@dataclass(frozen=True)
class RunCurves:
    """The activations of a run.

    Attributes:
        model, arm: of the run.
        step: of the weights that ``final`` was computed with.
        x: inputs (N,), ascending.
        sites: in the order of the forward pass.
    """

    model: str
    arm: str
    step: int
    x: Floats = field(repr=False)
    sites: list[SiteCurve] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Make the content of activations.json; low and high only for sites with several curves."""
        return {
            "model": self.model,
            "arm": self.arm,
            "step": self.step,
            "x": _rounded(self.x),
            "sites": [
                {
                    "name": s.name,
                    "cap": s.cap,
                    "scale": s.scale,
                    "channels": s.channels,
                    "change": s.change,
                    "learnt": s.learnt,
                }
                | {
                    name: _rounded(getattr(s, name))
                    for name in _CURVES[: 4 if s.channels > 1 else 2]
                }
                for s in self.sites
            ],
        }


@dataclass(frozen=True)
class Shape:
    """An activation f with its initial parameters, and its derivative, at the inputs ``x`` (N,).

    Attributes:
        name: of the catalogue's entry, or of the combination.
        title: its name in figures.
        formula: of f.
        parameters: number of its learnable parameters.
        source: where it was proposed; "" for none.
        x: inputs (N,).
        y, slope: f(x) and f'(x), each (N,).
    """

    name: str
    title: str
    formula: str
    parameters: int
    source: str
    x: Floats = field(repr=False)
    y: Floats = field(repr=False)
    slope: Floats = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the shape as plain JSON values."""
        words = {
            key: getattr(self, key) for key in ("name", "title", "formula", "parameters", "source")
        }
        return {**words, **{key: _rounded(getattr(self, key)) for key in ("x", "y", "slope")}}


def _rounded(values: Floats) -> list[float]:
    # They were computed in float32: more digits would be noise, and the file three times as long.
    return [float(f"{value:.7g}") for value in values]
