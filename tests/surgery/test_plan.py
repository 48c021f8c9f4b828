"""Finding sites and planning what becomes of them; the model stays as it was."""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_tl.errors import SurgeryError
from arelu_tl.surgery import Site, find_sites, make_plan


class Backwards(nn.Module):
    """Registers its activations in the reverse of the order in which it runs them; one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.ReLU()
        self.third = nn.ReLU()
        self.second = nn.ReLU6(inplace=True)
        self.first = nn.ReLU()
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.drop(self.second(self.norm(self.first(x)))))


class Shared(nn.Module):
    """One ReLU under two names, called three times, beside a whole block under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.stage = nn.Sequential(nn.Linear(2, 2), self.relu)
        self.block = nn.Sequential(nn.Linear(2, 2), nn.ReLU6())
        self.again = self.block

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.again(self.relu(self.stage(x))))


def chain(count: int) -> list[Site]:
    return [Site(f"layer{i}.act", (f"layer{i}.act",), "module", "relu", False) for i in range(count)]


# Finding ----------------------------------------------------------------------------------------------------------------


def test_every_relu_and_relu6_is_found_and_nothing_else() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.GELU(), nn.Sequential(nn.ReLU6(), nn.LeakyReLU()), nn.Hardtanh(0, 6))
    sites = find_sites(model, torch.zeros(1, 2))
    assert [(s.name, s.operator, s.inplace, s.cap) for s in sites] == [
        ("0", "relu", True, None),
        ("2.0", "relu6", False, 6.0),
    ]


def test_sites_come_in_the_order_of_the_forward_pass() -> None:
    sites = find_sites(Backwards(), torch.zeros(4, 2))
    assert [(s.name, s.calls) for s in sites] == [("first", 1), ("second", 1), ("third", 1), ("unused", 0)]


def test_without_an_example_sites_come_as_registered_and_calls_are_unknown() -> None:
    sites = find_sites(Backwards())
    assert [(s.name, s.calls) for s in sites] == [("unused", None), ("third", None), ("second", None), ("first", None)]


def test_a_module_under_several_names_is_one_site_with_all_of_them() -> None:
    sites = find_sites(Shared(), torch.zeros(1, 2))
    assert [(s.name, s.names) for s in sites] == [
        ("relu", ("relu", "stage.1")),
        ("block.1", ("block.1", "again.1")),
    ]


def test_a_module_called_several_times_tells_how_often() -> None:
    assert [s.calls for s in find_sites(Shared(), torch.zeros(1, 2))] == [3, 1]


def test_a_timm_model_needs_no_example() -> None:
    model = timm.create_model("test_resnet", pretrained=False).double()
    sites = find_sites(model)
    assert len(sites) == 12
    assert all(site.calls == 1 for site in sites)


def test_a_model_without_relu_has_no_sites() -> None:
    assert find_sites(timm.create_model("test_vit", pretrained=False)) == []


@pytest.mark.parametrize("example", [torch.randn(4, 2), torch.randn(4, 3)], ids=["forward succeeds", "forward fails"])
def test_finding_leaves_modes_statistics_hooks_and_gradients(example: Tensor) -> None:
    model = Backwards().train()
    model.norm.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        find_sites(model, example)
    except SurgeryError:
        assert example.shape == (4, 3)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_finding_does_not_draw_random_numbers() -> None:
    model = Backwards().train()
    before = torch.get_rng_state()
    find_sites(model, torch.zeros(4, 2))
    assert torch.equal(torch.get_rng_state(), before)


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
    assert [alpha for alpha, _, _ in starts(3, alpha=0.5)] == pytest.approx([0.01, 0.5 * 0.5**4, 0.5])


def test_excluded_sites_do_not_change_the_grading_of_the_others() -> None:
    whole, part = make_plan(chain(5)), make_plan(chain(5), exclude=["layer0.*", "layer4.*"])
    assert [p.alpha0 for p in part.replaced] == [p.alpha0 for p in whole.sites[1:4]]


def test_an_unknown_init_gets_the_known_ones() -> None:
    with pytest.raises(SurgeryError, match=r"'clever'.*calibrated, paper, near-relu"):
        make_plan(chain(2), init="clever")


# Patterns ---------------------------------------------------------------------------------------------------------------


def statuses(**patterns: list[str]) -> list[str]:
    return [p.status for p in make_plan(chain(4), **patterns).sites]  # type: ignore[arg-type]


def test_without_patterns_everything_is_replaced() -> None:
    assert statuses() == ["replaced"] * 4


def test_include_leaves_the_rest_unmatched() -> None:
    assert statuses(include=["layer1.*", "layer3.act"]) == ["unmatched", "replaced", "unmatched", "replaced"]


def test_exclude_keeps_sites_as_they_are() -> None:
    assert statuses(exclude=["layer[01].*"]) == ["excluded", "excluded", "replaced", "replaced"]


def test_exclude_wins_over_include() -> None:
    assert statuses(include=["layer[012].*"], exclude=["*1.act"]) == ["replaced", "excluded", "replaced", "unmatched"]


def test_a_pattern_may_match_any_name_of_a_site() -> None:
    plan = make_plan(find_sites(Shared(), torch.zeros(1, 2)), include=["stage.*"])
    assert [p.site.name for p in plan.replaced] == ["relu"]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_gets_near_names(option: str) -> None:
    with pytest.raises(SurgeryError, match=rf"--{option} 'layr2.act' matches no site; near ones: .*layer2\.act"):
        make_plan(chain(4), **{option: ["layer1.*", "layr2.act"]})  # type: ignore[arg-type]


def test_patterns_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(SurgeryError, match="no site to replace"):
        make_plan(chain(4), exclude=["*"])


@pytest.mark.parametrize("options", [{}, {"include": ["a.*"]}], ids=["no pattern", "a pattern"])
def test_a_plan_for_no_sites_is_an_error(options: dict) -> None:
    with pytest.raises(SurgeryError):
        make_plan([], **options)


# Records ----------------------------------------------------------------------------------------------------------------


def test_a_planned_site_becomes_json_with_its_start() -> None:
    entry = make_plan(find_sites(Backwards(), torch.zeros(4, 2)), init="paper").sites[1].to_json()
    assert json.loads(json.dumps(entry)) == {
        "name": "second",
        "names": ["second"],
        "kind": "module",
        "operator": "relu6",
        "calls": 1,
        "status": "replaced",
        "alpha0": 0.9,
        "beta0": 2.0,
        "scale": 1.0,
        "cap": 6.0,
    }


def test_a_site_that_is_kept_has_no_start_in_json() -> None:
    entry = make_plan(chain(2), exclude=["layer0.*"]).sites[0].to_json()
    assert (entry["status"], entry["alpha0"], entry["beta0"], entry["scale"]) == ("excluded", None, None, None)
