"""Every arm and granularity through the same surgery: on small nets, back from their records, frozen or trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU, named_arelus
from arelu_tl.activation.catalogue import (
    SLOPED_ARMS,
    SURGERY_ARMS,
    SiteActivation,
    activation_parameters,
    named_activations,
)
from arelu_tl.errors import AreluTlError, ConfigError, SurgeryError
from arelu_tl.surgery.apply import restore_sites
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.plan import INITS
from arelu_tl.surgery.sites import find_sites

every_arm = pytest.mark.parametrize("arm", SURGERY_ARMS)
every_init = pytest.mark.parametrize("init", INITS)
LEARNING_ARMS = ("arelu", "prelu", "apl", "combine", "curvature", "gain-only", "pau", "slaf")


def pictures(count: int = 2, size: int = 8, side: int = 32) -> list[Tensor]:
    stream = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, side, side, generator=stream) for _ in range(count)]


def resnet() -> nn.Module:
    return copy.deepcopy(RESNET)


RESNET = timm.create_model("test_resnet", pretrained=False, num_classes=5)


class ConvNet(nn.Module):
    """Convolutions with an in-place ReLU whose input is read again, a ReLU6, and a functional ReLU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.body = nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)
        )
        self.residual = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.stem(x))
        y = self.body(self.act(z)) + self.body[0](z)
        y = torch.relu(self.residual(y) + y)
        return self.head(y.mean((2, 3)))


class TokenNet(nn.Module):
    """Patches as tokens, channels last, as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 6, 8, stride=8)
        self.norm = nn.LayerNorm(6)
        self.mlp = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))
        self.wide = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 7), nn.ReLU6())
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.mlp(self.norm(tokens))
        return self.head(self.wide(tokens).mean(1))


class MixedNet(nn.Module):
    """A convolution's site first, a token's behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU())
        self.token = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.head = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.token(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {"conv": ConvNet, "token": TokenNet, "mixed": MixedNet}
every_net = pytest.mark.parametrize("build", NETS.values(), ids=NETS.keys())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def structure(model: nn.Module) -> list[tuple[str, int, type]]:
    return [
        (name, id(module), type(module))
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def operate(model: nn.Module, **options: object) -> list[dict]:
    """Surgery without correction of BatchNorm inside routed modules, and its record as a file holds it."""
    report = convert(model, example_input=pictures(1)[0][:1], **options)  # type: ignore[arg-type]
    return json.loads(json.dumps(report.to_json(), allow_nan=False))["sites"]


# Every arm --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arm",
    [
        pytest.param(arm, marks=() if arm in (*SLOPED_ARMS, "gelu", "pau") else pytest.mark.slow)
        for arm in SURGERY_ARMS
    ],
)
def test_every_arm_converts_timms_resnet_and_trains(arm: str) -> None:
    model, given = resnet().train(), pictures(side=24)
    sites = find_sites(model, given[0][:1])
    report = convert(model, arm=arm, calibration=given)
    assert report.arm == arm
    assert report.replaced == len(sites) == len(list(named_activations(model)))
    assert not any(isinstance(m, nn.ReLU | nn.ReLU6) for m in model.modules())
    assert report.parameters_added == sum(p.numel() for p in activation_parameters(model))
    assert report.batchnorm == "corrected"
    assert report.drift is not None
    assert report.drift.relative is not None
    before = state(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(model(given[0]), torch.arange(8) % 5).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for p in model.parameters()
        if p.requires_grad
    )
    optimizer.step()
    moved = [k for k, p in model.named_parameters() if not torch.equal(p, before[k])]
    learnt = {id(p) for p in activation_parameters(model)} & {
        id(model.get_parameter(k)) for k in moved
    }
    assert bool(learnt) == (arm in LEARNING_ARMS)


@every_arm
@every_net
def test_every_arm_comes_back_from_its_record(arm: str, build: Callable[[], nn.Module]) -> None:
    trained = build()
    record = operate(trained, arm=arm, alpha=0.6)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    loaded = build()
    restore_sites(loaded, record, arm=arm)
    loaded.load_state_dict(trained.state_dict(), strict=True)
    x = pictures(1)[0]
    assert torch.equal(loaded.eval()(x), trained.eval()(x))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in trained.modules()]


