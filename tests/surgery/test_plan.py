"""Deciding what becomes of each site: its start, its fate under patterns, its place in its owner; and the record of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.plan import PlannedSite, Route, make_plan, matching_sites
from arelu_tl.surgery.sites import Site, find_sites


class Net(nn.Module):
    """A ReLU module of its own, one called twice, functional calls, a hard sigmoid's gate, and a module that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.capped = nn.ReLU6(inplace=True)
        self.shared = nn.ReLU()
        self.unused = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.capped(self.lin(x)))
        x = F.relu6(x + 3) * F.relu(self.lin(x))
        return self.shared(x - 1)


def chain(count: int, **features: object) -> list[Site]:
    names = [f"layer{i}.act" for i in range(count)]
    return [
        Site(n, (n,), "module", "relu", None, False, shape=(1, 8, 4, 4), **features) for n in names
    ]  # type: ignore[arg-type]


def net_sites() -> list[Site]:
    return find_sites(Net(), torch.zeros(1, 2))


# Starts -----------------------------------------------------------------------------------------------------------------


def starts(count: int, **options: object) -> list[tuple[float, float, float]]:
    return [(p.alpha0, p.beta0, p.scale) for p in make_plan(chain(count), **options).sites]  # type: ignore[arg-type]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_paper_starts_every_site_at_the_papers_values() -> None:
    assert starts(3, init="paper") == [(0.9, 2.0, 1.0)] * 3


def test_near_relu_starts_every_site_as_close_to_relu_as_arelu_gets() -> None:
    assert starts(3, init="near-relu") == [(0.01, -6.0, 1.0)] * 3


def test_calibrated_is_the_default() -> None:
    assert make_plan(chain(4)) == make_plan(chain(4), init="calibrated")


def test_calibrated_grades_alpha_by_the_fourth_power_of_depth() -> None:
    wanted = [max(0.01, 0.9 * (i / 32) ** 4) for i in range(33)]
    alphas = [alpha for alpha, _, _ in starts(33)]
    assert alphas == pytest.approx(wanted)
    assert alphas[0] == 0.01
    assert alphas[-1] == pytest.approx(0.9)


@pytest.mark.parametrize("beta", [None, -1.0, 0.0, 3.0])
def test_calibrated_scale_undoes_the_amplification(beta: float | None) -> None:
    for _, beta0, scale in starts(5, beta=beta):
        assert beta0 == (2.0 if beta is None else beta)
        assert scale * (1 + sigmoid(beta0)) == pytest.approx(1.0, rel=1e-12)


def test_a_single_site_is_the_last_one() -> None:
    assert starts(1)[0][0] == pytest.approx(0.9)


@pytest.mark.parametrize("init", ["paper", "near-relu"])
def test_alpha_and_beta_override_uniform_inits(init: str) -> None:
    assert starts(2, init=init, alpha=0.3, beta=-1.0) == [(0.3, -1.0, 1.0)] * 2


def test_alpha_overrides_the_last_site_of_calibrated() -> None:
    assert [alpha for alpha, _, _ in starts(3, alpha=0.5)] == pytest.approx(
        [0.01, 0.5 * 0.5**4, 0.5]
    )


def test_excluded_sites_do_not_change_the_grading_of_the_others() -> None:
    whole, part = make_plan(chain(5)), make_plan(chain(5), exclude=["layer0.*", "layer4.*"])
    assert [p.alpha0 for p in part.replaced] == [p.alpha0 for p in whole.sites[1:4]]


def test_an_unknown_init_gets_the_known_ones() -> None:
    with pytest.raises(SurgeryError, match=r"'clever'.*calibrated, paper, near-relu"):
        make_plan(chain(2), init="clever")


def test_modules_that_do_not_run_do_not_change_the_grading_of_the_others() -> None:
    idle = [Site("idle", ("idle",), "module", "relu", None, False, call=0, calls=0)]
    assert [p.alpha0 for p in make_plan(chain(4) + idle).replaced] == [
        p.alpha0 for p in make_plan(chain(4)).replaced
    ]


def test_a_squared_site_starts_with_the_smallest_leak_under_calibrated_alone() -> None:
    squared = chain(3, role="squared")
    assert [p.alpha0 for p in make_plan(squared).sites] == [0.01] * 3
    assert [p.alpha0 for p in make_plan(squared, init="paper").sites] == [0.9] * 3


