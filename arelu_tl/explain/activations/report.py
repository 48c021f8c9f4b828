"""Activations as curves: what each site of a run has learnt, and the shapes of the catalogue. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SiteCurve:
    """What a site's activation was at the start and is now, at the inputs x (N,) of its ``RunCurves``.

    Attributes:
        name: of the site.
        cap: upper bound of its output, None for none.
        scale: AReLU's constant on both branches; 1 where there is none.
        channels: how many curves it has: 1, or one a channel.
        start, final: y (N,), means over the channels.
        low, high: the least and the greatest of the channels' final curves (N,); ``final`` where there is one.
        learnt: {parameter: (start, final)}, means over the channels; {} where there is none.
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
        """(left, right) of 0: final slopes between -1 and 0 and between 0 and 1."""
        below, zero, above = np.interp((-1.0, 0.0, 1.0), x, self.final)
        return float(zero - below), float(above - zero)


_CURVES = ("start", "final", "low", "high")


@dataclass(frozen=True)
class RunCurves:
    """Attributes:
    model, arm: of the run.
    step: whose weights ``final`` is of.
    x: inputs (N,), ascending.
    sites: in the order of the forward pass.
    """

    model: str
    arm: str
    step: int
    x: Floats = field(repr=False)
    sites: list[SiteCurve] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Content of activations.json; the band of a site only where it has several curves."""
        return {
            "model": self.model,
            "arm": self.arm,
            "step": self.step,
            "x": _rounded(self.x),
            "sites": [
                {"name": s.name, "cap": s.cap, "scale": s.scale, "channels": s.channels, "change": s.change, "learnt": s.learnt}
                | {name: _rounded(getattr(s, name)) for name in _CURVES[: 4 if s.channels > 1 else 2]}
                for s in self.sites
            ],
        }


@dataclass(frozen=True)
class Shape:
    """An activation f and its derivative at the inputs ``x`` (N,), as it starts.

    Attributes:
        name: of the catalogue's entry, or what it is made of.
        parameters: numbers that it learns.
        source: where it was proposed, "" for none.
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
        words = {key: getattr(self, key) for key in ("name", "title", "formula", "parameters", "source")}
        return {**words, **{key: _rounded(getattr(self, key)) for key in ("x", "y", "slope")}}


def _rounded(values: Floats) -> list[float]:
    # Float32 computed them; more digits would be noise that makes the file three times as long.
    return [float(f"{value:.7g}") for value in values]
