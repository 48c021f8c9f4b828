"""Decide what becomes of each site, before anything changes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from arelu_tl.activation.catalogue import SLOPED_ARMS
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.sites import Site

INITS = ("calibrated", "paper", "near-relu")
GRANULARITIES = ("site", "channel")
# replaced; excluded by a pattern; not matched by any --include; gate (kept: it bounds a gate to 0..1 and is no activation);
# not run (a module that the forward pass does not reach); kept (the arm keeps every ReLU).
Status = Literal["replaced", "excluded", "unmatched", "gate", "not run", "kept"]

# alpha0 of calibrated grows with depth: a leak in an early site shifts what every later layer was trained on, a leak in a late
# one gives the gradient a way through where the features are remade. Unmeasured, by the fourth power; measured, by the
# second power of depth over the site's own leak ratio, which at the same drift converges faster (README).
_GRADING_POWER = 4
_MEASURED_POWER = 2
_ALPHA_TOP = 0.9


@dataclass(frozen=True)
class Route:
    """Where in its owner's forward pass a site is: ReLU call ``position`` (from 0) of ``length``."""

    owner: str
    position: int
    length: int


@dataclass(frozen=True)
class PlannedSite:
    """A site and what becomes of it.

    Attributes:
        site: the site.
        status: what becomes of it.
        alpha0, beta0, scale: what its AReLU starts with.
        num_parameters: pairs of alpha and beta: 1, or one a channel.
        route: how its call is handed out; None where a module is exchanged, or where the site stays.
    """

    site: Site
    status: Status
    alpha0: float
    beta0: float
    scale: float
    num_parameters: int = 1
    route: Route | None = None

    def to_json(self, arm: str = "arelu") -> dict[str, Any]:
        """One entry of surgery.json's "sites"; what the arm's activation does not have is None."""
        replaced = self.status == "replaced" and arm in SLOPED_ARMS
        site = self.site
        return {
            "name": site.name,
            "names": list(site.names),
            "kind": site.kind,
            "call": site.call,
            "calls": site.calls,
            "operator": site.operator,
            "role": site.role,
            "preceding": site.preceding,
            "shape": list(site.shape),
            "channel_dim": site.channel_dim,
            "negative_share": site.negative_share,
            "leak_ratio": site.leak_ratio,
            "inplace": site.inplace,
            "status": self.status,
            "alpha0": self.alpha0 if replaced else None,
            "beta0": self.beta0 if replaced else None,
            "scale": self.scale if replaced and arm in ("arelu", "arelu-frozen") else None,
            "cap": site.cap,
            "num_parameters": self.num_parameters if replaced and arm != "leaky" else None,
            "route": asdict(self.route) if self.route else None,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PlannedSite:
        """Read a replaced site's entry back.

        Raises:
            SurgeryError: it lacks what is needed to replace the site.
        """
        try:
            fields = (
                "name",
                "kind",
                "operator",
                "cap",
                "inplace",
                "role",
                "preceding",
                "channel_dim",
                "negative_share",
                "leak_ratio",
            )
            site = Site(
                **{key: record[key] for key in fields},
                names=tuple(record["names"]),
                shape=tuple(record["shape"]),
                call=record["call"],
                calls=record["calls"],
                owner=record["route"]["owner"] if record["route"] else None,
            )
            # What the arm's activation does not have was not recorded, and is not looked at.
            alpha0, beta0, scale = (1.0 if record[key] is None else record[key] for key in ("alpha0", "beta0", "scale"))
            return cls(
                site,
                record["status"],
                alpha0,
                beta0,
                scale,
                record["num_parameters"] or 1,
                Route(**record["route"]) if record["route"] else None,
            )
        except (KeyError, TypeError) as error:
            raise SurgeryError(f"no record of a site: {type(error).__name__} {error}") from None


@dataclass(frozen=True)
class SurgeryPlan:
    """What becomes of each site, in the order in which the forward pass meets them."""

    init: str
    sites: list[PlannedSite]

    @property
    def replaced(self) -> list[PlannedSite]:
        return [s for s in self.sites if s.status == "replaced"]

    @property
    def left(self) -> list[PlannedSite]:
        """The sites that run and stay ReLUs."""
        return [s for s in self.sites if s.status != "replaced" and s.site.runs]

    def keeping(self) -> SurgeryPlan:
        """The plan in which the sites that this one replaces stay as they are."""
        kept = [replace(s, status="kept", route=None) if s.status == "replaced" else s for s in self.sites]
        return SurgeryPlan(self.init, kept)


def make_plan(
    sites: Sequence[Site],
    *,
    init: str = "calibrated",
    alpha: float | None = None,
    beta: float | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    granularity: str = "site",
    strength: float | None = None,
) -> SurgeryPlan:
    """Decide what becomes of each site.

    Args:
        sites: as ``find_sites`` lists them.
        init: "paper" (alpha 0.9, beta 2, nothing else), "near-relu" (alpha 0.01, beta -6), or "calibrated": output
            normalised by 1 / (1 + sigmoid(beta0)) so that positives pass unchanged, and alpha0 graded by depth
            f = index / (sites - 1): 0.9 f^4, or with a ``strength`` min(0.9, strength f^2 / leak_ratio); never below
            0.01, which it is where the output is squared or the kernel of an attention (which counts on positive values).
        alpha: overrides the init's alpha; with calibrated, the largest.
        beta: overrides the init's beta.
        include: globs over site names; only matching sites are replaced.
        exclude: globs over site names that stay as they are.
        granularity: "site" (one alpha and beta a site, the paper's form) or "channel" (one pair a channel).
        strength: with calibrated: how large the last site's leak is beside what its ReLU lets through; sites whose leak ratio
            is unknown count as 1.

    Raises:
        SurgeryError: no site, a pattern that matches none, or nothing left to replace.
    """
    if init not in INITS:
        raise SurgeryError(f"unknown init {init!r}: {', '.join(INITS)}")
    if granularity not in GRANULARITIES:
        raise SurgeryError(f"unknown granularity {granularity!r}: {', '.join(GRANULARITIES)}")
    if not sites:
        raise SurgeryError("there is no site to plan for")
    if alpha is not None and not ALPHA_MIN <= alpha <= ALPHA_MAX:
        raise SurgeryError(f"alpha must lie in [{ALPHA_MIN}, {ALPHA_MAX}], outside which it has no gradient: {alpha}")
    if beta is not None and not abs(beta) <= 20:
        raise SurgeryError(f"beta must lie in [-20, 20], beyond which its sigmoid has no gradient: {beta}")
    include, exclude = ([p] if isinstance(p, str) else list(p or ()) for p in (include, exclude))
    for option, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            _require_match(option, pattern, sites)
    last = sum(site.runs for site in sites) - 1
    planned: list[PlannedSite] = []
    starts: dict[str, float] = {}
    for index, site in enumerate(sites):
        alpha0, beta0, scale = _start(init, site, index / last if last > 0 else 1.0, alpha, beta, strength)
        pairs = site.channels if granularity == "channel" and site.runs else 1
        # Calls that share one replacement have its start, which is the first call's.
        alpha0 = starts.setdefault(site.name, alpha0)
        planned.append(PlannedSite(site, _status(site, include, exclude), alpha0, beta0, scale, pairs))
    _require_one_width(planned)
    plan = SurgeryPlan(init, _with_routes(planned))
    if not plan.replaced:
        raise SurgeryError("the patterns leave no site to replace: loosen --include or --exclude")
    return plan


def _require_one_width(planned: Sequence[PlannedSite]) -> None:
    widths: dict[str, int] = {}
    for p in planned:
        if widths.setdefault(p.site.name, p.num_parameters) != p.num_parameters:
            raise SurgeryError(f"{p.site.name} runs on maps of several widths: a pair a channel cannot be shared by its calls")


def _status(site: Site, include: Sequence[str], exclude: Sequence[str]) -> Status:
    if not site.runs:
        return "not run"
    if site.role == "gate":
        return "gate"
    if _matches(site, exclude):
        return "excluded"
    if include and not _matches(site, include):
        return "unmatched"
    return "replaced"


def _start(
    init: str, site: Site, depth: float, alpha: float | None, beta: float | None, strength: float | None
) -> tuple[float, float, float]:
    """(alpha0, beta0, scale) of a site at relative depth 0..1."""
    if init == "near-relu":
        return (0.01 if alpha is None else alpha, -6.0 if beta is None else beta, 1.0)
    top = _ALPHA_TOP if alpha is None else alpha
    beta0 = 2.0 if beta is None else beta
    if init == "paper":
        return top, beta0, 1.0
    if site.role in ("squared", "kernel"):
        graded = 0.0
    elif strength is None:
        graded = top * depth**_GRADING_POWER
    else:
        graded = min(top, strength * depth**_MEASURED_POWER / (site.leak_ratio or 1.0))
    return max(ALPHA_MIN, graded), beta0, 1 / (1 + 1 / (1 + math.exp(-beta0)))


def _with_routes(planned: Sequence[PlannedSite]) -> list[PlannedSite]:
    """Give each routed site its position among the ReLU calls that its owner will see.

    An owner sees every call within its forward that nobody further in has taken: its own sites, and whatever stays a ReLU
    (excluded sites and gates, in itself or in modules that it calls).
    """
    owners = {p.site.owner for p in planned if p.status == "replaced" and p.site.owner is not None}
    seen: dict[str, list[int | None]] = {owner: [] for owner in owners}
    for index, p in enumerate(planned):
        if p.status != "replaced":
            for owner in owners.intersection(p.site.within):
                seen[owner].append(None)
        elif p.site.owner is not None:
            seen[p.site.owner].append(index)
    routed = list(planned)
    for owner, calls in seen.items():
        for position, at in enumerate(calls):
            if at is not None:
                routed[at] = replace(routed[at], route=Route(owner, position, len(calls)))
    return routed


def matching_sites(option: str, patterns: Sequence[str], sites: Sequence[Site]) -> list[int]:
    """Numbers of those of ``sites`` that run and have a name which one of the globs matches.

    Args:
        option: that the patterns were given to, for the message.

    Raises:
        SurgeryError: a pattern matches none.
    """
    running = [site for site in sites if site.runs]
    for pattern in patterns:
        _require_match(option, pattern, running)
    return [number for number, site in enumerate(sites) if site.runs and _matches(site, patterns)]


def _matches(site: Site, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in site.names for pattern in patterns)


def _require_match(option: str, pattern: str, sites: Sequence[Site]) -> None:
    if any(_matches(site, [pattern]) for site in sites):
        return
    # What the pattern says literally may be meant for a whole stage: its parts are candidates as well.
    parts = {".".join(name.split(".")[:n]) for site in sites for name in site.names for n in range(1, name.count(".") + 2)}
    near = difflib.get_close_matches(pattern.strip("*."), sorted(parts), n=3, cutoff=0.4)
    hint = f"near ones: {', '.join(near)}" if near else f"the first site is {sites[0].name}"
    raise SurgeryError(f"{option} {pattern!r} matches no site; {hint}")
