"""Prove that surgery did what its plan says: count the ReLUs that the model still executes."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.plan import PlannedSite, SurgeryPlan
from arelu_tl.surgery.sites import examine


def verify(model: nn.Module, plan: SurgeryPlan, example_input: Tensor | None = None) -> int:
    """Run the operated model under the dispatcher's tap and hold what is left of its ReLUs against the plan.

    Args:
        model: after surgery.
        plan: what was done to it.
        example_input: as ``find_sites`` takes it.

    Returns:
        The number of ReLUs that still run, all of them meant to.

    Raises:
        SurgeryError: the count is another one than the plan's; the leftovers are named.
    """
    names = {module: name for name, module in model.named_modules()}
    left = Counter(e.module or (e.stack[-1] if e.stack else model) for e in examine(model, example_input).executions)
    meant = Counter(model.get_submodule(_place(planned)) for planned in plan.left)
    if left == meant:
        return left.total()
    surplus = [names.get(m) or type(model).__name__ for m in left - meant]
    missing = [names.get(m) or type(model).__name__ for m in meant - left]
    told = [f"left over in {', '.join(surplus)}"] if surplus else []
    told += [f"gone from {', '.join(missing)}"] if missing else []
    raise SurgeryError(
        f"after surgery {left.total()} ReLUs run where {meant.total()} were meant to stay: {'; '.join(told)}; "
        "the model was put back as it was"
    )


def _place(planned: PlannedSite) -> str:
    """The module in whose forward a site that stays runs: the ReLU module, or the one around a functional call."""
    site = planned.site
    if site.kind == "functional":
        return site.within[-1] if site.within else ""
    return site.names[-1]
