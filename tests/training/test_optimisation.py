"""What of each arm is trained: frozen backbones, and the parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from arelu_tl.activation.catalogue import activation_parameters
from arelu_tl.records.settings import OptimizerSettings
from arelu_tl.surgery.convert import convert
from arelu_tl.training.optimisation import (
    freeze_backbone,
    make_optimizer,
    norm_parameters,
    parameter_groups,
)

RATES = {"lr": 0.1, "head_lr": 0.2, "arelu_lr": 0.3, "weight_decay": 0.5}
ARMS = ("arelu", "arelu-frozen", "leaky", "prelu", "gelu", "rrelu")
LEARNING_ARMS = ("arelu", "prelu")


def converted(arm: str, granularity: str = "site") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, 4, 1))
    model.add_module("norm", nn.BatchNorm2d(4))
    model.add_module("act", nn.ReLU())
    model.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model.add_module("head", nn.Linear(4, 2))
    convert(model, arm=arm, granularity=granularity, example_input=torch.zeros(1, 3, 4, 4))
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("granularity", ["site", "channel"])
def test_a_frozen_backbone_leaves_the_head_and_what_sites_learn(arm: str, granularity: str) -> None:
    model = converted(arm, granularity)
    freeze_backbone(model, ["head"])
    learning = {"arelu": {"act.alpha", "act.beta"}, "prelu": {"act.activation.weight"}}.get(
        arm, set()
    )
    assert trained(model) == {"head.weight", "head.bias"} | learning


def test_freezing_a_backbone_thaws_no_frozen_site() -> None:
    model = converted("arelu-frozen")
    freeze_backbone(model, ["head"])
    assert len(activation_parameters(model)) == 2
    assert not any(p.requires_grad for p in activation_parameters(model))


def test_freezing_twice_is_freezing_once() -> None:
    model = converted("arelu")
    freeze_backbone(model, ["head"])
    once = trained(model)
    freeze_backbone(model, ["head"])
    assert trained(model) == once


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("granularity", ["site", "channel"])
def test_what_sites_learn_has_its_own_rate_and_never_decays(arm: str, granularity: str) -> None:
    model = converted(arm, granularity)
    groups = {g["name"]: g for g in parameter_groups(model, ["head"], OptimizerSettings(**RATES))}
    assert ("arelu" in groups) == (arm in LEARNING_ARMS)
    assert set(groups) - {"arelu"} == {"backbone", "backbone-no-decay", "head", "head-no-decay"}
    if arm in LEARNING_ARMS:
        assert (groups["arelu"]["lr"], groups["arelu"]["weight_decay"]) == (0.3, 0.0)
        assert {id(p) for p in groups["arelu"]["params"]} == {
            id(p) for p in activation_parameters(model)
        }
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert len(grouped) == len(set(grouped)) == len(trained(model))


@pytest.mark.parametrize("arm", ["arelu", "arelu-frozen", "leaky", "prelu"])
def test_a_step_moves_what_learns_and_nothing_frozen(arm: str) -> None:
    model = converted(arm).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(
        model, ["head"], OptimizerSettings(opt="sgd", lr=0.1, weight_decay=0.1)
    )
    model(torch.randn(4, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {n for n in moved if n.startswith("act")} == {
        n for n in trained(model) if n.startswith("act")
    }


@pytest.mark.parametrize("opt", ["adamw", "adam", "sgd", "momentum", "adagrad", "rmsprop", "lamb"])
def test_a_fused_optimiser_moves_the_weights_as_the_plain_one_does(opt: str) -> None:
    """In both layouts, in which weights, gradients and moments must lie alike in memory."""
    for layout in (torch.contiguous_format, torch.channels_last):
        models = [converted("arelu").to(memory_format=layout).train() for _ in range(2)]
        for (
            model
        ) in models:  # BatchNorm takes this bias away again: its gradient is nothing but rounding
            model.get_parameter("stem.bias").requires_grad_(False)
        ours, theirs = (
            make_optimizer(m, ["head"], OptimizerSettings(opt=opt, lr=0.1, weight_decay=0.1))
            for m in models
        )
        fused = opt not in ("rmsprop", "lamb")
        assert all(bool(group.get("fused")) == fused for group in ours.param_groups)
        for group in theirs.param_groups:
            group["fused"] = False
        for seed in range(3):
            for model, optimizer in zip(models, (ours, theirs), strict=True):
                torch.manual_seed(seed)
                optimizer.zero_grad()
                model(torch.randn(4, 3, 5, 5).to(memory_format=layout)).square().sum().backward()
                optimizer.step()
        for mine, yours in zip(*(m.parameters() for m in models), strict=True):
            torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-6)


def test_normalisation_weights_can_have_their_own_rate_also_on_a_frozen_backbone() -> None:
    model = converted("arelu-frozen")
    norms = {id(p) for p in norm_parameters(model)}
    assert norms == {id(p) for p in model.norm.parameters()}
    settings = OptimizerSettings(**RATES, norm_lr=0.7)
    for frozen in (False, True):
        if frozen:
            freeze_backbone(model, ["head"], norms=True)
        groups = {g["name"]: g for g in parameter_groups(model, ["head"], settings)}
        assert (groups["norm"]["lr"], groups["norm"]["weight_decay"]) == (0.7, 0.0)
        assert {id(p) for p in groups["norm"]["params"]} == norms
        assert ("backbone" in groups) != frozen
    assert "norm" not in {g["name"] for g in parameter_groups(model, ["head"], OptimizerSettings())}
