"""The page's figures, embedded as data: URIs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from arelu_tl.analysis.results import Comparison
from arelu_tl.records.runs import RunRecord
from arelu_tl.render.figures.canvas import svg
from arelu_tl.render.figures.confusion import Counts, confusion_figure
from arelu_tl.render.figures.rates import rates_figure
from arelu_tl.render.figures.sites import activations_figure, read_site_values, site_values_figure

# In bytes. A larger SVG is slow to draw in a browser and heavy in a mail.
_LARGEST_VECTORS = 2_000_000
# At this scale the widest figures fill the page.
_PIXELS_AN_INCH = 83
# Ratio of height to width above which a figure may be split between printed pages.
_TALL = 1.3


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        source: a data: URI.
        alt: a description for readers who cannot see it.
        width: in pixels, if the page is wide enough.
        tall: whether it may be split between printed pages.
    """

    source: str
    alt: str
    caption: str
    width: int
    tall: bool


def drawing(
    figure: Figure,
    alt: str,
    caption: str,
    *,
    vectors: bytes | None = None,
    pixels: bytes | None = None,
) -> Drawing:
    """Embed ``figure``.

    Args:
        vectors: its SVG, if already made.
        pixels: its PNG, if already made; used if the SVG is too large.
    """
    content = svg(figure) if vectors is None else vectors
    kind = "svg+xml"
    if pixels is not None and len(content) > _LARGEST_VECTORS:
        content, kind = pixels, "png"
    width, height = figure.get_size_inches()
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return Drawing(
        source, alt, caption, round(_PIXELS_AN_INCH * width), bool(height > _TALL * width)
    )


def convergence_drawing(
    comparison: Comparison, figure: Figure, vectors: bytes, pixels: bytes
) -> Drawing:
    """The convergence figure, which is also written to files."""
    ends = ", ".join(
        f"{c.arm} {c.final_top1.mean:.3f} at learning rate {c.lr:g}" for c in comparison.cells[:24]
    )
    several = max(len(cell.seeds) for cell in comparison.cells) > 1
    return drawing(
        figure,
        "Validation accuracy against steps and seconds, and validation loss against steps. "
        f"Final accuracy: {ends}.",
        "Validation accuracy against optimiser steps and against seconds of training, and "
        "validation loss. "
        + (
            "Lines are means over seeds, bands reach from their least to their greatest. "
            if several
            else ""
        )
        + "Vertical lines mark where an arm reached the target"
        + (" (median of its runs)." if several else "."),
        vectors=vectors,
        pixels=pixels,
    )


def rates_drawing(comparison: Comparison) -> Drawing | None:
    """Accuracy against learning rate; None for one rate."""
    figure = rates_figure(comparison)
    if figure is None:
        return None
    several = max(len(cell.seeds) for cell in comparison.cells) > 1
    blur = (
        "Whiskers are one standard deviation over the seeds"
        if several
        else "All of one seed, which knows of no blur"
    )
    return drawing(
        figure,
        "Best accuracy and mean accuracy on the way against learning rate, a line for each arm; "
        "the table has its numbers.",
        "Where the swap helps: best accuracy, and mean accuracy on the way, against the learning "
        "rate. "
        f"{blur}; a ring marks each arm’s best rate. Points of one rate stand a little beside "
        "each other.",
    )


def learnt_drawings(run: RunRecord) -> list[Drawing]:
    """alpha and beta over training, and the learnt activations; [] if they were not recorded."""
    values = read_site_values(run)
    if values is None:
        return []
    drawn = []
    if (course := site_values_figure(values)) is not None:
        drawn.append(
            drawing(
                course,
                f"Heat maps of alpha and beta of {len(values.names)} sites by step, and of their "
                "change since the start.",
                "alpha and beta of each site over training, first site on top; to the right their "
                "change since the start, whose scale tells whether they learn at all.",
            )
        )
    left, right = values.slopes(-1)
    drawn.append(
        drawing(
            activations_figure(values),
            f"The activation of each site as learnt: slopes {left.min():.3f} to {left.max():.3f} "
            f"left of 0, {right.min():.3f} to {right.max():.3f} right of it.",
            "The activation that each site ended with, min(cap, scale · AReLU(x)), and its two "
            "slopes by depth, filled as learnt and hollow as they began.",
        )
    )
    return drawn


def confusion_drawing(
    names: Sequence[str], matrices: Sequence[Counts], classes: Sequence[str]
) -> Drawing | None:
    """Both confusion matrices; None for more classes than a figure can show."""
    figure = confusion_figure(list(zip(names, matrices, strict=True)), classes)
    if figure is None:
        return None
    right = ", ".join(
        f"{name} {counts.trace()} of {counts.sum()} right"
        for name, counts in zip(names, matrices, strict=True)
    )
    return drawing(
        figure,
        f"Confusion matrices: {right}.",
        "Confusion matrices of the best checkpoints: a row for each true class, shaded by the "
        "share of it given each name.",
    )
