"""Gradients of a training step, site by site and layer by layer; the step is not taken, and the model stays as it is."""

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
    """Sums over the elements of a gradient; kept on the processor in double precision."""

    def __init__(self) -> None:
        # Squares, zeros, small ones, elements.
        self.sums = torch.zeros(4, dtype=torch.float64)

    def add(self, grad: Tensor, scale: float, threshold: float) -> None:
        grad, count = grad.detach().float(), grad.numel()
        norm = torch.linalg.vector_norm(grad)
        # The shares do not depend on the scale: every pass over a large map counts.
        large = torch.count_nonzero(grad.abs() > threshold * norm / math.sqrt(count))
        others, many = torch.stack((torch.count_nonzero(grad), large)).tolist()
        self.sums = self.sums + self.sums.new_tensor([(norm.item() * scale) ** 2, count - others, count - many, count])

    def told(self) -> tuple[float, float, float, float]:
        """(sum of squares, mean square, share of zeros, share of small ones)."""
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
    """Gradients of ``model`` on ``batches`` as its training would compute them: in training mode, with the training's loss,
    dropout and precision, BatchNorm normalising by the batch. Weights, statistics and the optimiser are left alone.

    Args:
        sites: as ``watch_sites`` takes them; gates and what does not run are left out of the result.
        batches: pictures (B, C, H, W) and labels (B,); the n-th has the random numbers of the training's step n.
        threshold: see ``SiteGradient``.

    Raises:
        NonFiniteError: the loss or a gradient is infinite or undefined.
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
        # Where memory runs out, the batch begins again in smaller parts.
        step = Step(model, torch.optim.SGD(learning), settings, device, told=lambda _, w=watched: w.begin())  # type: ignore[misc]
        step.train_mode()
        # The loss is the batch's mean, and float16's scaler multiplies it.
        scale = 1 / step.scaler.get_scale()
        watched.scale = scale * len(batch[1])
        with statistics_untouched(model), watch_sites(model, sites, watched.entered, watched.left):
            step.require_finite(step.gradients([batch], number), [batch], number)
        for total, told in ((before, watched.before), (after, watched.after)):
            for at, tally in told.items():
                total[at].sums += tally.sums
        for name, weight in layers.items():
            if weight.grad is not None:
                weights[name].add(weight.grad, scale, threshold)
        for parameter in learning:
            parameter.grad = None
        pictures += len(batch[1])
    return (
        [_site(sites[number].name, before[number], after[number], pictures) for number in shown],
        [_weight(name, weight, weights[name], len(batches)) for name, weight in layers.items() if name in weights],
    )


class _Watched:
    """What the backward pass of one batch meets, part by part."""

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


def _at_gradient(tensor: Tensor, told: Callable[[Tensor], None]) -> None:
    tensor.register_hook(told)  # type: ignore[no-untyped-call]


def _learning_layers(model: nn.Module) -> dict[str, nn.Parameter]:
    found = ((name, getattr(module, "weight", None)) for name, module in model.named_modules() if isinstance(module, _LAYERS))
    return {name: weight for name, weight in found if isinstance(weight, nn.Parameter) and weight.requires_grad}


def _finite(square: float, name: str) -> float:
    if not math.isfinite(square):
        raise NonFiniteError(f"the gradient at {name} is infinite or undefined: start closer to ReLU with --init calibrated")
    return square


def _site(name: str, before: _Tally, after: _Tally, pictures: int) -> SiteGradient:
    square, mean, zero, vanishing = before.told()
    came = _finite(after.told()[0], name)
    return SiteGradient(
        name=name,
        norm=math.sqrt(_finite(square, name) / pictures),
        rms=math.sqrt(mean),
        zero=zero,
        vanishing=vanishing,
        gain=math.sqrt(square / came) if came else None,
    )


def _weight(name: str, weight: Tensor, tally: _Tally, batches: int) -> WeightGradient:
    square, mean, zero, vanishing = tally.told()
    norm = math.sqrt(_finite(square, name) / batches)
    own = float(weight.detach().float().norm())
    relative = norm / own if own else None
    return WeightGradient(name=name, norm=norm, rms=math.sqrt(mean), relative=relative, zero=zero, vanishing=vanishing)
