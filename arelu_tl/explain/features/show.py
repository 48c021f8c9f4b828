"""Draw the report of ``explain features``: predictions, evidence, and both arms' maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from arelu_tl.explain.features.maps import Maps, SiteStatistics
from arelu_tl.explain.features.study import ArmAnswer, FeatureReport, ShownSite, SiteFeatures
from arelu_tl.render.console import Shown, line
from arelu_tl.render.figures.canvas import (
    INK,
    MUTED,
    ArmStyle,
    arm_styles,
    color_bar,
    drawable,
    house_style,
    new_figure,
    panel,
)
from arelu_tl.render.grid import Column, Grid
from arelu_tl.render.tables import or_dash

Floats = NDArray[np.float32]
# Inches.
_MARGIN, _LABELS, _BETWEEN, _GAP, _BAR = 0.2, 1.0, 0.3, 0.06, 0.7
_WIDTH, _LARGEST_TILE, _SIDE = 11.9, 1.15, 2.2
_TITLE, _NOTE, _ANSWERS, _HEADING = 0.45, 0.2, 3.2, 0.68
_SIGNED, _POSITIVE = "RdBu_r", "cividis"
_ROWS = ("before", "× attention\n(first: mean\nof all channels)", "= after")
# Inches: from this size of a tile on, words fit beside and above it.
_ROOMY = 0.8
# The colours cover this share of the values: otherwise one outlier would make the rest pale.
_COVERED = 0.995
_MOST_CLASSES = 4
_EXPLANATION = (
    "before: what goes into the activation (red above 0, blue below); after: what comes out. "
    "attention: what each element is multiplied by; of a ReLU 1 or 0, of AReLU one factor a sign, "
    "and less under a cap.",
    "Channels are those that vary most over the picture after the activation, each arm counting "
    "the same. Colours mean the same in both arms; a row's scale ends where "
    f"{_COVERED:.1%} of its values lie within.",
    "First column, over all channels: the share below 0 before, the mean attention, the share that "
    "is exactly 0 after, and the energy (mean square) after over that before.",
    "Evidence: Grad-CAM (Selvaraju et al. 2017) at the last map before pooling; a place's share of "
    "what speaks for the class.",
)
_LINE_OF_NUMBERS = 0.19
# Characters of 7.5 points that fit the page's width.
_LINE = 208
_LINE_HEIGHT = 0.165


@dataclass(frozen=True)
class _Grid:
    """The layout of a site's tiles: per arm, one column of statistics and ``channels`` of maps.

    A tile's side is ``tile`` inches.
    """

    arms: Sequence[str]
    channels: int
    tile: float

    def left(self, arm: int, column: int) -> float:
        group = (self.channels + 1) * (self.tile + _GAP) - _GAP + _BETWEEN
        return _MARGIN + _LABELS + arm * group + column * (self.tile + _GAP)

    @property
    def right(self) -> float:
        return self.left(len(self.arms) - 1, self.channels) + self.tile

    @property
    def height(self) -> float:
        return len(_ROWS) * (self.tile + _GAP) - _GAP


@house_style
def features_figure(report: FeatureReport) -> Figure:
    """Draw one page: the picture, each arm's answer and evidence, and the chosen sites' maps.

    The picture is drawn as the models see it.
    """
    shown = report.shown
    arms = [answer.arm for answer in report.answers]
    styles = arm_styles(arms)
    channels = max((len(each.channels) for _, each in shown), default=1) or 1
    room = _WIDTH - 2 * _MARGIN - _LABELS - _BAR - (len(arms) - 1) * _BETWEEN
    tile = min(_LARGEST_TILE, room / (len(arms) * (channels + 1)) - _GAP)
    grid = _Grid(arms, channels, tile)
    heights = [
        _HEADING + (grid.height if each.maps else _LINE_OF_NUMBERS * len(arms)) for _, each in shown
    ]
    above = _TITLE + (_NOTE if report.note else 0)
    explained = "\n".join(fill(each, _LINE) for each in _EXPLANATION).splitlines()
    foot = 0.35 + _LINE_HEIGHT * len(explained)
    height = above + _ANSWERS + sum(heights) + foot
    page = _page(_WIDTH, height)
    _headline(page, report)
    top = height - above
    _answers(page, report, styles, top)
    top -= _ANSWERS
    for (site, each), taken in zip(shown, heights, strict=True):
        _site(page, grid, site, each, styles, len(report.sites), top)
        top -= taken
    for number, sentence in enumerate(explained, start=1):
        _write(
            page, _MARGIN, foot - 0.2 - _LINE_HEIGHT * number, sentence, fontsize=7.5, color=MUTED
        )
    return _figure(page)


def _page(width: float, height: float) -> Axes:
    """Make axes over a whole new figure, in inches.

    All tiles share them: one axes object takes as long to draw as all tiles.
    """
    page = panel(new_figure(width, height), 0, 0, width, height)
    page.set(xlim=(0, width), ylim=(0, height))
    page.set_axis_off()
    return page


def _figure(page: Axes) -> Figure:
    return cast(Figure, page.get_figure(root=True))


def _write(page: Axes, left: float, bottom: float, text: str, **settings: Any) -> None:
    page.text(left, bottom, text, parse_math=False, **settings)


def _draw(
    page: Axes, values: NDArray[Any], left: float, bottom: float, side: float, **settings: Any
) -> AxesImage:
    """Draw a picture in a square, centred if it is not square itself."""
    high, wide = (size * side / max(values.shape[:2]) for size in values.shape[:2])
    left, bottom = left + (side - wide) / 2, bottom + (side - high) / 2
    return page.imshow(
        values, extent=(left, left + wide, bottom, bottom + high), aspect="auto", **settings
    )


def _headline(page: Axes, report: FeatureReport) -> None:
    high = page.get_ylim()[1]
    when = "before training" if report.at == "start" else "best checkpoints"
    names = " beside ".join(drawable(answer.run.name, 40) for answer in report.answers)
    title = f"{drawable(report.image.name, 50)}, {when}: {names}"
    _write(page, _MARGIN, high - 0.3, title, fontsize=11, fontweight="bold")
    if report.note:
        _write(page, _MARGIN, high - 0.5, drawable(report.note, 150), fontsize=8, color=MUTED)


def _answers(page: Axes, report: FeatureReport, styles: dict[str, ArmStyle], top: float) -> None:
    """Draw the picture, each arm's evidence over it, and the arms' predictions."""
    bottom = top - 0.65 - _SIDE
    high, wide = report.picture.shape[:2]
    _draw(page, report.picture, _MARGIN, bottom, _SIDE)
    _write(
        page,
        _MARGIN,
        bottom + _SIDE + 0.07,
        f"what the nets see\n{wide} × {high} pixels",
        fontsize=8.5,
        linespacing=1.3,
    )
    grey = np.asarray(Image.fromarray(report.picture).convert("L"))
    shares = [answer.evidence.shares for answer in report.answers]
    most = max((float(each.max()) for each in shares if each is not None), default=1.0)
    drawn: AxesImage | None = None
    left = _MARGIN
    for answer in report.answers:
        left += _SIDE + 0.25
        _draw(page, grey, left, bottom, _SIDE, cmap="gray", vmin=0, vmax=255)
        found = answer.evidence
        if found.shares is not None:
            # Bilinear, as usual for class-activation maps: a position stands for its surroundings.
            smooth = Image.fromarray(found.shares).resize((wide, high), Image.Resampling.BILINEAR)
            drawn = _draw(
                page,
                np.asarray(smooth),
                left,
                bottom,
                _SIDE,
                cmap="inferno",
                vmin=0,
                vmax=most,
                alpha=0.62,
            )
        _arm_heading(page, left, bottom + _SIDE + 0.07, answer, styles[answer.arm])
        _write(
            page,
            left,
            bottom - 0.06,
            _evidence_words(answer),
            fontsize=8,
            va="top",
            color=INK,
            linespacing=1.3,
        )
    if drawn is not None:
        _bar(page, drawn, left + _SIDE + 0.08, bottom, _SIDE, "share of the evidence at a place")
    _probabilities(page, report.answers, styles, left + _SIDE + 1.15, bottom)


def _arm_heading(
    page: Axes, left: float, bottom: float, answer: ArmAnswer, style: ArmStyle
) -> None:
    ((label, probability),) = answer.top(1)
    _write(
        page,
        left,
        bottom + 0.17,
        drawable(answer.arm, 20),
        fontsize=10,
        fontweight="bold",
        color=style.color,
    )
    _write(page, left, bottom, f"says {drawable(label, 20)} ({probability:.2f})", fontsize=8.5)


def _evidence_words(answer: ArmAnswer) -> str:
    found = answer.evidence
    label = drawable(found.label, 20)
    whose = "asked for" if found.asked else "its answer"
    if found.shares is None:
        return f"no map of {label}, {whose}:\n" + fill(found.reason, 42)
    high, wide = found.shares.shape
    return f"evidence for {label}, {whose}\n{high} × {wide} places"


def _probabilities(
    page: Axes,
    answers: Sequence[ArmAnswer],
    styles: dict[str, ArmStyle],
    left: float,
    bottom: float,
) -> None:
    """Draw bars of the classes that are most probable in any arm."""
    best: dict[str, float] = {}
    for answer in answers:
        for label, probability in answer.top(3):
            best[label] = max(best.get(label, 0.0), probability)
    asked = [answer.evidence.label for answer in answers if answer.evidence.asked]
    labels = sorted(best, key=lambda label: -best[label])[:_MOST_CLASSES]
    labels += [label for label in asked[:1] if label not in labels]
    names = [drawable(label, 14) for label in labels]
    beside = 0.15 + 0.075 * max(map(len, names))
    axes = panel(
        _figure(page), left + beside, bottom, max(0.8, _WIDTH - left - beside - 0.5), _SIDE
    )
    at = np.arange(len(labels))
    thick = 0.8 / len(answers)
    for number, answer in enumerate(answers):
        values = [float(answer.probabilities[answer.classes.index(label)]) for label in labels]
        place = at + (number - (len(answers) - 1) / 2) * thick
        axes.barh(place, values, height=thick * 0.92, color=styles[answer.arm].color)
        for y, value in zip(place, values, strict=True):
            axes.text(
                value + 0.02,
                y,
                f"{value:.2f}",
                va="center",
                fontsize=7.5,
                color=styles[answer.arm].color,
            )
    axes.set_yticks(at, names, fontsize=8.5, parse_math=False)
    axes.set(xlim=(0, 1.12), xticks=[0, 0.5, 1])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title("probability", loc="left", fontsize=8.5)


def _site(
    page: Axes,
    grid: _Grid,
    site: SiteFeatures,
    shown: ShownSite,
    styles: dict[str, ArmStyle],
    count: int,
    top: float,
) -> None:
    _write(page, _MARGIN, top - 0.3, drawable(site.title, 60), fontsize=10, fontweight="bold")
    details = (
        f"site {site.number} of {count}, {site.site.operator} in the unmodified net, "
        f"{' × '.join(map(str, site.shape[1:]))}"
    )
    _write(page, _WIDTH - _MARGIN, top - 0.3, details, fontsize=8.5, color=MUTED, ha="right")
    if not shown.maps:
        _write(page, _MARGIN, top - 0.55, f"not drawn: {shown.reason}", fontsize=8.5)
        for arm, name in enumerate(grid.arms):
            words = f"{drawable(name, 20)}: {_numbers(site.statistics[name])}"
            _write(
                page,
                _MARGIN,
                top - 0.75 - _LINE_OF_NUMBERS * arm,
                words,
                fontsize=8.5,
                color=styles[name].color,
            )
        return
    first = top - _HEADING - grid.tile
    bottoms = [first - row * (grid.tile + _GAP) for row in range(len(_ROWS))]
    for label, bottom in zip(_ROWS, bottoms, strict=True):
        _write(
            page,
            _MARGIN + _LABELS - 0.1,
            bottom + grid.tile / 2,
            label,
            fontsize=9,
            ha="right",
            va="center",
            linespacing=1.35,
        )
    scales = _scales(list(shown.maps.values()))
    drawn: list[AxesImage | None] = [None] * len(_ROWS)
    for arm, name in enumerate(grid.arms):
        maps = shown.maps[name]
        _write(
            page,
            grid.left(arm, 0),
            top - _HEADING + 0.06,
            drawable(name, 14),
            fontsize=9.5,
            fontweight="bold",
            color=styles[name].color,
        )
        _statistics(page, grid, arm, bottoms, site.statistics[name])
        if maps.mean_attention is not None:
            drawn[1] = _tile(
                page, grid, arm, 0, bottoms[1], maps.mean_attention, _POSITIVE, scales[1]
            )
        for column, channel in enumerate(shown.channels, start=1):
            title = f"channel {channel}" if grid.tile > _ROOMY else str(channel)
            _write(
                page,
                grid.left(arm, column),
                top - _HEADING + 0.06,
                title,
                fontsize=7.5,
                color=MUTED,
            )
            for row, part in enumerate((maps.before, maps.attention, maps.after)):
                if part is not None:
                    colors = _POSITIVE if row == 1 else _SIGNED
                    drawn[row] = _tile(
                        page, grid, arm, column, bottoms[row], part[column - 1], colors, scales[row]
                    )
        if maps.attention is None:
            words = "none: this activation\ndoes not keep 0 at 0"
            _write(
                page,
                grid.left(arm, 1),
                bottoms[1] + grid.tile / 2,
                words,
                fontsize=8,
                color=MUTED,
                va="center",
            )
    for image, bottom in zip(drawn, bottoms, strict=True):
        if image is not None:
            _bar(page, image, grid.right + 0.08, bottom, grid.tile, "")


def _scales(maps: Sequence[Maps]) -> list[tuple[float, float]]:
    """Return (least, greatest) value of each row's colours, the same for all arms."""
    before, after = (_reach([getattr(each, part) for each in maps]) for part in ("before", "after"))
    factors = [
        part for each in maps for part in (each.attention, each.mean_attention) if part is not None
    ]
    low = min((float(part.min()) for part in factors), default=0.0)
    high = max((float(part.max()) for part in factors), default=1.0)
    return [(-before, before), (min(0.0, low), max(1.0, high)), (-after, after)]