@every_arm
def test_a_copy_of_every_arm_is_independent_and_equal(arm: str) -> None:
    model = ConvNet().eval()
    operate(model, arm=arm)
    twin, x = copy.deepcopy(model), pictures(1)[0]
    before = model(x)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(x), before)


@every_arm
def test_every_arm_goes_into_a_model_without_values(arm: str) -> None:
    with torch.device("meta"):
        model = MixedNet()
    report = convert(model, arm=arm, example_input=torch.empty(1, 3, 32, 32, device="meta"))
    assert report.replaced == 2
    assert all(t.is_meta for t in model.state_dict().values())
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 5)


@every_arm
def test_the_cap_of_relu6_stays_in_every_arm(arm: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.ReLU6(),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.Hardtanh(0, 2.5),
    )
    report = convert(model, arm=arm, example_input=torch.zeros(1, 3, 4, 4))
    assert [s.site.cap for s in report.sites] == [6.0, None, 2.5]
    large = torch.full((1, 4, 2, 2), 1e4)
    bounded = arm in ("sigmoid", "softsign", "tanh")
    assert [model[i](large).max().item() for i in (1, 5)] == (
        [pytest.approx(1.0, abs=1e-3)] * 2 if bounded else [6.0, 2.5]
    )
    assert bounded or (
        model[3](large).max().item() == 6.0
        if arm == "relu6"
        else model[3](large).max().item() > 6.0
    )


@every_arm
def test_in_place_and_mode_are_those_of_the_replaced_relu(arm: str) -> None:
    model = ConvNet().train()
    model.act.eval()
    operate(model, arm=arm)
    assert [m.inplace for m in (model.act, model.body[2], model.relu_sites["0"])] == [
        True,
        True,
        False,
    ]  # type: ignore[index]
    assert [model.act.training, model.body[2].training] == [False, True]
    assert {m.training for m in model.act.modules()} == {False}


