"""What all figures share: arm styles, figures without pyplot, and file content."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from itertools import count
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib import font_manager, ft2font
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from arelu_tl.render.text import shorten, visible

DPI = 130
INK = "#1c2733"
MUTED = "#5b6673"

_HOUSE_STYLE = {
    "font.family": ["DejaVu Sans"],  # shipped with matplotlib: the same figure on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dfe3e8",
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.hashsalt": "arelu-tl",  # equal figures give equal bytes
}
_COORDINATES = re.compile(rb' (?:d|x|y)="[^"]*"')
_BEYOND_HUNDREDTHS = re.compile(rb"(\.\d\d)\d+")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def house_style(draw: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function that draws or saves to run under the house style's settings."""

    @wraps(draw)
    def drawn(*args: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        with mpl.rc_context(_HOUSE_STYLE):  # type: ignore[arg-type]
            return draw(*args, **named)

    return drawn


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is drawn; each of the three distinguishes it from the other arms."""

    color: str
    linestyle: Any
    marker: str

    def line(self, **changes: Any) -> dict[str, Any]:
        """Keywords for ``Axes.plot``."""
        style = {
            "color": self.color,
            "linestyle": self.linestyle,
            "marker": self.marker,
            "linewidth": 1.7,
            "markersize": 4.5,
        }
        return {**style, "markeredgecolor": "white", "markeredgewidth": 0.5, **changes}


# Okabe and Ito's palette without its yellow, which is hard to see on white. The colours are
# distinct under every common form of colour blindness, and differ in lightness.
_FIXED = {
    "relu": ArmStyle("#0072B2", (0, (4.5, 1.8)), "s"),
    "arelu": ArmStyle("#D55E00", "-", "o"),
    "leaky": ArmStyle("#009E73", (0, (6, 1.5, 1.2, 1.5)), "^"),
    "prelu": ArmStyle("#CC79A7", (0, (1.4, 1.2)), "D"),
    "arelu-frozen": ArmStyle("#E69F00", (0, (8, 1.5, 1.2, 1.5, 1.2, 1.5)), "v"),
    "recalibrated": ArmStyle("#56B4E9", (0, (2.5, 1.2)), "P"),
}
_COLORS = ("#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#0072B2")
_LINES: tuple[Any, ...] = (
    "-",
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (1.4, 1.2)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
_MARKERS = ("o", "^", "D", "X", "P", "v", "<", "p", "*", ">", "h")


def arm_styles(arms: Sequence[str]) -> dict[str, ArmStyle]:
    """A style for each of ``arms``: a fixed one for known arms, an unused one for the others."""
    taken = {arm: _FIXED[arm] for arm in arms if arm in _FIXED}
    styles = {}
    for arm in arms:
        if arm not in taken:
            colors = {style.color for style in taken.values()}
            # Cycles of 7, 5 and 11 repeat after 385 arms. No colour repeats before all are used.
            made = (ArmStyle(_COLORS[n % 7], _LINES[n % 5], _MARKERS[n % 11]) for n in count())
            free = len(colors) < len(_COLORS)
            taken[arm] = next(
                s for s in made if s not in taken.values() and not (free and s.color in colors)
            )
        styles[arm] = taken[arm]
    return styles


def add_legend(
    figure: Figure,
    styles: Mapping[str, ArmStyle],
    labels: Mapping[str, str],
    *more: Artist,
    **settings: Any,
) -> int:
    """Add one legend for the whole figure, and return its number of rows.

    Args:
        labels: {arm: label}, shown first.
        more: further entries.
    """
    arms = [
        Line2D([], [], label=drawable(labels[arm], 60), **style.line())
        for arm, style in styles.items()
    ]
    handles = [*arms, *more]
    columns = legend_columns([str(handle.get_label()) for handle in handles], figure.get_figwidth())
    legend = figure.legend(
        handles=handles,
        ncols=columns,
        handlelength=3.4,
        columnspacing=1.8,
        borderaxespad=0,
        **settings,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return -(-len(handles) // columns)


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many of ``labels`` fit side by side on a figure ``width`` inches wide."""
    # A letter of 9 points is about 0.075 inches wide; a line with its gaps takes 0.75.
    widths = [0.075 * len(label) + 0.75 for label in labels]
    return len(labels) if sum(widths) < width - 0.8 else max(1, int((width - 0.8) / max(widths)))


def new_figure(width: float, height: float, **settings: Any) -> Figure:
    """Make a figure, in inches, without pyplot, which has global state and needs a display."""
    figure = Figure(figsize=(width, height), **settings)
    FigureCanvasAgg(figure)
    return figure


def panel(
    figure: Figure, left: float, bottom: float, width: float, height: float, **settings: Any
) -> Axes:
    """Add axes at a place in inches. A layout engine would draw twice to find the places."""
    whole, high = figure.get_size_inches()
    return figure.add_axes((left / whole, bottom / high, width / whole, height / high), **settings)


def add_title(figure: Figure, left: float, title: str) -> None:
    """Add the figure's title at its upper edge, ``left`` inches from the left."""
    wide, high = figure.get_size_inches()
    text = drawable(title, 120)
    figure.text(
        left / wide,
        1 - 0.14 / high,
        text,
        fontsize=13,
        fontweight="bold",
        va="top",
        parse_math=False,
    )


def color_bar(figure: Figure, drawn: ScalarMappable, place: Axes, **settings: Any) -> Colorbar:
    """Draw the colour bar of ``drawn`` into the axes ``place``, without a frame."""
    bar = figure.colorbar(drawn, cax=place, **settings)
    bar.outline.set_visible(False)
    return bar


@house_style
def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    # Half the time of the strongest compression, and only a tenth more bytes.
    figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


@house_style
def svg(figure: Figure) -> bytes:
    """The figure as the content of an SVG file; letters are outlines, so no font is needed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=DPI, metadata={"Date": None})
    # Hundredths of a point are precise enough, and save a third of the file.
    return _COORDINATES.sub(lambda path: _BEYOND_HUNDREDTHS.sub(rb"\1", path[0]), buffer.getvalue())


def drawable(text: object, length: int) -> str:
    """Foreign text that our font can draw, with at most ``length`` letters.

    Invisible characters are escaped, and letters that the font lacks are replaced. Callers must
    also set ``parse_math=False``: a class may be called ``$x$``.
    """
    return shorten(
        "".join(c if _font().get_char_index(ord(c)) else "□" for c in visible(text)), length
    )


@cache
def _font() -> ft2font.FT2Font:
    return font_manager.get_font(font_manager.findfont("DejaVu Sans"))