def _reach(parts: Sequence[Floats]) -> float:
    """Return the largest absolute value that the colours cover."""
    sizes = np.abs(np.concatenate([part.ravel() for part in parts]))
    return float(np.quantile(sizes, _COVERED)) or float(sizes.max()) or 1.0


def _tile(
    page: Axes,
    grid: _Grid,
    arm: int,
    column: int,
    bottom: float,
    values: Floats,
    color: str,
    scale: tuple[float, float],
) -> AxesImage:
    look = {"cmap": color, "vmin": scale[0], "vmax": scale[1], "interpolation": "nearest"}
    return _draw(page, values, grid.left(arm, column), bottom, grid.tile, **look)


def _statistics(
    page: Axes, grid: _Grid, arm: int, bottoms: Sequence[float], statistics: SiteStatistics
) -> None:
    after = f"zero: {statistics.zero_share:.0%}"
    if statistics.energy_before and statistics.energy_after is not None:
        after += f"\nenergy\n× {statistics.energy_after / statistics.energy_before:.2g}"
    size = 8 if grid.tile > _ROOMY else 6.5
    for bottom, words in (
        (bottoms[0], f"below 0:\n{statistics.negative_share:.0%}"),
        (bottoms[2], after),
    ):
        _write(
            page,
            grid.left(arm, 0),
            bottom + grid.tile / 2,
            words,
            fontsize=size,
            va="center",
            linespacing=1.35,
        )