@given(
    count=st.integers(1, 60),
    alpha=st.floats(0.01, 0.99),
    beta=st.floats(-20, 20),
    strength=st.none() | st.floats(0, 2),
)
def test_calibrated_grades_upwards_within_alphas_range_and_never_above_what_was_asked(
    count: int, alpha: float, beta: float, strength: float | None
) -> None:
    plan = make_plan(chain(count), alpha=alpha, beta=beta, strength=strength)
    alphas = [p.alpha0 for p in plan.sites]
    assert all(a <= b for a, b in pairwise(alphas))
    assert all(0.01 <= a <= max(alpha, 0.01) for a in alphas)
    assert alphas[-1] == pytest.approx(
        max(0.01, alpha if strength is None else min(alpha, strength))
    )
    assert all(p.scale * (1 + sigmoid(beta)) == pytest.approx(1) for p in plan.sites)


def test_strength_grades_by_the_square_of_depth_over_the_leak_ratio_up_to_the_largest_alpha() -> (
    None
):
    sites = [
        replace(site, leak_ratio=ratio)
        for site, ratio in zip(chain(5), (0.5, 0.5, None, 2.0, 0.1), strict=True)
    ]
    wanted = [0.01, 0.2 * 0.25**2 / 0.5, 0.2 * 0.5**2, 0.2 * 0.75**2 / 2, 0.9]
    assert [p.alpha0 for p in make_plan(sites, strength=0.2).sites] == pytest.approx(wanted)


@pytest.mark.parametrize("init", ["paper", "near-relu"])
def test_strength_means_nothing_to_uniform_inits(init: str) -> None:
    assert starts(3, init=init, strength=0.1) == starts(3, init=init)


def test_strength_nought_leaves_the_smallest_leak_everywhere() -> None:
    assert {p.alpha0 for p in make_plan(chain(9), strength=0.0).sites} == {0.01}


