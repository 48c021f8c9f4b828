"""Folding changes weights and leaves answers: every family of backbone, with sites as different as training can make them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import arelu_tl
from arelu_tl.activation import AReLU
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import fold
from arelu_tl.exporting.freeze import freeze
from arelu_tl.exporting.proof import prove

# Family: plain and residual, ReLU6, functional, shared, squeeze-excite, fused norm-act, concatenating.
FAMILIES = {
    "resnet18": (17, 0),
    "tf_efficientnet_lite0": (33, 0),
    "mobilevitv2_050": (9, 0),
    "dla34": (33, None),
    "seresnext26d_32x4d": (35, 0),
    "resnetv2_18d": (19, None),
    "densenet121": (121, 0),
}
FAST = ("mobilevitv2_050",)


def disturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, statistics, alphas and betas as training might leave them, all different."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AReLU):
                module.alpha.uniform_(0.01, 0.99, generator=stream)
                module.beta.normal_(1.0, 1.0, generator=stream)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=stream)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5, generator=stream)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1.5, generator=stream)
                module.bias.normal_(0, 0.2, generator=stream)
    return model.eval()


def swapped(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7)
    arelu_tl.convert(model, **options)
    return disturb(model)


def check(model: nn.Module, batches: list[Tensor]) -> Any:
    frozen, sites = freeze(model)
    module = capture(frozen, batches[0])
    products, by_channel = site_products(module)
    assert len(products) + len(by_channel) == len(sites)
    assert {name for name, _ in products.values()} | set(by_channel) == {site.name for site in sites}
    report = fold(module, products)
    with torch.inference_mode():
        prove("the folded graph", model, module, batches)
    return report


def pictures(size: int = 96) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 3, size, size), torch.randn(1, 3, size, size)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in FAMILIES])
def test_every_family_answers_as_before(name: str) -> None:
    report = check(swapped(name), pictures(128 if "mobilevit" in name else 96))
    sites, kept = FAMILIES[name]
    assert len(report.folded) + len(report.kept) == sites
    if kept is not None:
        assert len(report.kept) == kept, report.kept


def test_gains_of_single_channels_keep_their_products() -> None:
    model = swapped("test_resnet", granularity="channel")
    report = check(model, pictures())
    assert report.folded == []


class Branches(nn.Module):
    """One activation's output meets itself through a sigmoid: its gain cannot go anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.act = AReLU(0.3, 1.0, scale=0.5)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        told: Tensor = self.last((y + torch.sigmoid(y)).mean((2, 3)))
        return told


class Tied(nn.Module):
    """Two activations in one sum whose inputs are the same tensor: only one gain for both can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.a, self.b = AReLU(0.3, 1.0, scale=0.5), AReLU(0.7, -1.0, scale=0.9, cap=1.0)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        told: Tensor = self.last((self.a(y) + self.b(y)).mean((2, 3)))
        return told


def test_a_gain_before_a_sigmoid_goes_into_the_convolution_in_front() -> None:
    torch.manual_seed(0)
    report = check(Branches().eval(), pictures(16))
    assert (report.folded, report.kept) == (["act"], {})


def test_what_cannot_be_folded_is_kept_with_a_reason() -> None:
    torch.manual_seed(0)
    report = check(Tied().eval(), pictures(16))
    assert (report.folded, list(report.kept)) == (["a"], ["b"])
    assert "fixed by another path" in report.kept["b"]


def test_a_layer_used_twice_is_given_weights_of_its_own_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)
            self.a, self.b = AReLU(0.3, 1.0, scale=0.5), AReLU(0.7, -1.0, scale=2.0)

        def forward(self, x: Tensor) -> Tensor:
            told: Tensor = self.b(self.layer(self.a(self.layer(x)))).mean((2, 3))
            return told

    torch.manual_seed(0)
    report = check(Twice().eval(), pictures(16))
    assert report.folded == ["a", "b"]
