"""Evaluate activations on a grid: the sites of a run before and after training, the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.catalogue import CATALOGUE, named_activations
from arelu_tl.activation.elsa import ELSA
from arelu_tl.backbone.loading import build_architecture
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.explain.activations.report import Floats, RunCurves, Shape, SiteCurve
from arelu_tl.models.load import load_model
from arelu_tl.surgery.apply import restore_sites

_RANGE, _BEYOND_CAP = 4.0, 2.0
_SHAPES_RANGE = 5.0
# The gallery shows the effect of sign-based attention on these.
_WITH_ATTENTION = ("tanh", "gelu")
# Parameters of AReLU and PReLU, one per site or per channel; those of others are coefficients.
_BY_CHANNEL = ("alpha", "beta", "weight")


def run_curves(path: Path) -> RunCurves:
    """Evaluate the activation at every site of a run: as surgery inserted it, and trained.

    Args:
        path: a run folder (its best weights are taken), or one of its checkpoints.

    Raises:
        DataError: there is no run at ``path``, or it is an export, whose sites are constants.
        ConfigError: the run's arm keeps every ReLU.
        ArtefactError: the run's files are damaged.
    """
    model, card = load_model(path)
    if card.form != "trained":
        raise DataError(
            f"{path} is exported, its activations are constants: "
            "name the run that it was exported from"
        )
    if not any(site["status"] == "replaced" for site in card.sites):
        raise ConfigError(
            f"{path}: arm {card.arm} keeps every ReLU, so that there is nothing learnt to show"
        )
    before = build_architecture(
        card.architecture,
        num_classes=len(card.classes),
        img_size=card.img_size,
        model_args=card.model_args,
    )
    restore_sites(before, card.sites, arm=card.arm)
    records = {site["name"]: site for site in card.sites if site["status"] == "replaced"}
    caps = [site["cap"] for site in records.values() if site["cap"] is not None]
    x = np.linspace(-_RANGE, max([_RANGE, *(cap + _BEYOND_CAP for cap in caps)]), 241)
    started, learnt = dict(named_activations(before.eval())), dict(named_activations(model))
    # surgery.json lists the sites in the order of the forward pass.
    sites = [
        _site_curve(record, started[name], learnt[name], x) for name, record in records.items()
    ]
    return RunCurves(card.backbone, card.arm, card.step, x, sites)


def _site_curve(record: dict[str, Any], before: nn.Module, now: nn.Module, x: Floats) -> SiteCurve:
    start, final = (
        _evaluate(module, x, record["shape"], record["channel_dim"]) for module in (before, now)
    )
    alike = bool((final == final[:, :1]).all())
    return SiteCurve(
        name=record["name"],
        cap=record["cap"],
        scale=float(now.scale) if isinstance(now, AReLU) else 1.0,
        channels=1 if alike else final.shape[1],
        start=start.mean(1),
        final=final.mean(1),
        low=final.min(1),
        high=final.max(1),
        learnt=_learnt(before, now),
    )


def _learnt(before: nn.Module, now: nn.Module) -> dict[str, tuple[float, float]]:
    """Return {parameter: (start, now)}.

    Slopes per channel are averaged. Coefficients have an entry each, such as ``numerator 3``.
    """
    learnt = {}
    ends = dict(now.named_parameters())
    for name, start in before.named_parameters():
        pair = start.detach().float(), ends[name].detach().float()
        short = name.removeprefix("activation.")
        if start.numel() == 1 or short in _BY_CHANNEL:
            learnt[short] = (float(pair[0].mean()), float(pair[1].mean()))
        else:
            learnt |= {
                f"{short} {n}": (a, b)
                for n, (a, b) in enumerate(zip(*(p.tolist() for p in pair), strict=True))
            }
    return learnt


@torch.no_grad()
def _evaluate(module: nn.Module, x: Floats, shape: list[int], channel_dim: int) -> Floats:
    """Return y (N, C) of every channel at ``x`` (N,).

    Args:
        module: takes tensors of ``shape``, whose dimension ``channel_dim`` has the C channels.
    """
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    channels = shape[channel_dim]
    form = [1] * len(shape)
    form[0], form[channel_dim] = len(x), channels
    grid = torch.tensor(x, dtype=dtype)[:, None].expand(-1, channels).reshape(form).clone()
    return module(grid).reshape(len(x), channels).double().numpy()  # type: ignore[no-any-return]


def catalogue_shapes() -> list[Shape]:
    """Evaluate the catalogue's initial activations, and two of them with attention added.

    A random activation is evaluated in eval mode, at its mean.
    """
    shapes = [
        _shape(entry.make(), entry.name, entry.title, entry.formula, entry.parameters, entry.source)
        for entry in CATALOGUE.values()
    ]
    for name in _WITH_ATTENTION:
        entry = CATALOGUE[name]
        title, formula = f"ELSA({entry.title})", f"{entry.title}(x) + L(x; α = 0.9, β = 2)"
        shapes.append(
            _shape(
                ELSA(entry.make()),
                f"elsa-{name}",
                title,
                formula,
                entry.parameters + 2,
                "Chen, Li, Xu, arXiv 2006.13858",
            )
        )
    return shapes


def _shape(
    module: nn.Module, name: str, title: str, formula: str, parameters: int, source: str
) -> Shape:
    x = torch.linspace(-_SHAPES_RANGE, _SHAPES_RANGE, 401, dtype=torch.float64)[
        :, None
    ].requires_grad_()
    y = module.double().eval()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    columns = [tensor.detach().squeeze(1).numpy() for tensor in (x, y, slope)]
    return Shape(name, title, formula, parameters, source, *columns)
