"""Folding changes weights and leaves answers: every family of backbone, with sites as different as training can make them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from trained_runs import disturb

import arelu_tl
from arelu_tl.activation.arelu import AReLU
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import fold
from arelu_tl.exporting.proof import measure, prove
from arelu_tl.models.freeze import freeze

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


def swapped(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7)
    arelu_tl.convert(model, **options)
    return disturb(model)


def check(model: nn.Module, batches: list[Tensor]) -> Any:
    frozen, sites = freeze(model)
    module = capture(frozen, batches[0])
    products = site_products(module, sites)
    names = [name for name, _ in (*products.scalar.values(), *products.by_channel.values())]
    assert len(names) == len(sites)
    assert set(names) == {site.name for site in sites}
    report = fold(module, products)
    assert all(node.op != "get_attr" or node.users for node in module.graph.nodes)
    with torch.inference_mode():
        prove("the folded graph", measure(model, batches), module)
    return report


def pictures(size: int = 96) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 3, size, size), torch.randn(1, 3, size, size)]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in FAMILIES]
)
def test_every_family_answers_as_before(name: str) -> None:
    report = check(swapped(name), pictures(64 if "mobilevit" in name else 96))
    sites, kept = FAMILIES[name]
    assert len(report.folded) + len(report.kept) == sites
    if kept is not None:
        assert len(report.kept) == kept, report.kept


def test_gains_of_single_channels_go_into_the_layer_right_in_front() -> None:
    """Behind a convolution (and its normalisation) they fold; behind a sum they stay."""
    report = check(swapped("test_resnet", granularity="channel"), pictures())
    assert report.folded
    assert report.kept
    assert all("channel" in reason for reason in report.kept.values())


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
    assert (
        report.kept["b"]
        == "its scale is tied to that of another activation, whose gain is folded (a)"
    )


def test_the_reason_names_the_operator_that_is_in_the_way() -> None:
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = AReLU(0.3, 1.0, scale=0.5)
            self.gate = nn.Sigmoid()
            self.last = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            told: Tensor = self.last(self.gate(self.act(x.tanh())).mean((2, 3)))
            return told

    report = check(Squashed().eval(), pictures(16))
    assert report.folded == []
    assert report.kept["act"] in (
        "sigmoid in gate needs it as it is",
        "tanh in the model itself needs it as it is",
    )


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


@pytest.mark.parametrize(
    "square", [lambda y: y * y, lambda y: y / (y + 1), lambda y: 0.5 * y, lambda y: y.square()]
)
def test_a_tensor_times_itself_is_not_a_tensor_times_a_number(square: Any) -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.a, self.b = AReLU(0.3, 1.0, scale=0.9), AReLU(0.7, -1.0, scale=0.9)

        def forward(self, x: Tensor) -> Tensor:
            told: Tensor = self.b(self.second(square(self.a(self.first(x))))).mean((2, 3))
            return told

    torch.manual_seed(0)
    check(Squared().eval(), pictures(16))
