"""What the sites learnt: alpha and beta over training, and the final activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from arelu_tl.errors import ArtefactError
from arelu_tl.records.runs import METRICS, RunRecord
from arelu_tl.render.figures.canvas import (
    INK,
    MUTED,
    color_bar,
    drawable,
    house_style,
    new_figure,
    panel,
)

Floats = NDArray[np.float64]
ALPHA_RANGE = (0.01, 0.99)  # the clamp of AReLU, equation 2 of the paper
_MOST_NAMES = 46
# Cividis without its lightest end, which is invisible on white.
_DEPTH = LinearSegmentedColormap.from_list(
    "depth", mpl.colormaps["cividis"](np.linspace(0, 0.86, 64))
)


@dataclass(frozen=True)
class SiteValues:
    """The recorded parameters of a run's learnable sites, in order of depth.

    Attributes:
        names: of the sites (S).
        steps: of the records (K,), ascending.
        alpha, beta: (S, K), averaged over the channels if a site has several pairs.
        scale, cap: constants of each site (S,); an infinite cap means no cap.
    """

    names: list[str]
    steps: NDArray[np.int64]
    alpha: Floats
    beta: Floats
    scale: Floats
    cap: Floats

    def slopes(self, record: int) -> tuple[Floats, Floats]:
        """The slopes left and right of 0 at record number ``record``, with the scale, each (S,)."""
        left = self.scale * np.clip(self.alpha[:, record], *ALPHA_RANGE)
        return left, self.scale * (1 + 1 / (1 + np.exp(-self.beta[:, record])))

    def outputs(self, x: Floats, record: int) -> Floats:
        """The output y (S, N) of every site at ``x`` (N,)."""
        left, right = self.slopes(record)
        return np.minimum(np.where(x < 0, left[:, None] * x, right[:, None] * x), self.cap[:, None])


def read_site_values(run: RunRecord) -> SiteValues | None:
    """Read alpha and beta over training; None if the arm has none or nothing is recorded yet.

    Raises:
        ArtefactError: the rows have different sites.
    """
    rows = [row for row in run.metrics if row.get("split") == "val" and row.get("sites")]
    if not rows:
        return None
    entries = {
        site["name"]: site
        for site in (run.surgery or {}).get("sites", [])
        if site.get("status") == "replaced"
    }
    order = {name: number for number, name in enumerate(entries)}
    names = sorted(rows[0]["sites"], key=lambda name: order.get(name, len(order)))
    try:
        values = np.array([[row["sites"][name] for row in rows] for name in names], dtype=float)
        alpha, beta = values[..., 0], values[..., 1]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{run.path / METRICS}: sites of different rows do not fit: {error}"
        ) from None

    def constants(key: str, missing: float) -> Floats:
        recorded = [entries.get(name, {}).get(key) for name in names]
        return np.array([missing if value is None else value for value in recorded], dtype=float)

    steps = np.array([row["step"] for row in rows], dtype=np.int64)
    return SiteValues(names, steps, alpha, beta, constants("scale", 1.0), constants("cap", np.inf))


@house_style
def site_values_figure(values: SiteValues) -> Figure | None:
    """alpha and beta by site and step, each beside its change since the start.

    None for a single record. Colours grow lighter with the value, so that the figure also reads in
    grey.
    """
    if len(values.steps) < 2:
        return None
    every = -(-len(values.names) // _MOST_NAMES)
    shown = list(range(0, len(values.names), every))
    names = [drawable(values.names[i], 26) for i in shown]
    # Inches: a panel's height, the room for names, a panel's width with its bar, and the heading.
    height, beside, width, above = (
        min(9.0, max(2.0, 0.14 * len(values.names))),
        0.15 + 0.058 * max(map(len, names)),
        5.15,
        0.4,
    )
    figure = new_figure(beside + 2 * width + 2.0, 2 * (height + above) + 0.45)
    panels = [
        [
            panel(
                figure,
                beside + column * (width + 1.0),
                0.45 + row * (height + above),
                width,
                height,
            )
            for column in (0, 1)
        ]
        for row in (1, 0)
    ]
    # Each evaluation covers the steps that are nearest to it.
    edges = np.concatenate(
        (values.steps[:1], (values.steps[1:] + values.steps[:-1]) / 2, values.steps[-1:])
    )
    rows = np.arange(len(values.names) + 1) - 0.5
    for (level, change), name, course in zip(
        panels, ("alpha", "beta"), (values.alpha, values.beta), strict=True
    ):
        moved: Floats = course - course[:, :1]
        most = max(float(np.abs(moved).max()), 1e-6)
        middle = float(course.min() + course.max()) / 2
        # A smaller span would show tiny differences as large ones.
        half = max(0.05, float(np.ptp(course)) / 2)
        _heat_map(figure, level, edges, rows, course, (middle - half, middle + half), name)
        _heat_map(
            figure,
            change,
            edges,
            rows,
            moved,
            (-most, most),
            f"change of {name} since the start (at most {most:.2g})",
        )
    for row in panels:
        row[0].set_yticks(shown, names, fontsize=6.5, parse_math=False)
        row[1].set_yticks([])
        for axes in row:
            axes.invert_yaxis()
    for axes in panels[0]:
        axes.tick_params(labelbottom=False)
    for axes in panels[1]:
        axes.set_xlabel("optimiser step")
    return figure


def _heat_map(
    figure: Figure,
    axes: Axes,
    x: NDArray[Any],
    y: NDArray[Any],
    values: Floats,
    limits: tuple[float, float],
    title: str,
) -> None:
    # Rasterized: thousands of vector tiles would make the page heavy, with seams between them.
    drawn = axes.pcolormesh(
        x, y, values, cmap="cividis", vmin=limits[0], vmax=limits[1], rasterized=True
    )
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", y=1.0, pad=6)
    axes.tick_params(length=2)
    _bar(figure, axes, drawn)


def _bar(figure: Figure, axes: Axes, drawn: ScalarMappable, **settings: Any) -> Colorbar:
    """Add a colour bar in the inch to the right of ``axes``."""
    left, bottom, width, height = (
        axes.get_position().bounds * np.tile(figure.get_size_inches(), 2)
    ).tolist()
    return color_bar(
        figure, drawn, panel(figure, left + width + 0.08, bottom, 0.13, height), **settings
    )


@house_style
def activations_figure(values: SiteValues) -> Figure:
    """Every site's learnt activation, and its slopes by depth, at the start and now."""
    figure = new_figure(13.2, 4.5)
    curves, slopes = panel(figure, 0.55, 0.5, 4.75, 3.65), panel(figure, 6.75, 0.5, 6.3, 3.65)
    count = len(values.names)
    colors = _DEPTH(np.linspace(0, 1, count))
    x = np.linspace(-3, 3, 241)
    for color, now in zip(colors, values.outputs(x, -1), strict=True):
        curves.plot(x, now, color=color, linewidth=0.9)
    for site in sorted({0, count // 2, count - 1}):
        curves.plot(x, values.outputs(x, 0)[site], color=INK, linewidth=1, linestyle=(0, (3, 3)))
    curves.plot(x, np.maximum(x, 0), color=MUTED, linewidth=1, linestyle=":")
    curves.set(xlabel="input x", ylabel="output y", xlim=(-3, 3))
    curves.set_title("learnt activation of each site", loc="left", fontsize=10, fontweight="bold")
    curves.legend(
        handles=[
            Line2D([], [], color=_DEPTH(0.5), label="learnt, by depth"),
            Line2D(
                [],
                [],
                color=INK,
                linewidth=1,
                linestyle=(0, (3, 3)),
                label="start: first, middle, last site",
            ),
            Line2D([], [], color=MUTED, linestyle=":", label="ReLU"),
        ],
        loc="upper left",
    )
    depth = ScalarMappable(Normalize(0, count - 1 or 1), _DEPTH)
    bar = _bar(figure, curves, depth, ticks=MaxNLocator(6, integer=True))
    bar.set_label("site, first to last")
    at = np.arange(count)
    for record, fill in ((0, "white"), (-1, None)):
        left, right = values.slopes(record)
        for value, color, marker in ((right, "#D55E00", "o"), (left, "#0072B2", "s")):
            size = 4.5 if fill is None else 7
            slopes.plot(
                at,
                value,
                linestyle="",
                marker=marker,
                color=color,
                markerfacecolor=fill or color,
                markersize=size,
            )
    slopes.set(xlabel="site, in the order of the forward pass", ylabel="slope, scale included")
    slopes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    slopes.set_ylim(bottom=min(0.0, slopes.get_ylim()[0]))
    slopes.set_title("slopes by depth", loc="left", fontsize=10, fontweight="bold")
    slopes.legend(
        handles=[
            Line2D([], [], linestyle="", marker="o", color="#D55E00", label="right of 0"),
            Line2D([], [], linestyle="", marker="s", color="#0072B2", label="left of 0"),
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                color=MUTED,
                markerfacecolor="white",
                markersize=7,
                label="at the start",
            ),
        ],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        borderaxespad=0.2,
    )
    for axes in (curves, slopes):
        axes.grid(True)
    return figure