def _numbers(statistics: SiteStatistics) -> str:
    attention = "none" if statistics.attention is None else f"{statistics.attention:.2f}"
    return (
        f"below 0 before {statistics.negative_share:.0%}, zero after {statistics.zero_share:.0%}, "
        f"mean attention {attention}"
    )


def _bar(
    page: Axes, drawn: AxesImage, left: float, bottom: float, height: float, label: str
) -> None:
    figure = _figure(page)
    bar = color_bar(figure, drawn, panel(figure, left, bottom, 0.11, height))
    bar.ax.tick_params(labelsize=7, length=2)
    # Labels at the ends would overlap those of the bar below.
    bar.locator = MaxNLocator(4, prune="both")
    bar.update_ticks()
    if label:
        bar.set_label(label, fontsize=7.5)


_COLUMNS = [
    Column("site", "name", once=True),
    Column("arm", "name"),
    Column("x < 0", gives_way=1),
    Column("zero after", gives_way=1),
    Column("attention"),
    Column("of x < 0", gives_way=3),
    Column("of x >= 0", gives_way=3),
    Column("energy before", gives_way=2),
    Column("energy after", gives_way=2),
]


def features_report(report: FeatureReport, figure: Path) -> list[Shown]:
    """Make the command's output, from top to bottom."""
    parts: list[Shown] = [line(report.note)] if report.note else []
    parts += [line(_answer(answer)) for answer in report.answers]
    parts += [
        line(f"not drawn: {site.title}: {shown.reason}")
        for site, shown in report.shown
        if not shown.maps
    ]
    return [*parts, "", _table(report), "", f"figure: {figure}"]


def _answer(answer: ArmAnswer) -> str:
    (label, probability), *others = answer.top(3)
    then = f" (then {', '.join(f'{name} {p:.3f}' for name, p in others)})" if others else ""
    found = answer.evidence
    where = (
        f"no evidence map: {found.reason}"
        if found.shares is None
        else f"evidence map of {found.label}"
    )
    return f"{answer.arm}, step {answer.step}: {label} {probability:.3f}{then}; {where}"


def _table(report: FeatureReport) -> Grid:
    table = Grid(_COLUMNS)
    for site, _ in report.shown:
        for arm, found in site.statistics.items():
            factors = (found.attention, found.attention_negative, found.attention_positive)
            table.add(
                site.title,
                arm,
                f"{found.negative_share:.0%}",
                f"{found.zero_share:.0%}",
                *(or_dash(value, ".3f") for value in factors),
                *(or_dash(value, ".3g") for value in (found.energy_before, found.energy_after)),
            )
    return table
