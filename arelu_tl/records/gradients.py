"""What was measured of a net's gradients: content of gradients.json. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

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
