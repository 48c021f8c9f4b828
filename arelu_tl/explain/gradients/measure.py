"""Measure the gradients of a training step at each site and layer, without taking the step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from arelu_tl.errors import NonFiniteError
from arelu_tl.explain.gradients.report import SiteGradient, WeightGradient
from arelu_tl.surgery.sites import Site
from arelu_tl.surgery.watch import watch_sites
from arelu_tl.training.recompute import statistics_untouched
from arelu_tl.training.step import Batch, Step, StepSettings

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class _Tally:
    """Sums over the elements of gradients; on the CPU in double precision."""

    def __init__(self) -> None:
        # Sum of squares, number of zeros, of small elements, of elements.
        self.sums = torch.zeros(4, dtype=torch.float64)

    def add(self, grad: Tensor, scale: float, threshold: float) -> None:
        grad, count = grad.detach().float(), grad.numel()
        norm = torch.linalg.vector_norm(grad)
        # The shares do not depend on the scale, so it is left out to save a pass over a large map.
        large = torch.count_nonzero(grad.abs() > threshold * norm / math.sqrt(count))
        others, many = torch.stack((torch.count_nonzero(grad), large)).tolist()
        self.sums = self.sums + self.sums.new_tensor(
            [(norm.item() * scale) ** 2, count - others, count - many, count]
        )

    def result(self) -> tuple[float, float, float, float]:
        """Return (sum of squares, mean square, share of zeros, share of small elements)."""
        square, zeros, small, elements = self.sums.tolist()
        count = elements or 1
        return square, square / count, zeros / count, small / count


def measure_gradients(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    settings: StepSettings,
    device: torch.device,
    *,
    threshold: float,
) -> tuple[list[SiteGradient], list[WeightGradient]]:
    """Measure the gradients of ``model`` on ``batches`` as its training would compute them.

    The model runs in training mode, with the training's loss, dropout and precision; BatchNorm
    normalises by the batch. Weights and statistics do not change.

    Args:
        model: the model to measure.
        sites: as ``watch_sites`` takes them; gates and sites that do not run are left out of the
            result.
        batches: pictures (B, C, H, W) and labels (B,); the n-th batch uses the random numbers of
            training step n.
        settings: of the training's steps.
        device: where to run.
        threshold: see ``SiteGradient``.

    Raises:
        NonFiniteError: the loss or a gradient is NaN or infinite.
        SurgeryError: see ``watch_sites``.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    shown = [number for number, site in enumerate(sites) if site.runs and site.role != "gate"]
    layers = _learning_layers(model)
    before, after = defaultdict[int, _Tally](_Tally), defaultdict[int, _Tally](_Tally)
    weights = defaultdict[str, _Tally](_Tally)
    pictures = 0
    for number, batch in enumerate(batches):
        watched = _Watched(shown, threshold)
        # If memory runs out, the step starts the batch again in smaller parts.
        step = Step(
            model,
            torch.optim.SGD(learning),
            settings,
            device,
            notify=lambda _, w=watched: w.begin(),  # type: ignore[misc]
        )
        step.train_mode()
        # Undo the mean over the batch, and the loss scaling for float16.
        scale = 1 / step.scaler.get_scale()
        watched.scale = scale * len(batch[1])
        with statistics_untouched(model), watch_sites(model, sites, watched.entered, watched.left):
            step.require_finite(step.gradients([batch], number), [batch], number)
        for total, tallies in ((before, watched.before), (after, watched.after)):
            for at, tally in tallies.items():
                total[at].sums += tally.sums
        for name, weight in layers.items():
            if weight.grad is not None:
                weights[name].add(weight.grad, scale, threshold)
        for parameter in learning:
            parameter.grad = None
        pictures += len(batch[1])
    return (
        [_site(sites[number].name, before[number], after[number], pictures) for number in shown],
        [
            _weight(name, weight, weights[name], len(batches))
            for name, weight in layers.items()
            if name in weights
        ],
    )


class _Watched:
    """The gradients that the backward pass of one batch gives, accumulated over its parts."""

    def __init__(self, shown: Sequence[int], threshold: float) -> None:
        self._shown, self._threshold = frozenset(shown), threshold
        self.scale = 1.0
        self.begin()

    def begin(self) -> None:
        self.before, self.after = defaultdict[int, _Tally](_Tally), defaultdict[int, _Tally](_Tally)

    def entered(self, site: int, x: Tensor) -> None:
        if site in self._shown:
            _at_gradient(x, lambda grad: self.before[site].add(grad, self.scale, self._threshold))

    def left(self, site: int, y: Tensor) -> None:
        if site in self._shown:
            _at_gradient(y, lambda grad: self.after[site].add(grad, self.scale, self._threshold))


def _at_gradient(tensor: Tensor, notify: Callable[[Tensor], None]) -> None:
    tensor.register_hook(notify)  # type: ignore[no-untyped-call]


def _learning_layers(model: nn.Module) -> dict[str, nn.Parameter]:
    found = (
        (name, getattr(module, "weight", None))
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
    )
    return {
        name: weight
        for name, weight in found
        if isinstance(weight, nn.Parameter) and weight.requires_grad
    }


def _finite(square: float, name: str) -> float:
    if not math.isfinite(square):
        raise NonFiniteError(
            f"the gradient at {name} is infinite or undefined: "
            "start closer to ReLU with `init='calibrated'`"
        )
    return square


def _site(name: str, before: _Tally, after: _Tally, pictures: int) -> SiteGradient:
    square, mean, zero, vanishing = before.result()
    came = _finite(after.result()[0], name)
    return SiteGradient(
        name=name,
        norm=math.sqrt(_finite(square, name) / pictures),
        rms=math.sqrt(mean),
        zero=zero,
        vanishing=vanishing,
        gain=math.sqrt(square / came) if came else None,
    )


def _weight(name: str, weight: Tensor, tally: _Tally, batches: int) -> WeightGradient:
    square, mean, zero, vanishing = tally.result()
    norm = math.sqrt(_finite(square, name) / batches)
    own = float(weight.detach().float().norm())
    relative = norm / own if own else None
    return WeightGradient(
        name=name, norm=norm, rms=math.sqrt(mean), relative=relative, zero=zero, vanishing=vanishing
    )
