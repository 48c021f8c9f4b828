"""Decide what happens to each site, before anything changes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from arelu_tl.activation.catalogue import CHANNEL_ARMS, SLOPED_ARMS
from arelu_tl.activation.functional import ALPHA_MAX, ALPHA_MIN
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.sites import Site

INITS = ("calibrated", "paper", "near-relu")
GRANULARITIES = ("site", "channel")
# replaced; excluded (by a pattern); unmatched (by every --include); gate (kept: it bounds a gate to
# 0..1 and is not an activation); not run (a module that the forward pass does not reach); kept (the
# arm keeps every ReLU).
Status = Literal["replaced", "excluded", "unmatched", "gate", "not run", "kept"]

# The alpha0 of "calibrated" grows with depth: a leak in an early site shifts the input of every
# later layer, whereas a leak in a late one passes the gradient to where the features are relearned.
# Without a measurement it grows with the fourth power of depth. With one it is the second power of
# depth over the site's own leak ratio, which converges faster at the same drift (README).
_GRADING_POWER = 4
_MEASURED_POWER = 2
_ALPHA_TOP = 0.9


@dataclass(frozen=True)
class Route:
    """A site's place in its owner's forward pass: ReLU call ``position`` (from 0) of ``length``."""

    owner: str
    position: int
    length: int


@dataclass(frozen=True)
class PlannedSite:
    """A site and what happens to it.

    Attributes:
        site: the site.
        status: what happens to it.
        alpha0, beta0, scale: initial values of its AReLU.
        num_parameters: pairs of alpha and beta: 1, or one per channel.
        route: how its owner hands out its call; None where a module is exchanged or the site stays.
    """

    site: Site
    status: Status
    alpha0: float
    beta0: float
    scale: float
    num_parameters: int = 1
    route: Route | None = None

    def to_json(self, arm: str = "arelu") -> dict[str, Any]:
        """Return one entry of "sites" in surgery.json.

        Values that the arm's activation does not have are None.
        """
        replaced = self.status == "replaced"
        sloped = replaced and arm in SLOPED_ARMS
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
            "alpha0": self.alpha0 if sloped else None,
            "beta0": self.beta0 if sloped else None,
            "scale": self.scale if replaced and arm in ("arelu", "arelu-frozen") else None,
            "cap": site.cap,
            "num_parameters": self.num_parameters if replaced and arm in CHANNEL_ARMS else None,
            "route": asdict(self.route) if self.route else None,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PlannedSite:
        """Read the entry of a replaced site.

        Raises:
            SurgeryError: the entry lacks what is needed to replace the site.
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
            # Values that the arm's activation does not have were not recorded, and are not used.
            alpha0, beta0, scale = (
                1.0 if record[key] is None else record[key] for key in ("alpha0", "beta0", "scale")
            )
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
    """What happens to each site, in the order of the forward pass."""

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
        """Return the plan in which the sites that this one replaces are kept."""
        kept = [
            replace(s, status="kept", route=None) if s.status == "replaced" else s
            for s in self.sites
        ]
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
    """Decide what happens to each site.

    Args:
        sites: as ``find_sites`` lists them.
        init: "paper" (alpha 0.9, beta 2, nothing else), "near-relu" (alpha 0.01, beta -6), or
            "calibrated". Calibrated scales the output by 1 / (1 + sigmoid(beta0)), so that positive
            inputs pass unchanged, and grades alpha0 by depth f = index / (sites - 1): 0.9 f^4, or
            min(0.9, strength f^2 / leak_ratio) if ``strength`` is given. It is never below 0.01,
            and exactly 0.01 where the output is squared or is the kernel of an attention, which
            relies on positive values.
        alpha: overrides the init's alpha; for calibrated, the largest one.
        beta: overrides the init's beta.
        include: globs over site names; only matching sites are replaced.
        exclude: globs over site names; matching sites stay as they are.
        granularity: "site" (one alpha and beta per site, as in the paper) or "channel" (one pair
            per channel).
        strength: for calibrated: size of the last site's leak relative to what its ReLU lets
            through. An unknown leak ratio counts as 1.

    Raises:
        SurgeryError: there is no site, a pattern matches none, or nothing is left to replace.
    """
    if init not in INITS:
        raise SurgeryError(f"unknown init {init!r}: {', '.join(INITS)}")
    if granularity not in GRANULARITIES:
        raise SurgeryError(f"unknown granularity {granularity!r}: {', '.join(GRANULARITIES)}")
    if not sites:
        raise SurgeryError("there is no site to plan for")
    if alpha is not None and not ALPHA_MIN <= alpha <= ALPHA_MAX:
        raise SurgeryError(
            f"alpha must lie in [{ALPHA_MIN}, {ALPHA_MAX}], outside which it has no gradient: "
            f"{alpha}"
        )
    if beta is not None and not abs(beta) <= 20:
        raise SurgeryError(
            f"beta must lie in [-20, 20], beyond which its sigmoid has no gradient: {beta}"
        )
    include, exclude = ([p] if isinstance(p, str) else list(p or ()) for p in (include, exclude))
    for option, patterns in (("`include`", include), ("`exclude`", exclude)):
        for pattern in patterns:
            _require_match(option, pattern, sites)
    last = sum(site.runs for site in sites) - 1
    planned: list[PlannedSite] = []
    starts: dict[str, float] = {}
    for index, site in enumerate(sites):
        alpha0, beta0, scale = _start(
            init, site, index / last if last > 0 else 1.0, alpha, beta, strength
        )
        pairs = site.channels if granularity == "channel" and site.runs else 1
        # Calls that share one replacement share the first call's initial value.
        alpha0 = starts.setdefault(site.name, alpha0)
        planned.append(
            PlannedSite(site, _status(site, include, exclude), alpha0, beta0, scale, pairs)
        )
    _require_one_width(planned)
    plan = SurgeryPlan(init, _with_routes(planned))
    if not plan.replaced:
        raise SurgeryError("the patterns leave no site to replace: loosen `include` or `exclude`")
    return plan


def _require_one_width(planned: Sequence[PlannedSite]) -> None:
    widths: dict[str, int] = {}
    for p in planned:
        if widths.setdefault(p.site.name, p.num_parameters) != p.num_parameters:
            raise SurgeryError(
                f"{p.site.name} runs on maps of several widths: a pair a channel cannot be shared "
                "by its calls"
            )


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
    init: str,
    site: Site,
    depth: float,
    alpha: float | None,
    beta: float | None,
    strength: float | None,
) -> tuple[float, float, float]:
    """Return (alpha0, beta0, scale) for a site at relative depth 0..1."""
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

    An owner sees every call within its forward pass that no inner owner has taken: its own sites,
    and every call that stays a ReLU (excluded sites and gates, in itself or in modules that it
    calls).
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
    """Return the indices of the ``sites`` that run and have a name matching one of the globs.

    Args:
        option: the option that the patterns were given to, for the error message.
        patterns: globs over site names.
        sites: the sites to search.

    Raises:
        SurgeryError: a pattern matches no site.
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
    # The literal part of a pattern may mean a whole stage: prefixes of names are candidates too.
    parts = {
        ".".join(name.split(".")[:n])
        for site in sites
        for name in site.names
        for n in range(1, name.count(".") + 2)
    }
    near = difflib.get_close_matches(pattern.strip("*."), sorted(parts), n=3, cutoff=0.4)
    hint = f"near ones: {', '.join(near)}" if near else f"the first site is {sites[0].name}"
    raise SurgeryError(f"{option} {pattern!r} matches no site; {hint}")
