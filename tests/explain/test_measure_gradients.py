"""Measured gradients are the mathematics' own, whatever the size of the batch and its parts, and measuring changes nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from arelu_tl.errors import NonFiniteError
from arelu_tl.explain.gradients.measure import measure_gradients
from arelu_tl.explain.gradients.report import SiteGradient
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.sites import find_sites
from arelu_tl.training.step import StepSettings

CPU = torch.device("cpu")
Batch = tuple[Tensor, Tensor]


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    return torch.randn(12, 6), torch.randint(0, 3, (12,))


def net(*, norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 20),
        nn.BatchNorm1d(20) if norm else nn.Identity(),
        nn.ReLU(inplace=True),
        nn.Linear(20, 3),
    )


def measured(
    model: nn.Module,
    batches: list[Batch],
    *,
    threshold: float = 0.01,
    arm: str = "relu",
    settings: StepSettings | None = None,
) -> tuple[list[SiteGradient], list[object]]:
    example = batches[0][0][:2]
    sites = find_sites(model, example)
    if arm != "relu":
        convert(model, arm=arm, init="paper", example_input=example)
    settings = settings or StepSettings(seed=0)
    return measure_gradients(model, sites, batches, settings, CPU, threshold=threshold)  # type: ignore[return-value]


def by_hand(model: nn.Module, batch: Batch) -> Tensor:
    """dl_i/dx of the net's site, of each picture's own loss: (B, 20)."""
    x = (model[0](batch[0])).detach().requires_grad_()  # type: ignore[index]
    F.cross_entropy(model[3](x.relu()), batch[1], reduction="sum").backward()  # type: ignore[index]
    assert x.grad is not None
    return x.grad


def test_a_sites_numbers_are_those_of_the_chain_rule(batch: Batch) -> None:
    model = net()
    grad = by_hand(copy.deepcopy(model), batch)
    (site,), weights = measured(model, [batch], threshold=0.5)
    rms = float(grad.square().mean().sqrt())
    assert site.name == "2"
    assert site.rms == pytest.approx(rms, rel=1e-5)
    assert site.norm == pytest.approx(float(grad.square().sum(1).mean().sqrt()), rel=1e-5)
    assert site.zero == pytest.approx(float((grad == 0).float().mean()))
    assert site.vanishing == pytest.approx(float((grad.abs() <= 0.5 * rms).float().mean()))
    assert 0.2 < site.zero < site.vanishing < 1
    logits = model(batch[0])
    for told in weights:
        layer = model.get_submodule(told.name)  # type: ignore[attr-defined]
        (expected,) = torch.autograd.grad(
            F.cross_entropy(logits, batch[1]), layer.weight, retain_graph=True
        )
        assert told.norm == pytest.approx(float(expected.norm()), rel=1e-5)  # type: ignore[attr-defined]
        assert told.relative == pytest.approx(
            float(expected.norm() / layer.weight.detach().norm()), rel=1e-5
        )  # type: ignore[attr-defined]
    assert [told.name for told in weights] == ["0", "3"]  # type: ignore[attr-defined]


def test_what_a_site_passes_on_is_its_slope(batch: Batch) -> None:
    ahead = (batch[0].abs() + 1, batch[1])
    model = net()
    with torch.no_grad():
        for name in ("0", "3"):
            model.get_submodule(name).weight.abs_()  # type: ignore[union-attr, operator]
    (relu,), _ = measured(copy.deepcopy(model), [ahead])
    (arelu,), _ = measured(copy.deepcopy(model), [ahead], arm="arelu")
    assert relu.gain == pytest.approx(1.0)
    assert arelu.gain == pytest.approx(1 + 1 / (1 + math.exp(-2)))
    behind = (-ahead[0], ahead[1])
    (relu,), _ = measured(copy.deepcopy(model), [behind])
    (arelu,), _ = measured(copy.deepcopy(model), [behind], arm="arelu")
    assert (relu.gain, relu.zero, relu.vanishing, relu.norm) == (0.0, 1.0, 1.0, 0.0)
    assert arelu.gain == pytest.approx(0.9)
    assert arelu.zero == 0.0


def test_neither_the_size_of_batches_nor_of_their_parts_matters(batch: Batch) -> None:
    (whole,), _ = measured(net(), [batch])
    halves = [(batch[0][:6], batch[1][:6]), (batch[0][6:], batch[1][6:])]
    (two,), _ = measured(net(), halves)
    (parts,), weights = measured(net(), [batch], settings=StepSettings(seed=0, micro_batch=5))
    for other in (two, parts):
        assert other.norm == pytest.approx(whole.norm, rel=1e-5)
        assert other.rms == pytest.approx(whole.rms, rel=1e-5)
        assert other.zero == pytest.approx(whole.zero)
    _, expected = measured(net(), [batch])
    assert [w.norm for w in weights] == pytest.approx([w.norm for w in expected], rel=1e-5)  # type: ignore[attr-defined]


def test_a_scale_of_the_loss_changes_no_share(batch: Batch) -> None:
    model, larger = net(), net()
    with torch.no_grad():
        # The same site with a gradient a thousandth as large behind it.
        larger[0].weight.mul_(1000)  # type: ignore[index, operator, union-attr]
        larger[0].bias.mul_(1000)  # type: ignore[index, operator, union-attr]
        larger[3].weight.div_(1000)  # type: ignore[index, operator, union-attr]
    (one,), _ = measured(model, [batch], threshold=0.3)
    (other,), _ = measured(larger, [batch], threshold=0.3)
    assert other.norm == pytest.approx(one.norm / 1000, rel=1e-3)
    assert (other.zero, other.vanishing) == pytest.approx((one.zero, one.vanishing))


def test_measuring_leaves_weights_statistics_and_gradients_as_they_were(batch: Batch) -> None:
    model = net(norm=True)
    before = copy.deepcopy(model.state_dict())
    first = measured(model, [batch, batch])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    assert measured(model, [batch, batch]) == first


def test_training_mode_is_measured_with_the_dropout_of_the_step(batch: Batch) -> None:
    model = net()
    model.insert(3, nn.Dropout(0.5))  # type: ignore[operator]
    (site,), _ = measured(model.eval(), [batch])
    (again,), _ = measured(model, [batch])
    (other,), _ = measured(model, [batch], settings=StepSettings(seed=1))
    (without,), _ = measured(net(), [batch])
    assert site == again
    assert site != other
    assert site.zero > without.zero + 0.1


def test_what_does_not_learn_has_no_gradient_and_a_frozen_backbones_sites_have(
    batch: Batch,
) -> None:
    model = net()
    model.get_submodule("0").requires_grad_(False)
    (site,), weights = measured(model, [batch])
    assert [told.name for told in weights] == ["3"]  # type: ignore[attr-defined]
    (trained,), _ = measured(net(), [batch])
    assert site == trained


def test_a_gradient_that_is_not_finite_is_an_error(batch: Batch) -> None:
    model = net()
    with torch.no_grad():
        model.get_submodule("3").weight.fill_(math.inf)  # type: ignore[union-attr, operator]
    with pytest.raises(NonFiniteError):
        measured(model, [batch])
