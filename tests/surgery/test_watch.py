"""What a watcher sees of the sites is what autograd computes, and the model does not notice that it is watched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.sites import Site, find_sites
from arelu_tl.surgery.watch import watch_sites

CAPPED = 6.0


class Net(nn.Module):
    """Every way to run a ReLU: a module, in place, shared by calls, a function, capped, and on what another layer reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(5, 5) for _ in range(3))
        self.act, self.shared, self.capped = (
            nn.ReLU(inplace=True),
            nn.ReLU(),
            nn.ReLU6(inplace=True),
        )
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        x = self.shared(self.b(x)) + 1
        before = self.c(x)
        x = F.relu(before) + before.tanh()
        x = self.shared(x)
        return self.fc(self.capped(x * 5))


def converted(model: nn.Module, example: Tensor, **settings: Any) -> list[Site]:
    return [planned.site for planned in convert(model, example_input=example, **settings).sites]


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    y = model(x.clone())
    y.square().sum().backward()
    return y.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def watched(
    model: nn.Module, sites: list[Site], x: Tensor
) -> tuple[Any, dict[str, dict[int, Tensor]]]:
    seen: dict[str, dict[int, Tensor]] = {key: {} for key in ("x", "y", "dx", "dy")}

    def entered(number: int, given: Tensor) -> None:
        seen["x"][number] = given.detach().clone()
        given.register_hook(lambda grad: seen["dx"].__setitem__(number, grad.clone()))

    def left(number: int, output: Tensor) -> None:
        seen["y"][number] = output.detach().clone()
        output.register_hook(lambda grad: seen["dy"].__setitem__(number, grad.clone()))

    with watch_sites(model, sites, entered, left):
        told = gradients(model, x)
    return told, seen


@pytest.fixture
def example() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(64, 5)


@pytest.mark.parametrize("arm", ["relu", "arelu", "prelu", "leaky", "gelu"])
def test_the_model_and_its_gradients_are_the_same_watched(arm: str, example: Tensor) -> None:
    torch.manual_seed(1)
    model = Net()
    sites = find_sites(model, example) if arm == "relu" else converted(model, example, arm=arm)
    expected = gradients(copy.deepcopy(model), example)
    (output, grads), seen = watched(model, sites, example)
    torch.testing.assert_close(output, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(grads, expected[1])
    assert [len(each) for each in seen.values()] == [5, 5, 5, 5]
    torch.testing.assert_close(gradients(model, example)[0], expected[0], rtol=0, atol=0)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_the_gradient_at_a_relu_is_the_one_behind_it_where_it_lets_pass_and_exactly_nothing_elsewhere(
    example: Tensor,
) -> None:
    model = Net()
    sites = find_sites(model, example)
    _, seen = watched(model, sites, example)
    for number, site in enumerate(sites):
        x = seen["x"][number]
        passes = (x > 0) if site.cap is None else (x > 0) & (x < CAPPED)
        assert bool(passes.any())
        assert not bool(passes.all())
        torch.testing.assert_close(seen["dx"][number], seen["dy"][number] * passes, rtol=0, atol=0)


def test_the_gradient_at_an_arelu_is_amplified_by_its_gain_and_alpha_is_left_where_relu_has_nothing(
    example: Tensor,
) -> None:
    model = Net()
    sites = converted(model, example, init="paper", alpha=0.7, beta=1.0)
    assert len(sites) == 5
    _, seen = watched(model, sites, example)
    gain = 1 + torch.tensor(1.0).sigmoid()
    for number, site in enumerate(sites):
        slope = torch.where(seen["x"][number] >= 0, gain, 0.7)
        if site.cap is not None:
            slope = slope * (seen["y"][number] < CAPPED)
        torch.testing.assert_close(seen["dx"][number], seen["dy"][number] * slope)


def test_sites_that_stay_relus_are_seen_in_their_place(example: Tensor) -> None:
    model = Net()
    report = convert(model, exclude=["act", "relu_sites.1"], example_input=example)
    _, seen = watched(model, [planned.site for planned in report.sites], example)
    kept = [number for number, planned in enumerate(report.sites) if planned.status == "excluded"]
    assert len(kept) == 2
    for number in range(5):
        reaches_0 = bool((seen["dx"][number] == 0).any() and (seen["y"][number] >= 0).all())
        assert reaches_0 == (number in kept), report.sites[number].site.name


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("arm", ["relu", "arelu"])
def test_timm_models_are_the_same_watched(name: str, arm: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        name, num_classes=4, **({"act_layer": "relu"} if name != "test_resnet" else {})
    ).train()
    # In float64, where the order of sums, which a layout of maps decides, is no matter.
    model.double()
    pictures = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    sites = find_sites(model, pictures[:1]) if arm == "relu" else converted(model, pictures[:1])
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = gradients(twin, pictures)
    torch.manual_seed(1)
    (output, grads), seen = watched(model, sites, pictures)
    torch.testing.assert_close(output, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(grads, expected[1], rtol=1e-9, atol=1e-9)
    assert len(seen["dx"]) == len(seen["dy"]) == len([site for site in sites if site.runs])


def test_inputs_that_nothing_learns_before_have_a_gradient_all_the_same(example: Tensor) -> None:
    model = nn.Sequential(
        nn.Linear(5, 5).requires_grad_(False), nn.ReLU(inplace=True), nn.Linear(5, 2)
    )
    _, seen = watched(model, find_sites(model, example), example)
    torch.testing.assert_close(seen["dx"][0], seen["dy"][0] * (seen["x"][0] > 0))


class Moody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.calls = nn.Linear(5, 5), nn.ReLU(), 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc(x)) if self.calls else self.fc(x)
        return F.relu(x - 1) if self.calls == 2 else x


@pytest.mark.parametrize(("planned", "run"), [(1, 2), (2, 1), (1, 0), (2, 0)])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_forward_pass_that_runs_other_relus_is_refused(
    planned: int, run: int, swapped: bool, example: Tensor
) -> None:
    model = Moody()
    model.calls = planned
    sites = converted(model, example) if swapped else find_sites(model, example)
    watched(model, sites, example)
    model.calls = run
    with pytest.raises(SurgeryError, match="depends on its input"):
        watched(model, sites, example)


def test_one_arelu_of_several_calls_is_each_of_its_sites_in_turn(example: Tensor) -> None:
    model = Net()
    sites = converted(model, example, share_sites=True)
    assert sum(isinstance(module, AReLU) for module in model.modules()) == 4
    _, seen = watched(model, sites, example)
    first, second = (number for number, site in enumerate(sites) if site.name == "shared")
    assert not torch.equal(seen["x"][first], seen["x"][second])
