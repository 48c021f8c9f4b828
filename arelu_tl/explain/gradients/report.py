"""The measured gradients of a model: content of gradients.json. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from arelu_tl.analysis.pairing import BASELINE

# An element of a gradient counts as vanishing up to this share of the gradient's root mean square.
THRESHOLD = 0.01


@dataclass(frozen=True)
class SiteGradient:
    """The gradient of each picture's own loss by the pre-activation x of one site.

    Only the path through the site itself counts.

    A fixed threshold would depend on the loss, on the number of pixels that share it, and on the
    scale that normalisation gives the map. So an element counts as vanishing if it is small
    relative to its own site's root mean square. That makes the share comparable across arms, depths
    and steps. ``norm`` shows whether a whole layer's gradient vanishes.

    Attributes:
        name: of the site.
        norm: root mean square, over the pictures, of a picture's L2 norm.
        rms: root mean square over all elements.
        zero: share of elements that are exactly 0, 0..1.
        vanishing: share of elements that are at most the threshold times their batch's rms, 0..1;
            zeros included.
        gain: norm of the gradient by x over that by the site's output, that is, what the
            activation's slope passes on; None where no gradient reaches the site.
    """

    name: str
    norm: float
    rms: float
    zero: float
    vanishing: float
    gain: float | None


@dataclass(frozen=True)
class WeightGradient:
    """The gradient of a batch's mean loss by the weight of a convolution or a linear layer.

    Attributes:
        name: of the layer.
        norm: root mean square, over the batches, of its L2 norm.
        rms: root mean square over all elements.
        relative: ``norm`` over the weight's own L2 norm; None where that is 0.
        zero, vanishing: as in ``SiteGradient``.
    """

    name: str
    norm: float
    rms: float
    relative: float | None
    zero: float
    vanishing: float


@dataclass(frozen=True)
class GradientPoint:
    """An arm's gradients after ``step`` optimiser steps.

    Attributes:
        arm: its name.
        step: optimiser steps done.
        what: the weights measured: "start", "training", a checkpoint's name, or "best".
        sites: in the order of the forward pass.
        weights: of the trainable layers, in module order.
    """

    arm: str
    step: int
    what: str
    sites: list[SiteGradient] = field(repr=False)
    weights: list[WeightGradient] = field(repr=False)


@dataclass(frozen=True)
class GradientReport:
    """The gradients of both arms at several steps.

    Attributes:
        model, data: the model, and the folder of pictures.
        lr, seed: of the training.
        batch_size: pictures in a batch.
        batches: number of batches at every point; they are the same batches at all points.
        threshold: see ``SiteGradient``.
        arms: the measured arms, the unmodified one first.
        points: of each arm, in order of steps.
    """

    model: str
    data: str
    lr: float
    seed: int
    batch_size: int
    batches: int
    threshold: float
    points: list[GradientPoint] = field(repr=False)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(point.arm for point in self.points))

    def of(self, arm: str) -> list[GradientPoint]:
        """Return the points of ``arm``."""
        return [point for point in self.points if point.arm == arm]

    def to_json(self, found: Sequence[str]) -> dict[str, Any]:
        """Make the content of gradients.json; ``found`` are the sentences with the findings."""
        values = asdict(self)
        points = values.pop("points")
        return {**values, "found": list(found), "points": points}


_WORST = 3


@dataclass(frozen=True)
class GradientSummary:
    """Summary of one point; medians are over the sites that a gradient reaches, or over the layers.

    Attributes:
        point: the summarised point.
        cut_off: number of sites that no gradient reaches, such as those before a BatchNorm whose
            weight is 0.
        norm: median of the sites' norms.
        first_to_last: norm at the first site over norm at the last; below 1, the gradient shrinks
            on its way back. None where no gradient reaches the last site.
        zero, vanishing: medians of the sites' shares.
        gain: median of the sites' gains; None where no gradient reaches any site.
        relative: median of the layers' ``relative``; None where no layer is trainable.
        worst: the sites with the largest shares of vanishing elements.
    """

    point: GradientPoint
    cut_off: int
    norm: float
    first_to_last: float | None
    zero: float
    vanishing: float
    gain: float | None
    relative: float | None
    worst: list[SiteGradient]


def summarise_gradients(point: GradientPoint) -> GradientSummary:
    """Compute the summary of ``point``."""
    reached = [site for site in point.sites if site.gain is not None]
    sites = reached or point.sites
    last = point.sites[-1].norm
    return GradientSummary(
        point=point,
        cut_off=len(point.sites) - len(reached),
        norm=median(site.norm for site in sites),
        first_to_last=point.sites[0].norm / last if last else None,
        zero=median(site.zero for site in sites),
        vanishing=median(site.vanishing for site in sites),
        gain=_median(site.gain for site in sites),
        relative=_median(weight.relative for weight in point.weights),
        worst=sorted(sites, key=lambda site: -site.vanishing)[:_WORST],
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def found_in_gradients(report: GradientReport) -> list[str]:
    """Write sentences that compare the arms; [] where there are not both.

    One is about the start, one about the last point where both arms have a later one, each with its
    numbers. The last sentence says what the later of them means for the paper's claim.
    """
    arms = [report.of(arm) for arm in report.arms]
    if len(arms) < 2 or arms[0][0].arm != BASELINE:
        return []
    relu, other = arms
    found = [_compared(report, relu[0], other[0], "At the start")]
    if len(relu) > 1 and len(other) > 1:
        same = relu[-1].step == other[-1].step
        steps = (
            f"{relu[-1].step}"
            if same
            else f"{relu[-1].step} ({relu[-1].arm}) and {other[-1].step} ({other[-1].arm})"
        )
        found.append(_compared(report, relu[-1], other[-1], f"After {steps} steps"))
        return [*found, _judged(report, relu[-1], other[-1])]
    return [*found, _judged(report, relu[0], other[0])]


def _fewer(relu: GradientPoint, other: GradientPoint) -> tuple[int, int]:
    """Count the sites where fewer, and where more, elements vanish than in the unmodified arm."""
    apart = [
        ours.vanishing - theirs.vanishing
        for ours, theirs in zip(other.sites, relu.sites, strict=True)
    ]
    return sum(each < 0 for each in apart), sum(each > 0 for each in apart)


def _compared(report: GradientReport, relu: GradientPoint, other: GradientPoint, when: str) -> str:
    a, b = summarise_gradients(relu), summarise_gradients(other)
    ours, theirs = other.arm, relu.arm
    if a.gain is None and b.gain is None:
        return (
            f"{when}, no gradient reaches any site in either arm, "
            "as before a layer whose weight is 0."
        )
    fewer, more = _fewer(relu, other)
    cut_off = (
        f"; no gradient reaches {a.cut_off} sites of {theirs} and {b.cut_off} of {ours}"
        if a.cut_off or b.cut_off
        else ""
    )
    return (
        f"{when}, {b.vanishing:.0%} of the gradient's elements vanish at the median site in {ours} "
        f"and {a.vanishing:.0%} in {theirs} (they are at most {report.threshold:g} of the site's "
        f"rms; exactly 0: {b.zero:.0%} and {a.zero:.0%}): fewer in {ours} at {fewer} of "
        f"{len(relu.sites)} sites, more at {more}. A median site passes on {_short(b.gain)} times "
        f"the norm that reaches it in {ours}, {_short(a.gain)} times in {theirs}; from the last "
        f"site to the first the norm is multiplied by {_short(b.first_to_last)} in {ours} and "
        f"{_short(a.first_to_last)} in {theirs}{cut_off}."
    )


def _judged(report: GradientReport, relu: GradientPoint, other: GradientPoint) -> str:
    a, b = summarise_gradients(relu), summarise_gradients(other)
    fewer, more = _fewer(relu, other)
    if b.vanishing < a.vanishing and fewer > more:
        elements = "it holds for the elements of the gradient, of which fewer vanish"
    elif b.vanishing > a.vanishing and more > fewer:
        elements = "it does not hold for the elements of the gradient, of which more vanish"
    else:
        elements = "of the elements of the gradient about as many vanish"
    first, unmodified = b.first_to_last, a.first_to_last
    if first is None or unmodified is None:
        depth = "nothing can be said of depth, since none reaches the last site"
    elif first >= 1 and unmodified >= 1:
        depth = (
            "across depth there is nothing to resist, for the norm does not shrink on its way to "
            "the input in either arm"
        )
    else:
        compared = "less" if first > unmodified else "more" if first < unmodified else "as much"
        depth = f"across depth the norm shrinks {compared} on its way to the input"
    return (
        f"The paper's claim that AReLU resists vanishing gradients, asked of {other.arm} in this "
        f"one run (seed {report.seed}; another may say otherwise): {elements}; {depth}."
    )


def _short(value: float | None) -> str:
    return (
        "-"
        if value is None
        else f"{value:.2f}"
        if 0.1 <= value < 10
        else f"{value:.2g}"
        if value < 1
        else f"{value:.0f}"
    )