@every_arm
def test_later_readers_of_an_overwritten_tensor_see_what_they_saw(arm: str) -> None:
    # ConvNet's body[0] reads z again after the in-place ReLU: the twin writes that out.
    class Twin(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            z = self.act(self.norm(self.stem(x)))
            y = self.body(z) + self.body[0](z)
            y = torch.relu(self.residual(y) + y)
            return self.head(y.mean((2, 3)))

    model, twin = ConvNet().eval(), Twin().eval()
    for module in (twin.act, twin.body[2]):
        module.inplace = False
    for candidate in (model, twin):
        operate(candidate, arm=arm)
    x, results = pictures(1)[0], []
    for candidate in (model, twin):
        z = x.clone().requires_grad_()
        y = candidate(z)
        y.square().sum().backward()
        results.append([y, z.grad, *[p.grad for p in candidate.parameters() if p.requires_grad]])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@every_net
def test_the_controls_are_one_function_before_training(build: Callable[[], nn.Module]) -> None:
    models = {}
    for arm in ("arelu", "arelu-frozen", "leaky", "prelu"):
        models[arm] = build().eval()
        operate(models[arm], arm=arm)
    x = pictures(1)[0]
    wanted = models["arelu"](x)
    assert torch.equal(models["arelu-frozen"](x), wanted)
    torch.testing.assert_close(models["leaky"](x), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(models["prelu"](x), models["leaky"](x))
    assert not torch.equal(wanted, build().eval()(x))


@pytest.mark.parametrize("arm", ["relu", "relu7", ""])
def test_an_unknown_arm_is_refused_before_anything_changes(arm: str) -> None:
    model = resnet()
    kept = structure(model)
    with pytest.raises(AreluTlError, match="arelu-frozen"):
        convert(model, arm=arm, calibration=pictures())
    assert structure(model) == kept


def test_an_unknown_arm_is_the_error_that_the_docstring_promises() -> None:
    with pytest.raises(SurgeryError, match="relu7"):
        convert(resnet(), arm="relu7")


def test_a_record_of_another_arm_does_not_load() -> None:
    trained, loaded = resnet(), resnet()
    restore_sites(loaded, operate(trained, arm="prelu"), arm="arelu")
    with pytest.raises(RuntimeError, match="Missing key"):
        loaded.load_state_dict(trained.state_dict(), strict=True)


# What is trained --------------------------------------------------------------------------------------------------------


@every_net
def test_frozen_arelu_has_sites_of_which_none_is_trained(build: Callable[[], nn.Module]) -> None:
    model = build()
    operate(model, arm="arelu-frozen")
    sites = activation_parameters(model)
    assert sites
    assert not any(p.requires_grad for p in sites)
    assert all(p.requires_grad for p in model.parameters() if not any(p is s for s in sites))


@pytest.mark.parametrize("arm", ["arelu", "arelu-frozen", "leaky", "prelu"])
def test_a_fully_frozen_model_gets_frozen_sites(arm: str) -> None:
    model = ConvNet().requires_grad_(False)
    operate(model, arm=arm)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("arm", LEARNING_ARMS)
def test_a_model_of_which_something_is_trained_gets_trained_sites(arm: str) -> None:
    model = ConvNet().requires_grad_(False)
    model.head.requires_grad_(True)
    operate(model, arm=arm)
    assert all(p.requires_grad for p in activation_parameters(model))
    assert not model.stem.weight.requires_grad


@pytest.mark.parametrize("arm", LEARNING_ARMS)
def test_a_model_without_parameters_gets_trained_sites(arm: str) -> None:
    model = nn.Sequential(nn.ReLU())
    operate(model, arm=arm)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "arm",
    [
        "arelu",
        "arelu-frozen",
        "prelu",
    ],
)
def test_each_site_has_the_format_of_the_weights_around_it(arm: str) -> None:
    class TwoFormats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).double()
            self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).bfloat16()
            self.last = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x.double()).bfloat16()).float())

    model = TwoFormats()
    operate(model, arm=arm)
    formats = [{t.dtype for t in m.state_dict().values()} for _, m in named_activations(model)]
    assert formats[:2] == [{torch.float64}, {torch.bfloat16}]
    assert formats[2] == {torch.float64}  # the nearest weights are the model's first
    assert model(pictures(1)[0]).dtype == torch.float32


# Granularity ------------------------------------------------------------------------------------------------------------


@every_init
@pytest.mark.parametrize("build", [resnet, ConvNet], ids=["resnet", "conv"])
def test_channel_granularity_gives_each_channel_of_a_convolution_a_pair(
    build: Callable[[], nn.Module], init: str
) -> None:
    model, whole = build().eval(), build().eval()
    report = convert(model, init=init, granularity="channel", example_input=pictures(1)[0][:1])
    by_site = convert(whole, init=init, example_input=pictures(1)[0][:1])
    arelus = [m for _, m in named_arelus(model)]
    wanted = [s.site.shape[1] for s in report.sites]
    assert sorted(m.num_parameters for m in arelus) == sorted(wanted)
    assert {m.channel_dim for m in arelus} == {1}
    assert (
        report.parameters_added
        == 2 * sum(wanted)
        == sum(p.numel() for p in activation_parameters(model))
    )
    assert by_site.parameters_added == 2 * len(wanted)
    # Before training every channel is what the whole site is.
    x = pictures(1)[0]
    torch.testing.assert_close(model(x), whole(x), rtol=1e-5, atol=1e-6)


