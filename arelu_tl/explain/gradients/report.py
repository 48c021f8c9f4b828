"""What was measured of a net's gradients: content of gradients.json. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from arelu_tl.analysis.pairing import BASELINE

# Share of a map's or weight's root mean square, up to which an element of its gradient counts as vanished.
THRESHOLD = 0.01


@dataclass(frozen=True)
class SiteGradient:
    """The gradient of a picture's own loss by the pre-activation x of a site, through the site alone.

    Whatever a threshold of fixed size would say depends on the loss, on how many pixels share it, and on how normalisation has
    scaled the map; so an element counts as vanished where it is small beside its own site's root mean square. That makes the
    share comparable across arms, depths and steps. Whether a whole layer's gradient vanishes is what ``norm`` tells.

    Attributes:
        name: of the site.
        norm: root mean square over the pictures of a picture's L2 norm.
        rms: root mean square over all elements.
        zero: share of elements that are exactly 0, 0..1.
        vanishing: share whose size is at most the threshold times the rms of their batch, 0..1; zeros included.
        gain: norm by x over norm by the site's output: what the activation's slope passes on; None where nothing came.
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
        norm: root mean square over the batches of its L2 norm.
        rms: root mean square over all elements.
        relative: ``norm`` over the weight's own L2 norm; None where that is 0.
        zero, vanishing: as of ``SiteGradient``.
    """

    name: str
    norm: float
    rms: float
    relative: float | None
    zero: float
    vanishing: float


@dataclass(frozen=True)
class GradientPoint:
    """What an arm's gradients were after ``step`` optimiser steps.

    Attributes:
        what: the weights measured: "start", "training", a checkpoint's name, or "best".
        sites: in the order of the forward pass.
        weights: of layers that learn, in the order in which the model has them.
    """

    arm: str
    step: int
    what: str
    sites: list[SiteGradient] = field(repr=False)
    weights: list[WeightGradient] = field(repr=False)


@dataclass(frozen=True)
class GradientReport:
    """Attributes:
    model, data: what was measured, on which folder of pictures.
    lr, seed: of the training.
    batch_size: pictures in a batch.
    batches: how many batches every point was measured on, the same for all.
    threshold: see ``SiteGradient``.
    arms: the unmodified one first, as far as measured.
    points: of each arm in order of steps.
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
        return [point for point in self.points if point.arm == arm]

    def to_json(self, found: Sequence[str]) -> dict[str, Any]:
        """Content of gradients.json; ``found`` are the sentences that say what was found."""
        told = asdict(self)
        points = told.pop("points")
        return {**told, "found": list(found), "points": points}


_WORST = 3


@dataclass(frozen=True)
class GradientSummary:
    """A point in numbers; medians are over the sites that any gradient reaches, or over the layers.

    Attributes:
        cut_off: how many sites no gradient reaches, as those before a BatchNorm whose weight is 0.
        norm: median of the sites' norms.
        first_to_last: norm at the first site over norm at the last; below 1 the gradient shrinks on its way back. None where none
            arrived at the last.
        zero, vanishing: median shares of a site's elements.
        gain: median of what sites pass on; None where no gradient came.
        relative: median over layers of the weights' gradient beside the weight itself; None where none learns.
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
    """A sentence on the start, one on the last point where both arms have one, each with the numbers that it rests on, and what
    the last of them says of the claim.
    """
    arms = [report.of(arm) for arm in report.arms]
    if len(arms) < 2 or arms[0][0].arm != BASELINE:
        return []
    relu, other = arms
    found = [_compared(report, relu[0], other[0], "At the start")]
    if len(relu) > 1 and len(other) > 1:
        same = relu[-1].step == other[-1].step
        steps = f"{relu[-1].step}" if same else f"{relu[-1].step} ({relu[-1].arm}) and {other[-1].step} ({other[-1].arm})"
        found.append(_compared(report, relu[-1], other[-1], f"After {steps} steps"))
        return [*found, _judged(report, relu[-1], other[-1])]
    return [*found, _judged(report, relu[0], other[0])]


def _fewer(relu: GradientPoint, other: GradientPoint) -> tuple[int, int]:
    """At how many sites fewer, and more, of the gradient's elements vanish than in the unmodified arm."""
    apart = [ours.vanishing - theirs.vanishing for ours, theirs in zip(other.sites, relu.sites, strict=True)]
    return sum(each < 0 for each in apart), sum(each > 0 for each in apart)


def _compared(report: GradientReport, relu: GradientPoint, other: GradientPoint, when: str) -> str:
    a, b = summarise_gradients(relu), summarise_gradients(other)
    ours, theirs = other.arm, relu.arm
    if a.gain is None and b.gain is None:
        return f"{when}, no gradient reaches any site in either arm, as before a layer whose weight is 0."
    fewer, more = _fewer(relu, other)
    cut_off = f"; no gradient reaches {a.cut_off} sites of {theirs} and {b.cut_off} of {ours}" if a.cut_off or b.cut_off else ""
    return (
        f"{when}, {b.vanishing:.0%} of the gradient's elements vanish at the median site in {ours} and {a.vanishing:.0%} in "
        f"{theirs} (they are at most {report.threshold:g} of the site's rms; exactly 0: {b.zero:.0%} and {a.zero:.0%}): fewer in "
        f"{ours} at {fewer} of {len(relu.sites)} sites, more at {more}. A median site passes on {_short(b.gain)} times the norm "
        f"that reaches it in {ours}, {_short(a.gain)} times in {theirs}; from the last site to the first the norm is multiplied "
        f"by {_short(b.first_to_last)} in {ours} and {_short(a.first_to_last)} in {theirs}{cut_off}."
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
        depth = "across depth there is nothing to resist, for the norm does not shrink on its way to the input in either arm"
    else:
        compared = "less" if first > unmodified else "more" if first < unmodified else "as much"
        depth = f"across depth the norm shrinks {compared} on its way to the input"
    return (
        f"The paper's claim that AReLU resists vanishing gradients, asked of {other.arm} in this one run (seed {report.seed}; "
        f"another may say otherwise): {elements}; {depth}."
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if 0.1 <= value < 10 else f"{value:.2g}" if value < 1 else f"{value:.0f}"
