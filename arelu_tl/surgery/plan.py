"""Find every site and decide what becomes of it, without touching the model."""

from __future__ import annotations

import difflib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arelu_tl.activation import ALPHA_MAX, ALPHA_MIN
from arelu_tl.backbone import evaluating, pretrained_cfg
from arelu_tl.errors import SurgeryError

INITS = ("calibrated", "paper", "near-relu")
Status = Literal["replaced", "excluded", "unmatched"]

# alpha0 of calibrated grows with the fourth power of depth: a leak in an early site shifts what every later layer was
# trained on, a leak in a late one gives the gradient a way through where the features are remade (measured: DESIGN).
_GRADING_POWER = 4


@dataclass(frozen=True)
class Site:
    """One ReLU module of a model.

    Attributes:
        name: its first qualified name.
        names: every qualified name under which the model holds it.
        kind: "module".
        operator: "relu" or "relu6".
        inplace: whether it overwrites its input.
        calls: how often an example's forward pass ran it; None where no example was run.
    """

    name: str
    names: tuple[str, ...]
    kind: Literal["module"]
    operator: Literal["relu", "relu6"]
    inplace: bool
    calls: int | None = None

    @property
    def cap(self) -> float | None:
        """Upper bound of the site's output, which surgery keeps."""
        return 6.0 if self.operator == "relu6" else None


@dataclass(frozen=True)
class PlannedSite:
    """A site and what becomes of it. The four values are those that its AReLU starts with."""

    site: Site
    status: Status
    alpha0: float
    beta0: float
    scale: float

    def to_json(self) -> dict[str, Any]:
        """One entry of surgery.json's "sites"."""
        replaced = self.status == "replaced"
        return {
            "name": self.site.name,
            "names": list(self.site.names),
            "kind": self.site.kind,
            "operator": self.site.operator,
            "calls": self.site.calls,
            "status": self.status,
            "alpha0": self.alpha0 if replaced else None,
            "beta0": self.beta0 if replaced else None,
            "scale": self.scale if replaced else None,
            "cap": self.site.cap,
        }


@dataclass(frozen=True)
class SurgeryPlan:
    """What becomes of each site, in the order in which the forward pass meets them."""

    init: str
    sites: list[PlannedSite]

    @property
    def replaced(self) -> list[PlannedSite]:
        return [s for s in self.sites if s.status == "replaced"]


def find_sites(model: nn.Module, example_input: Tensor | None = None) -> list[Site]:
    """Every ``nn.ReLU`` and ``nn.ReLU6`` of ``model``, in the order of the forward pass. Changes nothing.

    Args:
        model: any module; left in its mode.
        example_input: pictures, shape (N, C, H, W). When None, one of timm's own input size is made for a timm model;
            other modules are listed in the order of their registration.
    """
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.ReLU | nn.ReLU6):
            names[module].append(name)
    order, calls = _run(model, list(names), example_input)
    return [
        Site(
            name=names[m][0],
            names=tuple(names[m]),
            kind="module",
            operator="relu6" if isinstance(m, nn.ReLU6) else "relu",
            inplace=bool(m.inplace),
            calls=calls.get(m) if calls is not None else None,
        )
        for m in order
    ]


def _run(
    model: nn.Module, modules: Sequence[nn.Module], example: Tensor | None
) -> tuple[list[nn.Module], dict[nn.Module, int] | None]:
    """The modules in order of their first execution (those never run come last), and how often each ran."""
    if example is None:
        config = pretrained_cfg(model)
        if not config or not modules:
            return list(modules), None
        parameter = next(model.parameters())
        example = torch.zeros(1, *config["input_size"], device=parameter.device, dtype=parameter.dtype)
    calls: dict[nn.Module, int] = dict.fromkeys(modules, 0)
    order: list[nn.Module] = []

    def seen(module: nn.Module, *_: Any) -> None:
        if not calls[module]:
            order.append(module)
        calls[module] += 1

    handles = [m.register_forward_pre_hook(seen) for m in modules]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        told = " ".join(str(error).split())[:200]
        raise SurgeryError(f"{type(model).__name__} cannot run on input of shape {tuple(example.shape)}: {told}") from error
    finally:
        for handle in handles:
            handle.remove()
    return order + [m for m in modules if not calls[m]], calls


def make_plan(
    sites: Sequence[Site],
    *,
    init: str = "calibrated",
    alpha: float | None = None,
    beta: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> SurgeryPlan:
    """Decide what becomes of each site.

    Args:
        sites: as ``find_sites`` lists them.
        init: "paper" (alpha 0.9, beta 2, nothing else), "near-relu" (alpha 0.01, beta -6), or "calibrated": output
            normalised by 1 / (1 + sigmoid(beta0)) so that positives pass unchanged, alpha0 = max(0.01, 0.9 f^4) with
            f = index / (sites - 1).
        alpha: overrides the init's alpha; with calibrated, the alpha of the last site.
        beta: overrides the init's beta.
        include: globs over site names; only matching sites are replaced.
        exclude: globs over site names that stay as they are.

    Raises:
        SurgeryError: no site, a pattern that matches none, or nothing left to replace.
    """
    if init not in INITS:
        raise SurgeryError(f"unknown init {init!r}: {', '.join(INITS)}")
    if not sites:
        raise SurgeryError("there is no site to plan for")
    if alpha is not None and not ALPHA_MIN <= alpha <= ALPHA_MAX:
        raise SurgeryError(f"alpha must lie in [{ALPHA_MIN}, {ALPHA_MAX}], outside which it has no gradient: {alpha}")
    if beta is not None and not abs(beta) <= 20:
        raise SurgeryError(f"beta must lie in [-20, 20], beyond which its sigmoid has no gradient: {beta}")
    include, exclude = list(include or ()), list(exclude or ())
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            _require_match(option, pattern, sites)
    planned = []
    for index, site in enumerate(sites):
        depth = index / (len(sites) - 1) if len(sites) > 1 else 1.0
        alpha0, beta0, scale = _start(init, depth, alpha, beta)
        status: Status = "replaced"
        if include and not _matches(site, include):
            status = "unmatched"
        if _matches(site, exclude):
            status = "excluded"
        planned.append(PlannedSite(site, status, alpha0, beta0, scale))
    plan = SurgeryPlan(init, planned)
    if not plan.replaced:
        raise SurgeryError("the patterns leave no site to replace: loosen --include or --exclude")
    return plan


def _start(init: str, depth: float, alpha: float | None, beta: float | None) -> tuple[float, float, float]:
    """(alpha0, beta0, scale) of a site at relative depth 0..1."""
    if init == "near-relu":
        return (0.01 if alpha is None else alpha, -6.0 if beta is None else beta, 1.0)
    top = 0.9 if alpha is None else alpha
    beta0 = 2.0 if beta is None else beta
    if init == "paper":
        return top, beta0, 1.0
    return max(0.01, top * depth**_GRADING_POWER), beta0, 1 / (1 + 1 / (1 + math.exp(-beta0)))


def _matches(site: Site, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in site.names for pattern in patterns)


def _require_match(option: str, pattern: str, sites: Sequence[Site]) -> None:
    if any(_matches(site, [pattern]) for site in sites):
        return
    near = difflib.get_close_matches(pattern, [site.name for site in sites], n=3, cutoff=0.4)
    hint = f"near ones: {', '.join(near)}" if near else f"the first site is {sites[0].name}"
    raise SurgeryError(f"{option} {pattern!r} matches no site; {hint}")
