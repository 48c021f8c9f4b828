"""The rewiring itself is neutral: with ReLU's slopes a converted model is the untouched one to the last bit, in 12 families.

And the smallest leak changes outputs by no more than its size implies. With f(t) the outputs of a net whose sites have slope t
on their negative side, |f(t) - f(0)| <= 2 (t / s)^p |f(s) - f(0)| for a leak s a hundred times smaller: what so small a leak
does, in proportion (p = 1; 2 where every site's output is squared), and twice that as room for curvature.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU, named_arelus
from arelu_tl.activation.operators import two_slope
from arelu_tl.surgery.convert import convert

# Architecture: whether it belongs to the fast suite.
FAMILIES = {
    "resnet18": False,  # plain, residual
    "mobilenetv2_050": True,  # ReLU6
    "tf_efficientnet_lite0": False,  # ReLU6, norm and activation fused
    "mobilevitv2_050": True,  # functional
    "dla46_c": True,  # shared in a block
    "res2net50_14w_8s": False,  # shared in a block, many times
    "hrnet_w18_small": False,  # shared over branches
    "efficientvit_b0": True,  # shared in an attention
    "legacy_seresnet18": True,  # squeeze-excite and shared
    "caformer_s18": False,  # squared
    "regnety_002": True,  # squeeze-excite, norm and activation fused
    "densenet121": False,  # in-place, norm and activation fused, concatenation
    "hardcorenas_a": False,  # squeeze-excite, hard swish
    "vgg11": False,  # in-place in one nn.Sequential
}
every_family = pytest.mark.parametrize(
    "name", [n if fast else pytest.param(n, marks=pytest.mark.slow) for n, fast in FAMILIES.items()]
)
PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def lively(name: str) -> nn.Module:
    """In eval mode, with BatchNorm layers that give every site both signs, and values beyond ReLU6's cap."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.05, 1.0)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    return model.eval()


def tame(name: str) -> nn.Module:
    """In eval mode, as timm initialises it, but with residual branches that count from the start."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
    return model.eval()


def act_as(monkeypatch: pytest.MonkeyPatch, function: Callable[[AReLU, Tensor], Tensor]) -> None:
    monkeypatch.setattr(AReLU, "forward", function)


def relu(site: AReLU, x: Tensor) -> Tensor:
    """torch's own operators, over the input where the site says so, out of reach of whoever counts Python calls."""
    aten = torch.ops.aten
    if site.cap is None:
        return aten.relu_(x) if site.inplace else aten.relu(x)
    return aten.hardtanh_(x, 0, site.cap) if site.inplace else aten.hardtanh(x, 0, site.cap)


@every_family
def test_with_relus_slopes_outputs_and_all_gradients_equal_the_untouched_models(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = lively(name)
    rewired = copy.deepcopy(untouched)
    report = convert(rewired, example_input=PICTURES)
    assert report.replaced == report.executed > 0
    ran: list[AReLU] = []

    def counted(site: AReLU, x: Tensor) -> Tensor:
        ran.append(site)
        return relu(site, x)

    act_as(monkeypatch, counted)
    results = []
    for model in (untouched, rewired):
        x = PICTURES.clone().requires_grad_()
        y = model(x)
        (y / y.detach().norm()).square().sum().backward()
        parameters = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((y.detach(), x.grad, parameters))
    (wanted, wanted_gradient, wanted_parameters), (y, gradient, parameters) = results
    assert len(ran) == len(set(ran)) == report.replaced
    assert wanted.isfinite().all()
    assert wanted.abs().max() > 0
    assert wanted_gradient.abs().max() > 0
    assert torch.equal(y, wanted)
    assert torch.equal(gradient, wanted_gradient)
    assert parameters.keys() == wanted_parameters.keys()
    assert [n for n, g in wanted_parameters.items() if not torch.equal(parameters[n], g)] == []


@every_family
def test_the_smallest_leak_changes_outputs_by_no_more_than_it_implies(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "efficientvit_b0":
        pytest.skip(
            "its attention divides by a sum of ReLUs, which a leak of any size makes another than 0: there is no bound"
        )
    model, x = tame(name).double(), PICTURES.double()
    with torch.no_grad():
        before = model(x)
        report = convert(model, alpha=0.01, example_input=x)
        after = model(x)
        (leak,) = {0.01 * p.scale for p in report.sites if p.status == "replaced"}
        assert {m.alpha.item() for _, m in named_arelus(model)} == {0.01}

        def leaky(site: AReLU, x: Tensor) -> Tensor:
            one = torch.ones(1, dtype=x.dtype)
            y = two_slope(x, one, leak / 100 * one, site.cap)
            return x.copy_(y) if site.inplace else y

        act_as(monkeypatch, leaky)
        little = model(x)
    power = 2 if all(p.site.role == "squared" for p in report.sites) else 1
    bound = 2 * 100**power * (little - before).norm()
    assert 0 < (after - before).norm() <= bound
