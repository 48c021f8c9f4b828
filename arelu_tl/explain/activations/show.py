"""Draw activations as small multiples: every site of a run, and the gallery of the catalogue."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from arelu_tl.explain.activations.report import RunCurves, Shape, SiteCurve
from arelu_tl.records.storage import make_folder, write_bytes, write_json
from arelu_tl.render.console import Shown, line
from arelu_tl.render.figures.canvas import (
    INK,
    MUTED,
    add_title,
    arm_styles,
    color_bar,
    drawable,
    house_style,
    new_figure,
    panel,
    png,
)
from arelu_tl.render.figures.sites import SiteValues
from arelu_tl.render.grid import Column, Grid

_WIDTH = 13.2
_MOST = 49
_LONGEST = 19
# Inches: left and right margin, gap between panels, a panel's and a strip's height, a panel's
# heading, space above and below all.
_LEFT, _RIGHT, _GAP, _HEIGHT, _STRIP, _HEADING, _TOP, _BELOW = (
    0.78,
    0.15,
    0.24,
    1.15,
    0.5,
    0.42,
    0.8,
    0.3,
)
# Without its lightest end, which is hard to see on white.
_COURSE = LinearSegmentedColormap.from_list(
    "course", mpl.colormaps["viridis"](np.linspace(0, 0.85, 64))
)
_F, _SLOPE = "#0072B2", "#D55E00"


def site_curves_figures(
    curves: RunCurves, course: SiteValues | None, title: str
) -> Iterator[Figure]:
    """Draw each site's activation at the start and now, 49 sites per figure.

    Args:
        curves: of the run; its sites are drawn in the order of the forward pass.
        course: alpha and beta during training, where the run recorded them; these curves are
            coloured by step.
        title: of the figures.
    """
    pages = -(-len(curves.sites) // _MOST)
    for page in range(pages):
        sites = curves.sites[page * _MOST : (page + 1) * _MOST]
        heading = (
            title
            if pages == 1
            else f"{title} (sites {page * _MOST} to {page * _MOST + len(sites) - 1})"
        )
        yield _page(curves, sites, page * _MOST, course, heading)


@house_style
def _page(
    curves: RunCurves, sites: Sequence[SiteCurve], first: int, course: SiteValues | None, title: str
) -> Figure:
    # All strips, on all pages, have the same scale, so that the sites can be compared.
    most = max(
        float(np.abs(edge - site.start).max())
        for site in curves.sites
        for edge in (site.low, site.high, site.final)
    )
    figure, panels, strips = _grid(len(sites), title, columns=7, strip=_STRIP if most else 0.0)
    style = arm_styles([curves.arm])[curves.arm]
    if course is not None and len(course.steps) < 2:
        course = None
    low = min(float(site.low.min()) for site in curves.sites)
    high = max(float(site.high.max()) for site in curves.sites)
    for number, (axes, site) in enumerate(zip(panels, sites, strict=True)):
        relu = np.clip(curves.x, 0, np.inf if site.cap is None else site.cap)
        axes.plot(curves.x, relu, color=MUTED, linewidth=0.9, linestyle=":", zorder=2)
        if site.channels > 1:
            axes.fill_between(
                curves.x, site.low, site.high, color=style.color, alpha=0.22, linewidth=0, zorder=2
            )
        axes.plot(curves.x, site.final, color=style.color, linewidth=1.6, zorder=3)
        axes.plot(curves.x, site.start, color=INK, linewidth=1.0, linestyle=(0, (3, 3)), zorder=4)
        axes.set(xlim=(curves.x[0], curves.x[-1]), ylim=(low - 0.3, high + 0.3))
        _head(axes, f"{first + number}  {_end(site.name)}", _moved(site))
    for axes, site in zip(strips, sites, strict=False):  # no strips where nothing has moved
        if site.channels > 1:
            edges = (site.low - site.start, site.high - site.start)
            axes.fill_between(
                curves.x, *edges, color=style.color, alpha=0.22, linewidth=0, zorder=2
            )
        if course is not None and site.name in course.names:
            _draw_course(axes, curves, course, course.names.index(site.name))
        axes.plot(curves.x, site.final - site.start, color=style.color, linewidth=1.3, zorder=5)
        axes.set(xlim=(curves.x[0], curves.x[-1]), ylim=(-1.1 * most, 1.1 * most))
        axes.yaxis.set_major_locator(FixedLocator([-most, 0, most]))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+.2g}" if value else "0")
        )
    handles: list[Line2D | Patch] = [
        Line2D(
            [],
            [],
            color=style.color,
            linewidth=1.6,
            label=f"{curves.arm}, learnt (step {curves.step})",
        ),
        Line2D([], [], color=INK, linewidth=1, linestyle=(0, (3, 3)), label="at the start"),
        Line2D(
            [], [], color=MUTED, linewidth=0.9, linestyle=":", label="the ReLU that stood there"
        ),
    ]
    if any(site.channels > 1 for site in sites):
        handles.append(
            Patch(
                color=style.color,
                alpha=0.22,
                linewidth=0,
                label="least to greatest of its channels",
            )
        )
    _legend(figure, handles)
    if course is not None and strips:
        _course_bar(figure, int(course.steps[-1]))
    return figure


def _draw_course(axes: Axes, curves: RunCurves, course: SiteValues, row: int) -> None:
    start = course.outputs(curves.x, 0)[row]
    for record in range(1, len(course.steps)):
        shade = _COURSE(course.steps[record] / course.steps[-1])
        axes.plot(
            curves.x,
            course.outputs(curves.x, record)[row] - start,
            color=shade,
            linewidth=0.8,
            zorder=4,
        )


def _course_bar(figure: Figure, last: int) -> None:
    wide, high = figure.get_size_inches()
    place = panel(figure, wide - 2.35, high - 0.36, 2.2, 0.1)
    bar = color_bar(
        figure, ScalarMappable(Normalize(0, last or 1), _COURSE), place, orientation="horizontal"
    )
    bar.ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    bar.ax.tick_params(labelsize=7.5, length=2)
    bar.ax.set_title("on the way, by step", loc="left", fontsize=8, pad=3)


def _end(name: str) -> str:
    """Shorten a long name to its end, which differs between neighbours."""
    shown = drawable(name, len(name))
    return shown if len(shown) <= _LONGEST else f"…{shown[1 - _LONGEST :]}"


def _moved(site: SiteCurve) -> str:
    """Write the learnt parameters, start and now; if too long for a panel, the largest change."""
    names = {"alpha": "α", "beta": "β", "weight": "slope"}
    text = "  ".join(
        f"{names.get(name, name)} {before:.4g}→{after:.4g}"
        for name, (before, after) in site.learnt.items()
    )
    return text if text and len(text) <= 34 else f"largest change {site.change:.2g}"


@house_style
def gallery_figure(shapes: Sequence[Shape]) -> Figure:
    """Draw each activation f and its derivative f', with the formula and the parameter count."""
    title = "The catalogue: activations as they start, and their derivatives"
    figure, panels, _ = _grid(len(shapes), title, columns=6, strip=0.0)
    for axes, shape in zip(panels, shapes, strict=True):
        axes.axhline(0, color=MUTED, linewidth=0.6, zorder=1)
        axes.axvline(0, color=MUTED, linewidth=0.6, zorder=1)
        axes.plot(shape.x, shape.y, color=_F, linewidth=1.7, zorder=3)
        axes.plot(
            shape.x, shape.slope, color=_SLOPE, linewidth=1.3, linestyle=(0, (4, 1.6)), zorder=4
        )
        axes.set(xlim=(shape.x[0], shape.x[-1]), ylim=(-2.6, 5.2))
        learns = {0: "", 1: " (learns 1)"}.get(shape.parameters, f" (learns {shape.parameters})")
        _head(
            axes,
            f"{shape.title}{learns}",
            "\n".join(textwrap.wrap(drawable(shape.formula, 66), 34)),
        )
    lines = [
        Line2D([], [], color=_F, linewidth=1.7, label="f(x)"),
        Line2D([], [], color=_SLOPE, linewidth=1.3, linestyle=(0, (4, 1.6)), label="f'(x)"),
    ]
    _legend(figure, lines)
    return figure


