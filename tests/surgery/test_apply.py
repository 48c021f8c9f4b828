"""Replacing sites: complete, neutral but for the slopes, refused before anything changes, and repeatable from its record."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.densenet import DenseNet
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from arelu_tl.activation.arelu import AReLU, named_arelus
from arelu_tl.activation.operators import two_slope
from arelu_tl.errors import AreluTlError, SurgeryError
from arelu_tl.surgery.apply import apply_plan, restore_sites
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.plan import make_plan
from arelu_tl.surgery.sites import find_sites

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: timm.create_model("resnet18", pretrained=False),
    "bottleneck resnet": lambda: ResNet(Bottleneck, (1, 2, 1, 1)),
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", pretrained=False),
    "densenet": lambda: DenseNet(growth_rate=8, block_config=(2, 3)),
    "se-resnet with shared relus": lambda: timm.create_model("legacy_seresnet18", pretrained=False),
    "se mobilenet": lambda: timm.create_model("hardcorenas_a", pretrained=False),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())


class Aliased(nn.Module):
    """One in-place ReLU under two names, called twice, and a ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.relu = nn.ReLU(inplace=True)
        self.stage = nn.Sequential(nn.Linear(4, 4), self.relu)
        self.last = nn.Sequential(nn.Linear(4, 2), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stage(self.relu(self.first(x))))


def relus(model: nn.Module) -> list[str]:
    return [
        n
        for n, m in model.named_modules(remove_duplicate=False)
        if isinstance(m, nn.ReLU | nn.ReLU6)
    ]


