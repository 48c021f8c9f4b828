"""Correct BatchNorm after surgery, and measure how far surgery moved the backbone's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from arelu_tl.backbone.modes import evaluating


@dataclass(frozen=True)
class Drift:
    """How far surgery moved the outputs on the same pictures.

    Attributes:
        relative: norm(f1 - f0) / norm(f0) of the pooled features; None if the outputs overflowed.
        top1_agreement: share of pictures whose pretrained top-1 class is unchanged, 0..1.
        images: number of pictures measured.
    """

    relative: float | None
    top1_agreement: float
    images: int

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON types."""
        return {
            "relative": self.relative,
            "top1_agreement": self.top1_agreement,
            "images": self.images,
        }


def calibration_batches(pictures: Sequence[Tensor], size: int = 32) -> list[Tensor]:
    """Split pictures (C, H, W) into batches (B, C, H, W) whose sizes differ by at most one.

    A mean over the batches therefore weighs all pictures nearly equally.

    Raises:
        ValueError: fewer than two pictures, too few for BatchNorm statistics.
    """
    if len(pictures) < 2:
        raise ValueError("calibration needs at least two pictures")
    parts = -(-len(pictures) // size)
    if len(pictures) // parts < 2:
        parts = 1
    share, extra = divmod(len(pictures), parts)
    sizes = [share + (i < extra) for i in range(parts)]
    return list(torch.split(torch.stack(list(pictures)), sizes))


@torch.no_grad()
def measure_outputs(model: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (pooled features (N, D), top-1 class (N,)), computed in eval mode.

    The model's mode is restored. For a module without timm's ``forward_features``, its output
    serves as its features; maps in a list or dict are pooled.
    """
    forward_features: Callable[..., Tensor] | None = getattr(model, "forward_features", None)
    forward_head: Callable[..., Tensor] | None = getattr(model, "forward_head", None)
    features, classes = [], []
    with evaluating(model):
        for batch in batches:
            if forward_features is not None and forward_head is not None:
                hidden = forward_features(batch)
                pooled, logits = forward_head(hidden, pre_logits=True), forward_head(hidden)
            else:
                pooled = logits = _as_features(model(batch))
            features.append(pooled.flatten(1).float().cpu())
            classes.append(logits.flatten(1).float().argmax(1).cpu())
    return torch.cat(features), torch.cat(classes)


def _as_features(output: Any) -> Tensor:
    """Reduce a module's output to (N, D).

    A tensor is returned as it is; for lists and dicts, the means of all maps are concatenated.
    """
    if isinstance(output, Tensor):
        return output
    parts = list(output.values()) if isinstance(output, Mapping) else list(output)
    return torch.cat([part.flatten(2).mean(2) if part.dim() > 2 else part for part in parts], dim=1)


def relative_drift(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Drift:
    """Compute the drift between two results of ``measure_outputs`` on the same pictures."""
    relative = float((after[0].double() - before[0].double()).norm() / before[0].double().norm())
    return Drift(
        relative=relative if math.isfinite(relative) else None,
        top1_agreement=float((before[1] == after[1]).float().mean()),
        images=len(before[1]),
    )


class Moments(NamedTuple):
    """Mean and biased variance of a BatchNorm layer's input, each (C,), in float32 or wider."""

    mean: Tensor
    variance: Tensor


# One pass over one batch: the moments at each BatchNorm of the model, one entry per run.
BatchMoments = dict[str, list[Moments]]


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.running_mean is not None
    }


def _moments(x: Tensor) -> Moments:
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(wide, dim=dims, correction=0)
    return Moments(mean, variance)


@contextmanager
def _at_inputs(
    layers: Mapping[str, _BatchNorm], act: Callable[[str, _BatchNorm, Tensor], None]
) -> Iterator[None]:
    """Call ``act(name, layer, input)`` before each layer runs."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        return lambda layer, args, kwargs: act(
            name,
            layer,  # type: ignore[arg-type]
            args[0] if args else kwargs["input"],
        )

    handles = [
        layer.register_forward_pre_hook(hook_of(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def batchnorm_moments(model: nn.Module, batches: Iterable[Tensor]) -> list[BatchMoments]:
    """Record the moments of each BatchNorm's input on each batch, in eval mode.

    ``correct_batchnorm`` compares against them.
    """
    layers = _layers(model)
    recorded: list[BatchMoments] = []
    with evaluating(model):
        for batch in batches:
            seen: BatchMoments = {name: [] for name in layers}
            with _at_inputs(
                layers,
                lambda name, _, x, seen=seen: seen[name].append(_moments(x)),  # type: ignore[misc]
            ):
                model(batch)
            recorded.append(seen)
    return recorded


@torch.no_grad()
def correct_batchnorm(
    model: nn.Module, batches: Sequence[Tensor], before: Sequence[BatchMoments]
) -> int:
    """Shift every BatchNorm's running statistics by what surgery did to its input, no more.

    On each batch, the statistics follow the affine map that takes the moments of the layer's input
    before surgery to those after it. If surgery was such an affine map, it is exactly undone. Later
    layers see the corrected result. The mean over batches is kept. Statistics re-estimated from the
    pictures would also adapt the net to those pictures, which the unmodified arm does not get;
    comparing before with after cancels this influence.

    Args:
        model: after surgery; changed in place, or left unchanged if an error occurs.
        batches: pictures, (B, C, H, W).
        before: ``batchnorm_moments`` of the model before surgery, on the same batches.

    Returns:
        The number of BatchNorm layers corrected.
    """
    layers = _layers(model)
    pretrained = {
        n: (layer.running_mean.clone(), layer.running_var.clone())  # type: ignore[union-attr]
        for n, layer in layers.items()
    }
    sums: dict[str, list[Tensor]] = {}

    def correct(name: str, layer: _BatchNorm, x: Tensor) -> None:
        earlier = next(recorded[name])
        now = _moments(x)
        mean, variance = pretrained[name]
        stretch = (now.variance + layer.eps) / (earlier.variance + layer.eps)
        mean = now.mean + (mean - earlier.mean) * stretch.sqrt()
        variance = (variance + layer.eps) * stretch - layer.eps
        # Not clamp: inside a routed module, a clamp would count as a ReLU call.
        variance = torch.where(variance > 0, variance, 0)
        _set_statistics(layer, mean, variance)
        total = sums.setdefault(
            name, [torch.zeros_like(mean), torch.zeros_like(variance), torch.zeros(())]
        )
        total[0] += mean
        total[1] += variance
        total[2] += 1

    done = False
    with evaluating(model):
        try:
            for batch, moments in zip(batches, before, strict=True):
                recorded = {name: iter(seen) for name, seen in moments.items()}
                with _at_inputs(layers, correct):
                    model(batch)
            done = True
        finally:
            for name, layer in layers.items():
                if done and name in sums:
                    mean, variance, count = sums[name]
                    _set_statistics(layer, mean / count.item(), variance / count.item())
                else:
                    _set_statistics(layer, *pretrained[name])
    return len(sums)


def keep_statistics(model: nn.Module) -> Callable[[], None]:
    """Save every BatchNorm's statistics; return a callable that restores them."""
    kept = [
        (layer, {k: v.clone() for k, v in layer.named_buffers()})
        for layer in _layers(model).values()
    ]

    @torch.no_grad()
    def put_back() -> None:
        for layer, buffers in kept:
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)

    return put_back


def _set_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    layer.running_mean.copy_(mean)  # type: ignore[union-attr]
    layer.running_var.copy_(variance)  # type: ignore[union-attr]


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace every BatchNorm's running statistics by their mean over ``batches``.

    Everything else stays in eval mode.

    Args:
        model: changed in place; modes and momenta are restored, and after an error the statistics
            too.
        batches: pictures, (B, C, H, W) with B at least 2.

    Returns:
        The number of BatchNorm layers re-estimated, that is, reached by the batches.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    given = list(batches)
    if not layers or not given:
        return 0
    before = [
        (layer.momentum, {k: v.clone() for k, v in layer.state_dict().items()}) for layer in layers
    ]
    done, reached = False, len(layers)
    with evaluating(model):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a plain mean over all batches
                layer.train()
            for batch in given:
                model(batch)
            done = True
        finally:
            for layer, (momentum, state) in zip(layers, before, strict=True):
                layer.momentum = momentum
                # A layer that no batch reached keeps its statistics.
                if not done or not layer.num_batches_tracked:
                    layer.load_state_dict(state)
                    reached -= 1
    return reached