def _grid(
    count: int, title: str, *, columns: int, strip: float
) -> tuple[Figure, list[Axes], list[Axes]]:
    """Make a figure with ``count`` panels, row by row.

    If ``strip`` (inches) is not 0, each panel has another one of that height below it.

    Returns:
        (the figure, its panels, its strips).
    """
    rows = -(-count // columns)
    width = (_WIDTH - _LEFT - _RIGHT - (columns - 1) * _GAP) / columns
    below = strip + 0.06 if strip else 0.0
    # The gallery's formulas take two lines.
    each = _HEIGHT + below + _HEADING + (0.0 if strip else 0.1)
    total = _TOP + rows * each + _BELOW
    figure = new_figure(_WIDTH, total)
    add_title(figure, _LEFT, title)
    panels, strips = [], []
    for row, column in (divmod(number, columns) for number in range(count)):
        left, bottom = _LEFT + column * (width + _GAP), total - _TOP - (row + 1) * each
        last = (row + 1) * columns + column >= count
        panels.append(panel(figure, left, bottom + below, width, _HEIGHT))
        panels[-1].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        panels[-1].tick_params(labelbottom=last and not strip, labelleft=column == 0)
        if strip:
            strips.append(panel(figure, left, bottom, width, strip))
            strips[-1].tick_params(labelbottom=last, labelleft=column == 0)
            if column == 0:
                strips[-1].set_ylabel("change", fontsize=7.5, labelpad=2)
    for axes in panels + strips:
        axes.grid(True)
        axes.tick_params(length=2, labelsize=7.5)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure, panels, strips


def _head(axes: Axes, first: str, second: str) -> None:
    pad = 14 + 9 * second.count("\n")
    axes.set_title(
        first, loc="left", fontsize=8, fontweight="bold", y=1.0, pad=pad, parse_math=False
    )
    axes.annotate(
        second, (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
        fontsize=6.8, color=MUTED, parse_math=False,
    )  # fmt: skip


def _legend(figure: Figure, handles: Sequence[Line2D | Patch]) -> None:
    height = figure.get_figheight()
    figure.legend(
        handles=list(handles), ncols=len(handles), loc="upper left",
        bbox_to_anchor=(_LEFT / _WIDTH, 1 - 0.46 / height),
        borderaxespad=0, handlelength=3.0, columnspacing=1.8,
    )  # fmt: skip


ACTIVATIONS, GALLERY = "activations", "gallery"
_MOST_COLUMNS = 4


def curves_report(curves: RunCurves, written: Sequence[Path]) -> list[Shown]:
    """Show a row per site, and a sentence about how far the sites moved."""
    names = list(dict.fromkeys(name for site in curves.sites for name in site.learnt))
    if len(names) > _MOST_COLUMNS:  # too many to show; the file has them
        names = []
    table = Grid(
        [
            Column("#"),
            Column("site", "name"),
            Column("cap", gives_way=3),
            Column("curves", gives_way=4),
            *(Column(name, gives_way=1) for name in names),
            Column("slope x < 0", gives_way=2),
            Column("slope x > 0", gives_way=2),
            Column("largest change"),
        ]
    )
    for number, site in enumerate(curves.sites):
        moved = (site.learnt.get(name) for name in names)
        left, right = site.slopes(curves.x)
        table.add(
            str(number), site.name, "-" if site.cap is None else f"{site.cap:g}",
            str(site.channels),
            *("-" if m is None else f"{m[0]:.4g} → {m[1]:.4g}" for m in moved),
            f"{left:.4g}", f"{right:.4g}", f"{site.change:.2g}",
        )  # fmt: skip
    files = f"wrote {', '.join(map(str, written))}"
    return [table, "", line(found_in_curves(curves), style="bold"), files]


def found_in_curves(curves: RunCurves) -> str:
    """Write a sentence about how far the curves moved from their start."""
    most = max(curves.sites, key=lambda site: site.change)
    reach = f"for x from {curves.x[0]:g} to {curves.x[-1]:g}"
    if not curves.step:
        return (
            "These are the weights of the start, none of the training's was better: "
            "name a checkpoint to see what was learnt."
        )
    if not most.change:
        return (
            f"None of the {len(curves.sites)} activations of {curves.arm} differs from its start "
            f"({reach})."
        )
    middle = median(site.change for site in curves.sites)
    return (
        f"By step {curves.step} the {len(curves.sites)} activations of {curves.arm} have moved "
        f"from their start by at most {middle:.2g} at the median site and {most.change:.2g} at the "
        f"one that moved most, {most.name} ({reach})."
    )


def write_curves(
    curves: RunCurves, course: SiteValues | None, folder: Path, title: str
) -> list[Path]:
    """Write activations.png (for many sites also activations-2.png, ...) and activations.json.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    make_folder(folder)
    written = []
    for number, figure in enumerate(site_curves_figures(curves, course, title), start=1):
        written.append(
            folder / (f"{ACTIVATIONS}.png" if number == 1 else f"{ACTIVATIONS}-{number}.png")
        )
        write_bytes(written[-1], png(figure))
    written.append(folder / f"{ACTIVATIONS}.json")
    write_json(written[-1], {**curves.to_json(), "found": found_in_curves(curves)}, indent=None)
    return written


def gallery_report(shapes: Sequence[Shape], written: Sequence[Path]) -> list[Shown]:
    """Show a row per activation."""
    table = Grid(
        [
            Column("activation", "name"),
            Column("learns"),
            Column("formula", "text"),
            Column("source", "text", gives_way=1),
        ]
    )
    for shape in shapes:
        table.add(shape.title, str(shape.parameters or "-"), shape.formula, shape.source)
    return [table, "", f"wrote {', '.join(map(str, written))}"]


def write_gallery(shapes: Sequence[Shape], folder: Path) -> list[Path]:
    """Write gallery.png.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    make_folder(folder)
    path = folder / f"{GALLERY}.png"
    write_bytes(path, png(gallery_figure(shapes)))
    return [path]