def lively(model: nn.Module) -> nn.Module:
    """In eval mode, with BatchNorm layers that give every site both signs, and values beyond ReLU6's cap."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.05, 1.0)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    return model.eval()


def mlp(sites: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *[m for _ in range(sites) for m in (nn.Linear(4, 4), nn.ReLU())], nn.Linear(4, 4)
    )


ROW = torch.zeros(1, 4)  # what an mlp runs on


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# Completeness -----------------------------------------------------------------------------------------------------------


@every_model
def test_no_relu_is_left(build: Callable[[], nn.Module], pictures: Tensor) -> None:
    model = build()
    sites = len(find_sites(model, pictures))
    report = convert(model, example_input=pictures)
    assert relus(model) == []
    assert report.replaced == len(list(named_arelus(model))) == sites > 0
    assert model(pictures).isfinite().all()


def test_relu6_keeps_its_cap_and_relu_has_none() -> None:
    model = Aliased()
    convert(model, example_input=torch.zeros(1, 3))
    assert {name: m.cap for name, m in named_arelus(model)} == {
        "relu_sites.0": None,
        "stage.1": None,
        "last.1": 6.0,
    }
    assert model(torch.full((1, 3), 1e6)).max() <= 6


def test_sharing_sites_keeps_one_module_under_two_names() -> None:
    model = Aliased()
    report = convert(model, example_input=torch.zeros(1, 3), share_sites=True)
    assert isinstance(model.relu, AReLU)
    assert model.stage[1] is model.relu
    assert (report.replaced, report.parameters_added) == (3, 4)


def test_new_modules_come_in_the_plans_order_with_the_planned_start() -> None:
    model = mlp()
    plan = make_plan(find_sites(model, torch.zeros(1, 4)))
    modules, _ = apply_plan(model, plan)
    for module, planned in zip(modules, plan.replaced, strict=True):
        assert model.get_submodule(planned.site.name) is module
        start = [module.alpha.item(), module.beta.item(), module.scale.item()]
        assert start == pytest.approx([planned.alpha0, planned.beta0, planned.scale])


def test_excluded_sites_stay_the_modules_they_were() -> None:
    model = mlp(3)
    kept = model[1]
    report = convert(model, exclude=["1"], example_input=ROW)
    assert model[1] is kept
    assert relus(model) == ["1"]
    assert (report.replaced, report.parameters_added) == (2, 4)


def test_everything_but_the_sites_stays(pictures: Tensor) -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    convert(model, example_input=pictures)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {k.rpartition(".")[2] for k in after.keys() - before.keys()} == {
        "alpha",
        "beta",
        "scale",
    }


# Format, place, mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_models_number_format_is_taken_over(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    convert(model, example_input=ROW.to(dtype))
    assert {t.dtype for t in model.state_dict().values()} == {dtype}
    assert model(torch.zeros(1, 4, dtype=dtype)).dtype == dtype


def test_a_float64_model_gets_the_planned_start_in_float64() -> None:
    model = mlp().double()
    report = convert(model, example_input=ROW.double())
    for planned in report.sites:
        module = model.get_submodule(planned.site.name)
        start = [module.alpha.item(), module.beta.item(), module.scale.item()]
        assert start == pytest.approx([planned.alpha0, planned.beta0, planned.scale], rel=1e-14)


def test_the_models_device_is_taken_over() -> None:
    model = mlp().to("meta")
    convert(model, example_input=ROW.to("meta"))
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}


def test_each_site_keeps_its_mode() -> None:
    model = mlp(3).train()
    model[3].eval()
    convert(model, example_input=ROW)
    assert [m.training for _, m in named_arelus(model)] == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_alpha_can_learn_from_the_first_step(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    convert(model, example_input=ROW.to(dtype))
    model(
        torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    ).square().sum().backward()
    dead = [
        name for name, m in named_arelus(model) if m.alpha.grad is None or m.alpha.grad.item() == 0
    ]
    assert dead == []


# Neutrality -------------------------------------------------------------------------------------------------------------


@every_model
def test_with_the_slopes_of_relu_outputs_and_input_gradients_equal_the_untouched_model(
    build: Callable[[], nn.Module], pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    untouched = lively(build())
    rewired = copy.deepcopy(untouched)
    convert(rewired, example_input=pictures)

    def as_relu(self: AReLU, x: Tensor) -> Tensor:
        return two_slope(x, torch.ones(1), torch.zeros(1), self.cap)

    monkeypatch.setattr(AReLU, "forward", as_relu)
    results = []
    for model in (untouched, rewired):
        x = pictures.clone().requires_grad_()
        y = model(x)
        y.square().sum().backward()
        results.append((y, x.grad))
    (wanted, wanted_gradient), (y, gradient) = results
    assert wanted.abs().max() > 0
    assert wanted_gradient.abs().max() > 0
    assert torch.equal(y, wanted)
    assert torch.equal(gradient, wanted_gradient)


def test_calibrated_output_differs_by_the_leak_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    x = torch.randn(20, 5, dtype=torch.float64)
    hidden, before = model[0](x), model(x)
    report = convert(model, alpha=0.01, example_input=x)
    leak = 0.01 * report.sites[0].scale * hidden.clamp(max=0) @ model[2].weight.T
    assert leak.abs().max() > 0
    torch.testing.assert_close(model(x) - before, leak, rtol=0, atol=1e-6)


def test_calibrated_with_the_smallest_leak_is_near_the_original(pictures: Tensor) -> None:
    torch.manual_seed(0)
    model = lively(timm.create_model("test_resnet", pretrained=False))
    papers = copy.deepcopy(model)
    before = model(pictures)
    convert(model, alpha=0.01, example_input=pictures)
    convert(papers, init="paper", example_input=pictures)
    change, papers_change = (
        ((m(pictures) - before).norm() / before.norm()).item() for m in (model, papers)
    )
    # Twelve sites, each of which lets about half a percent through.
    assert 0 < change < 12 * 0.01
    assert papers_change > 1


# Refusals ---------------------------------------------------------------------------------------------------------------


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda m: m.register_forward_hook(lambda *_: None),
    "forward pre": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS.keys())
def test_a_site_with_hooks_is_named_and_the_model_stays(
    register: Callable[[nn.Module], object],
) -> None:
    model = mlp()
    register(model[7])
    modules = list(model)
    with pytest.raises(SurgeryError, match="7 carries hooks"):
        convert(model, example_input=ROW)
    assert all(now is then for now, then in zip(model, modules, strict=True))


def test_hooks_on_a_site_that_stays_are_no_obstacle() -> None:
    model = mlp(3)
    model[1].register_forward_hook(lambda *_: None)
    assert convert(model, exclude=["1"], example_input=ROW).replaced == 2


@pytest.mark.parametrize("alpha", [1.5, -0.5])
@pytest.mark.parametrize("init", ["calibrated", "paper"])
def test_an_alpha_out_of_range_is_refused_and_the_model_stays(init: str, alpha: float) -> None:
    model = mlp()
    modules = list(model)
    with pytest.raises(AreluTlError, match="alpha"):
        convert(model, init=init, alpha=alpha, example_input=ROW)
    assert all(now is then for now, then in zip(model, modules, strict=True))


def test_a_model_that_is_itself_a_relu_is_refused() -> None:
    with pytest.raises(SurgeryError):
        convert(nn.ReLU())


def test_a_model_without_relu_is_told_what_activations_it_has() -> None:
    with pytest.raises(SurgeryError, match=r"VisionTransformer runs no ReLU.*GELU x6"):
        convert(timm.create_model("test_vit", pretrained=False))


def test_an_unknown_arm_is_refused() -> None:
    model = mlp()
    with pytest.raises(SurgeryError, match=r"'swoosh'.*arelu, arelu-frozen, leaky"):
        convert(model, arm="swoosh", example_input=ROW)
    assert len(relus(model)) == 5


def test_a_plan_for_a_model_that_has_changed_since_is_refused() -> None:
    model = mlp()
    plan = make_plan(find_sites(model, ROW))
    model[9] = nn.GELU()
    with pytest.raises(SurgeryError, match="9 is a GELU, not a ReLU"):
        apply_plan(model, plan)
    assert relus(model) == ["1", "3", "5", "7"]


def test_a_second_conversion_finds_nothing() -> None:
    model = mlp()
    convert(model, example_input=ROW)
    with pytest.raises(SurgeryError, match="runs no ReLU"):
        convert(model, example_input=ROW)


# The record -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Aliased, mlp], ids=["aliased", "plain"])
def test_a_recorded_surgery_is_repeated_so_that_a_strict_load_gives_the_same_model(
    build: Callable[[], nn.Module],
) -> None:
    trained = build()
    x = torch.randn(5, next(trained.parameters()).shape[1])
    record = json.loads(json.dumps(convert(trained, example_input=x).to_json()))
    with torch.no_grad():
        for _, module in named_arelus(trained):
            module.alpha.uniform_(0.02, 0.98)
            module.beta.normal_()
    rebuilt = build()
    restore_sites(rebuilt, record["sites"])
    rebuilt.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(rebuilt(x), trained(x))
    assert {n: m.cap for n, m in named_arelus(rebuilt)} == {
        n: m.cap for n, m in named_arelus(trained)
    }


def test_a_recorded_exclusion_is_repeated() -> None:
    record = convert(mlp(3), exclude=["1"], example_input=ROW).to_json()
    rebuilt = mlp(3)
    restore_sites(rebuilt, record["sites"])
    assert relus(rebuilt) == ["1"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda m: m.pop(9), "no module 9"), (lambda m: m.__setitem__(9, nn.GELU()), "9 is a GELU")],
    ids=["the module is gone", "the module is another"],
)
def test_a_record_that_does_not_fit_is_refused_and_the_model_stays(
    spoil: Callable[[nn.Sequential], object], message: str
) -> None:
    record = convert(mlp(5), example_input=ROW).to_json()
    other = mlp(5)
    del other[10]
    spoil(other)
    with pytest.raises(SurgeryError, match=message):
        restore_sites(other, record["sites"])
    assert relus(other) == ["1", "3", "5", "7"]


# In place ---------------------------------------------------------------------------------------------------------------


class ReadsWhatWasOverwritten(nn.Module):
    """As some backbones do by intent or accident: the shortcut holds what an in-place ReLU has made of it."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.conv(x)
        return shortcut + 2 * self.act(shortcut)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_site_overwrites_its_input_where_the_relu_did(inplace: bool, compiled: bool) -> None:
    torch.manual_seed(0)
    model = ReadsWhatWasOverwritten(inplace)
    convert(model, init="paper", example_input=torch.zeros(1, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    (torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model)(
        x
    ).square().sum().backward()
    got = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    plain = model.conv(x)
    site = model.get_submodule("act")
    assert isinstance(site, AReLU)
    site.inplace = False
    y = site(plain)
    ((y if inplace else plain) + 2 * y).square().sum().backward()
    wanted = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(got) == len(wanted) == 4
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_an_in_place_net_keeps_no_more_for_its_backward_pass_than_before() -> None:
    def kept(model: nn.Module) -> int:
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        memory: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and tensor.numel() > 1:
                memory[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 32, 32)).sum()
        return sum(memory.values())

    original = timm.create_model("test_resnet").train()
    swapped = copy.deepcopy(original)
    convert(swapped, example_input=torch.zeros(1, 3, 32, 32))
    assert kept(swapped) <= 1.01 * kept(original)
