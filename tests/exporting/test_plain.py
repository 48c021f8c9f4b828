"""Frozen models of plain layers: the modules stay, their answers too, and timm builds them where it has such layers."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from trained_runs import disturb

import arelu_tl
from arelu_tl.activation.arelu import AReLU
from arelu_tl.exporting.fold import FoldReport
from arelu_tl.exporting.plain import TIMM_ACTIVATION, as_timm, fold_modules
from arelu_tl.exporting.proof import measure, prove
from arelu_tl.models.freeze import FrozenAReLU, FrozenSite, freeze


def plain(model: nn.Module, size: int = 64) -> tuple[nn.Module, list[FrozenSite], FoldReport]:
    """``model`` frozen and folded, proved to answer as it does."""
    frozen, sites = freeze(model)
    folded, changed, report = fold_modules(frozen, sites, torch.zeros(2, 3, size, size))
    torch.manual_seed(1)
    with torch.inference_mode():
        prove("folded", measure(model, [torch.randn(n, 3, size, size) for n in (1, 3)]), folded)
    return folded, changed, report


def build() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=7, act_layer=TIMM_ACTIVATION)


def test_a_residual_net_is_one_that_timm_builds() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    arelu_tl.convert(model, exclude=["layer2*"])
    disturb(model)
    folded, sites, report = plain(model)
    assert report.kept == {}
    assert len(report.folded) == len(sites) > 3
    told, problem = as_timm(folded, sites, build)
    assert told is not None, problem
    assert not any(isinstance(module, FrozenAReLU) for module in told.modules())
    # What was excluded is still a ReLU, as a PReLU of slope 0.
    assert 0.0 in [m.weight.item() for m in told.modules() if isinstance(m, nn.PReLU)]
    with torch.inference_mode():
        prove("timm's", measure(model, [torch.randn(3, 3, 64, 64)]), told)


@pytest.mark.parametrize(
    ("site", "told"),
    [
        (FrozenSite("act1", [0.1], [1.0], 6.0), "cap"),
        (FrozenSite("act1", [0.1, 0.2], [1.0, 1.0], None), "slope for each channel"),
        (FrozenSite("act1", [0.1], [1.5], None), "could not be folded"),
        (FrozenSite("nowhere", [0.1], [1.0], None), "no activation of its own there"),
    ],
)
def test_why_timm_has_no_such_model(site: FrozenSite, told: str) -> None:
    model, problem = as_timm(timm.create_model("test_resnet", num_classes=7), [site], build)
    assert model is None
    assert told in problem


def test_caps_move_with_the_scale_of_their_output() -> None:
    class Capped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
            self.act = AReLU(0.3, 1.0, scale=0.5, cap=0.4)
            self.relu6 = nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            told: Tensor = self.last(self.relu6(8 * self.act(self.first(x))).mean((2, 3)))
            return told

    torch.manual_seed(0)
    _, (site,), report = plain(Capped().eval(), 16)
    # A ReLU6 that is a module of its own has its 6 in its class: what comes to it must stay as it is.
    assert report.folded == ["act"]
    assert (site.gains, site.cap) == ([1.0], pytest.approx(0.4))


class Twice(nn.Module):
    """One convolution and one activation for two calls: what folds into them has to fit both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = AReLU(0.3, 1.0, scale=0.9)
        self.last = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.layer(x)))
        told: Tensor = self.last(self.act(self.norm(self.layer(x))).mean((2, 3)))
        return told


class Operand(nn.Module):
    """A convolution's weight that is also an operand: it cannot change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.act = AReLU(0.3, 1.0, scale=0.9)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.last(
            self.act(self.layer(x)).mean((2, 3)) + self.layer.weight.mean((1, 2, 3))
        )
        return told


@pytest.mark.parametrize("kind", [Twice, Operand])
def test_state_that_serves_several_places_fits_them_all(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain(disturb(kind()), 16)


@pytest.mark.parametrize("arm", ["leaky", "prelu"])
def test_controls_freeze_to_the_same_layers(arm: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    arelu_tl.convert(model, arm=arm)
    folded, sites, _ = plain(disturb(model))
    told, problem = as_timm(folded, sites, build)
    assert told is not None, problem
    with torch.inference_mode():
        prove("timm's", measure(model, [torch.randn(3, 3, 64, 64)]), told)


def test_gains_that_multiply_up_leave_the_weights_in_the_middle() -> None:
    class Stream(nn.Module):
        """A residual stream with a gain at every sum, as in a ResNet that starts as the paper does."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
            self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(24))
            self.acts = nn.ModuleList(AReLU(0.3, 2.0) for _ in range(24))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer, act in zip(self.layers, self.acts, strict=True):
                x = act(x + 0.1 * layer(x))
            told: Tensor = self.last(x.mean((2, 3)))
            return told

    torch.manual_seed(0)
    model = Stream().eval()
    folded, _, report = plain(model, 8)
    assert len(report.folded) == 24
    sizes = [
        new.std() / old.std()
        for new, old in zip(folded.parameters(), model.parameters(), strict=False)
        if old.dim() > 1
    ]
    assert 1e-4 < min(sizes) < max(sizes) < 1e4