def test_a_pair_for_each_channel_takes_their_number_from_the_site() -> None:
    last = Site(
        "last", ("last",), "module", "relu", None, False, shape=(1, 4, 4, 32), channel_dim=-1
    )
    sites = [*chain(1), last]
    assert [p.num_parameters for p in make_plan(sites, granularity="channel").sites] == [8, 32]
    assert [p.num_parameters for p in make_plan(sites).sites] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "pixel"}, "'pixel': site, channel"),
        ({"alpha": 0.0}, r"alpha must lie in \[0.01, 0.99\].*: 0.0"),
        ({"alpha": math.nan}, "alpha"),
        ({"beta": 21.0}, r"beta must lie in \[-20, 20\].*: 21"),
        ({"beta": math.nan}, "beta"),
    ],
)
def test_a_start_that_cannot_learn_is_refused(options: dict, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        make_plan(chain(2), **options)


# Patterns ---------------------------------------------------------------------------------------------------------------


def statuses(**patterns: list[str]) -> list[str]:
    return [p.status for p in make_plan(chain(4), **patterns).sites]  # type: ignore[arg-type]


def test_without_patterns_everything_is_replaced() -> None:
    assert statuses() == ["replaced"] * 4


def test_include_leaves_the_rest_unmatched() -> None:
    assert statuses(include=["layer1.*", "layer3.act"]) == [
        "unmatched",
        "replaced",
        "unmatched",
        "replaced",
    ]


def test_exclude_keeps_sites_as_they_are() -> None:
    assert statuses(exclude=["layer[01].*"]) == ["excluded", "excluded", "replaced", "replaced"]


def test_exclude_wins_over_include() -> None:
    assert statuses(include=["layer[012].*"], exclude=["*1.act"]) == [
        "replaced",
        "excluded",
        "replaced",
        "unmatched",
    ]


def test_a_pattern_may_match_any_name_of_a_site() -> None:
    site = Site("relu", ("relu", "stage.1"), "module", "relu", None, False)
    assert [p.status for p in make_plan([site, *chain(1)], include=["stage.*"]).sites] == [
        "replaced",
        "unmatched",
    ]


def test_a_shared_modules_name_matches_all_its_calls_and_a_sites_own_name_one() -> None:
    sites = net_sites()
    shared = [s for s in sites if s.kind == "shared"]
    assert [p.site for p in make_plan(sites, include=["shared"]).replaced] == shared
    assert [p.site for p in make_plan(sites, include=[shared[1].name]).replaced] == shared[1:]


def test_a_gate_stays_whatever_the_patterns_say() -> None:
    plan = make_plan(net_sites(), include=["*"])
    assert [p.status for p in plan.sites] == [
        "replaced",
        "replaced",
        "gate",
        "replaced",
        "replaced",
        "not run",
    ]
    assert [p.site.role for p in plan.left] == ["gate"]


def test_a_module_that_does_not_run_is_neither_replaced_nor_left() -> None:
    plan = make_plan(net_sites(), exclude=["unused"])
    assert plan.sites[-1].status == "not run"
    assert "unused" not in [p.site.name for p in [*plan.replaced, *plan.left]]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_gets_near_names(option: str) -> None:
    with pytest.raises(
        SurgeryError, match=rf"`{option}` 'layr2.act' matches no site; near ones: .*layer2\.act"
    ):
        make_plan(chain(4), **{option: ["layer1.*", "layr2.act"]})  # type: ignore[arg-type]


def test_patterns_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(SurgeryError, match="no site to replace"):
        make_plan(chain(4), exclude=["*"])


@pytest.mark.parametrize("options", [{}, {"include": ["a.*"]}], ids=["no pattern", "a pattern"])
def test_a_plan_for_no_sites_is_an_error(options: dict) -> None:
    with pytest.raises(SurgeryError):
        make_plan([], **options)


# Routes -----------------------------------------------------------------------------------------------------------------


def positions(**patterns: list[str]) -> dict[str, Route | None]:
    return {p.site.name: p.route for p in make_plan(net_sites(), **patterns).replaced}  # type: ignore[arg-type]


def test_routed_sites_are_numbered_as_their_owner_meets_them_past_what_stays_a_relu() -> None:
    assert positions() == {
        "capped": None,
        "relu_sites.0": Route("", 0, 4),
        "relu_sites.2": Route("", 2, 4),
        "relu_sites.3": Route("", 3, 4),
    }


def test_an_excluded_module_within_an_owner_is_a_call_that_it_passes_through() -> None:
    assert positions(exclude=["capped", "relu_sites.2"]) == {
        "relu_sites.0": Route("", 1, 5),
        "relu_sites.3": Route("", 4, 5),
    }


def test_where_all_of_an_owners_sites_stay_nothing_is_routed() -> None:
    assert positions(include=["capped"]) == {"capped": None}


# Records ----------------------------------------------------------------------------------------------------------------


def test_a_planned_site_becomes_json_with_its_start() -> None:
    entry = make_plan(net_sites(), init="paper").sites[0].to_json()
    assert json.loads(json.dumps(entry, allow_nan=False)) == {
        "name": "capped",
        "names": ["capped"],
        "kind": "module",
        "call": 1,
        "calls": 1,
        "operator": "relu6",
        "role": "activation",
        "preceding": "lin (linear)",
        "shape": [1, 2],
        "channel_dim": 1,
        "negative_share": entry["negative_share"],
        "leak_ratio": entry["leak_ratio"],
        "inplace": True,
        "status": "replaced",
        "alpha0": 0.9,
        "beta0": 2.0,
        "scale": 1.0,
        "cap": 6.0,
        "num_parameters": 1,
        "route": None,
    }


def test_a_site_that_is_kept_has_no_start_in_json() -> None:
    entry = make_plan(chain(2), exclude=["layer0.*"]).sites[0].to_json()
    assert (entry["status"], entry["num_parameters"], entry["route"]) == ("excluded", None, None)
    assert (entry["alpha0"], entry["beta0"], entry["scale"]) == (None, None, None)


@pytest.mark.parametrize("granularity", ["site", "channel"])
def test_a_replaced_site_is_read_back_from_json_as_it_was(granularity: str) -> None:
    for planned in make_plan(net_sites(), granularity=granularity, exclude=["capped"]).replaced:
        record = json.loads(json.dumps(planned.to_json(), allow_nan=False))
        assert PlannedSite.from_json(record).to_json() == planned.to_json()


@pytest.mark.parametrize("key", ["name", "cap", "route", "num_parameters", "shape"])
def test_a_record_that_lacks_something_is_refused_with_its_name(key: str) -> None:
    record = make_plan(net_sites()).replaced[1].to_json()
    del record[key]
    with pytest.raises(SurgeryError, match=f"no record of a site: KeyError '{key}'"):
        PlannedSite.from_json(record)


def test_patterns_choose_sites_that_run_by_any_of_their_names() -> None:
    sites = find_sites(Net(), torch.zeros(1, 2))
    running = [number for number, site in enumerate(sites) if site.runs]
    assert matching_sites("`site`", ["*"], sites) == running
    shared = [number for number in running if "shared" in sites[number].names]
    assert len(shared) == 2
    expected = [number for number in running if number in shared or sites[number].name == "capped"]
    assert matching_sites("`site`", ["shared", "capped"], sites) == expected
    with pytest.raises(SurgeryError, match="`site` 'unused' matches no site"):
        matching_sites("`site`", ["unused"], sites)