@every_init
def test_channel_granularity_finds_the_channels_of_tokens_last(init: str) -> None:
    model, whole = TokenNet().eval(), TokenNet().eval()
    report = convert(model, init=init, granularity="channel", example_input=pictures(1)[0][:1])
    convert(whole, init=init, example_input=pictures(1)[0][:1])
    found = {name: (m.num_parameters, m.channel_dim % 3) for name, m in named_arelus(model)}
    assert found == {"mlp.1": (10, 2), "wide.2": (7, 2)}
    assert report.parameters_added == 2 * 17
    x = pictures(1)[0]
    torch.testing.assert_close(model(x), whole(x), rtol=1e-5, atol=1e-6)
    assert model(pictures(1, side=48)[0]).shape == (8, 5)  # other numbers of tokens do as well


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_channel_granularity_on_timm_models_with_channels_last(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, act_layer="relu")
    report = convert(model, granularity="channel")
    widths = [m.num_parameters for _, m in named_arelus(model)]
    assert widths == [s.site.shape[-1] for s in report.sites]
    assert min(widths) > 32
    size = model.pretrained_cfg["input_size"]
    model(torch.randn(2, *size)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in activation_parameters(model))


def test_each_channel_learns_its_own_alpha() -> None:
    model = TokenNet().train()
    convert(model, granularity="channel", example_input=pictures(1)[0][:1])
    model(pictures(1)[0]).square().sum().backward()
    for _, module in named_arelus(model):
        assert module.alpha.grad is not None
        assert module.alpha.grad.unique().numel() == module.num_parameters


@every_net
@pytest.mark.parametrize("arm", ["arelu", "leaky", "gelu"])
@pytest.mark.parametrize("init", ["calibrated", "paper"])
def test_channel_granularity_comes_back_from_its_record(
    build: Callable[[], nn.Module], arm: str, init: str
) -> None:
    trained, loaded = build(), build()
    record = operate(trained, arm=arm, init=init, granularity="channel")
    with torch.no_grad():
        for parameter in activation_parameters(trained):
            parameter.mul_(torch.rand_like(parameter))
    restore_sites(loaded, record, arm=arm)
    loaded.load_state_dict(trained.state_dict(), strict=True)
    x = pictures(1)[0]
    assert torch.equal(loaded.eval()(x), trained.eval()(x))


@pytest.mark.parametrize("build", [resnet, ConvNet], ids=["resnet", "conv"])
def test_prelu_has_a_slope_a_channel_of_a_convolution(build: Callable[[], nn.Module]) -> None:
    trained, loaded = build(), build()
    record = operate(trained, arm="prelu", granularity="channel")
    counts = [p.numel() for p in activation_parameters(trained)]
    assert sorted(counts) == sorted(site["shape"][1] for site in record)
    restore_sites(loaded, record, arm="prelu")
    loaded.load_state_dict(trained.state_dict(), strict=True)
    x = pictures(1)[0]
    assert torch.equal(loaded.eval()(x), trained.eval()(x))


def test_prelu_a_channel_of_tokens_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="`granularity='site'`"):
        operate(TokenNet(), arm="prelu", granularity="channel")


def test_prelu_refused_at_a_late_site_leaves_the_early_ones() -> None:
    model = MixedNet()
    kept = structure(model)
    with pytest.raises(ConfigError):
        operate(model, arm="prelu", granularity="channel")
    assert structure(model) == kept


def test_prelu_a_channel_of_a_multilayer_perceptron_is_possible() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4), nn.ReLU(), nn.Linear(4, 2))
    operate(model, arm="prelu", granularity="channel")


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(SurgeryError, match="site, channel"):
        operate(resnet(), granularity="pixel")


# Shared sites -----------------------------------------------------------------------------------------------------------


class SharedReLU(nn.Module):
    """One ReLU module at two sites, of equal or of different widths."""

    def __init__(self, widths: tuple[int, int] = (4, 4)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, widths[0], 1), nn.Conv2d(widths[0], widths[1], 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


@every_arm
def test_shared_sites_are_one_activation_and_come_back_from_their_record(arm: str) -> None:
    apart, together, loaded = SharedReLU(), SharedReLU(), SharedReLU()
    assert len(operate(apart, arm=arm)) == 2
    record = operate(together, arm=arm, share_sites=True)
    assert len(list(named_activations(apart))) == 2
    assert [name for name, _ in named_activations(together)] == ["relu"]
    restore_sites(loaded, record, arm=arm)
    loaded.load_state_dict(together.state_dict(), strict=True)
    x = pictures(1)[0]
    assert torch.equal(loaded.eval()(x), together.eval()(x))


def test_shared_sites_of_equal_width_may_have_a_pair_a_channel() -> None:
    model = SharedReLU()
    report = convert(
        model, share_sites=True, granularity="channel", example_input=torch.zeros(1, 3, 4, 4)
    )
    assert report.parameters_added == 8
    assert isinstance(model.relu, AReLU)
    assert model.relu.num_parameters == 4


def test_shared_sites_of_different_width_cannot_have_a_pair_a_channel_and_are_refused_unchanged() -> (
    None
):
    model = SharedReLU((4, 5))
    kept = structure(model)
    with pytest.raises(SurgeryError, match="several widths"):
        convert(
            model, share_sites=True, granularity="channel", example_input=torch.zeros(1, 3, 4, 4)
        )
    assert structure(model) == kept


# What replaces the sites ------------------------------------------------------------------------------------------------


def test_sites_of_a_rival_hold_its_activation() -> None:
    model = ConvNet()
    operate(model, arm="silu")
    held = [m.activation for _, m in named_activations(model) if isinstance(m, SiteActivation)]
    assert [type(a) for a in held] == [nn.SiLU] * 3


def test_calls_that_share_a_replacement_are_recorded_with_the_start_that_it_has() -> None:
    with torch.device("meta"):
        model = timm.create_model("dla34")
    report = convert(model, share_sites=True)
    starts = {
        p.site.name: {q.alpha0 for q in report.sites if q.site.name == p.site.name}
        for p in report.sites
    }
    assert [name for name, values in starts.items() if len(values) > 1] == []


@pytest.mark.parametrize(("arm", "known"), [("gelu", set()), ("leaky", {"alpha0", "beta0"})])
def test_a_site_is_recorded_with_nothing_that_its_activation_does_not_have(
    arm: str, known: set[str]
) -> None:
    report = convert(ConvNet(), arm=arm, example_input=torch.zeros(1, 3, 8, 8)).to_json()
    keys = ("alpha0", "beta0", "scale", "num_parameters")
    assert {key for site in report["sites"] for key in keys if site[key] is not None} == known


def test_a_pattern_may_be_given_alone() -> None:
    assert (
        convert(resnet(), exclude="layer1*").replaced
        == convert(resnet(), exclude=["layer1*"]).replaced
        < 12
    )


def test_a_relu_inside_an_autograd_function_is_refused_because_nothing_there_can_learn() -> None:
    class Rectify(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * (ctx.saved_tensors[0] > 0)

    class Custom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Rectify.apply(x)

    model = nn.Sequential(nn.Linear(4, 4), Custom(), nn.Linear(4, 2))
    kept = structure(model)
    with pytest.raises(SurgeryError, match="no gradients are recorded"):
        convert(model, example_input=torch.zeros(2, 4))
    assert structure(model) == kept


def test_a_model_that_gives_a_list_of_maps_is_measured_by_all_of_them() -> None:
    model = timm.create_model("test_resnet", features_only=True)
    report = convert(
        model, calibration=[torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    )
    assert report.drift is not None
    assert report.drift.relative is not None
    assert 0 < report.drift.relative <= 1


def test_calibration_of_single_pictures_is_refused() -> None:
    with pytest.raises(SurgeryError, match="at least two pictures"):
        convert(resnet(), calibration=[torch.zeros(1, 3, 32, 32)])
