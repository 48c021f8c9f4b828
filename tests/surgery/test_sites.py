"""Finding sites: every ReLU of the forward pass, where it is and what it is; the model stays as it was."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from arelu_tl.activation.arelu import named_arelus
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.relu_calls import ReLUTap
from arelu_tl.surgery.sites import find_sites


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


class Block(nn.Module):
    """A residual block whose ReLU runs twice and may belong to others too."""

    def __init__(self, relu: nn.Module | None = None) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.relu = relu or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.lin(self.relu(x)) + x)


class Function(nn.Module):
    """A function as a module, over a layer."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], layer: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer = layer or nn.Linear(2, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


ROWS = torch.tensor([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0], [7.0, 8.0]])


def names(model: nn.Module, x: Tensor = ROWS) -> list[str]:
    return [site.name for site in find_sites(model, x)]


# Which ------------------------------------------------------------------------------------------------------------------


def test_every_relu_is_found_and_nothing_else() -> None:
    model = nn.Sequential(
        nn.ReLU(inplace=True),
        nn.GELU(),
        nn.Sequential(nn.ReLU6(), nn.LeakyReLU()),
        nn.Hardtanh(0, 6),
    )
    sites = find_sites(model, ROWS.clone())
    assert [(s.name, s.operator, s.inplace, s.cap) for s in sites] == [
        ("0", "relu", True, None),
        ("2.0", "relu6", False, 6.0),
        ("3", "relu6", False, 6.0),
    ]


def test_sites_come_in_the_order_of_the_forward_pass_and_what_does_not_run_comes_last() -> None:
    sites = find_sites(Backwards(), ROWS)
    assert [(s.name, s.call, s.calls, s.runs) for s in sites] == [
        ("first", 1, 1, True),
        ("second", 1, 1, True),
        ("third", 1, 1, True),
        ("unused", 0, 0, False),
    ]


def test_a_timm_model_needs_no_example() -> None:
    sites = find_sites(timm.create_model("test_resnet", pretrained=False).double())
    assert len(sites) == 12
    assert all(site.calls == 1 and site.kind == "module" for site in sites)


def test_a_model_on_the_meta_device_needs_no_values() -> None:
    with torch.device("meta"):
        model = timm.create_model("test_resnet", pretrained=False)
    found = find_sites(timm.create_model("test_resnet", pretrained=False))
    assert find_sites(model) == found
    assert found[0].shape == (1, 16, 80, 80)
    assert {s.negative_share for s in found} == {None}


def test_a_model_that_is_no_timm_model_and_runs_on_pictures_needs_no_example() -> None:
    assert [s.shape for s in find_sites(nn.Sequential(nn.Conv2d(3, 4, 7), nn.ReLU()))] == [
        (1, 4, 218, 218)
    ]


def test_a_model_without_relu_has_no_sites() -> None:
    assert find_sites(timm.create_model("test_vit", pretrained=False)) == []


def test_a_model_that_cannot_run_on_the_example_is_told_so() -> None:
    with pytest.raises(
        SurgeryError, match=r"Backwards cannot run on input of shape \(4, 3\).*example_input"
    ):
        find_sites(Backwards(), torch.zeros(4, 3))


@pytest.mark.parametrize(
    "example", [torch.randn(4, 2), torch.randn(4, 3)], ids=["forward succeeds", "forward fails"]
)
def test_finding_leaves_modes_statistics_hooks_and_gradients(example: Tensor) -> None:
    model = Backwards().train()
    model.norm.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    everywhere = torch.nn.modules.module
    hooks = [len(everywhere._global_forward_hooks), len(everywhere._global_forward_pre_hooks)]
    try:
        find_sites(model, example)
    except SurgeryError:
        assert example.shape == (4, 3)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert [
        len(everywhere._global_forward_hooks),
        len(everywhere._global_forward_pre_hooks),
    ] == hooks
    assert all(p.grad is None for p in model.parameters())


def test_finding_leaves_the_tensors_of_a_module_under_two_names_and_of_two_modules() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()
            self.norm = nn.BatchNorm2d(3)
            self.b.weight = self.a.weight
            self.again = nn.Sequential(self.a, self.norm)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.again(self.b(x)))

    model = Tied().eval()
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    assert len(find_sites(model)) == 1  # without an example, so on the meta device
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_finding_does_not_draw_random_numbers() -> None:
    model = Backwards().train()
    before = torch.get_rng_state()
    find_sites(model, ROWS)
    assert torch.equal(torch.get_rng_state(), before)


# Shared and functional --------------------------------------------------------------------------------------------------


def test_each_call_of_a_module_is_a_site_of_its_own() -> None:
    sites = find_sites(Shared(), ROWS)
    assert [(s.name, s.names, s.kind, s.call, s.calls) for s in sites] == [
        ("stage.1", ("stage.1",), "shared", 1, 3),
        ("relu_sites.0", ("relu_sites.0", "relu", "stage.1"), "shared", 2, 3),
        ("block.1", ("block.1", "again.1"), "module", 1, 1),
        ("relu_sites.1", ("relu_sites.1", "relu", "stage.1"), "shared", 3, 3),
    ]


def test_sharing_makes_all_calls_of_a_module_one_site_name() -> None:
    sites = find_sites(Shared(), ROWS, share=True)
    assert [(s.name, s.names, s.owner) for s in sites if s.kind == "shared"] == [
        ("relu", ("relu", "stage.1"), None)
    ] * 3


def test_a_relu_several_times_in_a_sequential_is_exchanged_slot_by_slot() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu, relu)
    assert names(model) == ["1", "3", "4"]
    convert(model, example_input=ROWS)
    assert len({id(m) for _, m in named_arelus(model)}) == 3


def test_calls_within_a_block_belong_to_the_block() -> None:
    model = nn.Sequential(Block(), Block())
    assert names(model) == ["0.relu_sites.0", "0.relu_sites.1", "1.relu_sites.0", "1.relu_sites.1"]


def test_a_relu_shared_by_two_blocks_is_handed_out_by_each() -> None:
    relu = nn.ReLU()
    sites = find_sites(nn.Sequential(Block(relu), Block(relu)), ROWS)
    assert [(s.owner, s.call, s.calls) for s in sites] == [
        ("0", 1, 4),
        ("0", 2, 4),
        ("1", 3, 4),
        ("1", 4, 4),
    ]
    assert [s.names[1:] for s in sites] == [("0.relu", "1.relu")] * 4


def test_the_calls_of_a_block_that_runs_twice_belong_to_what_runs_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x))

    model = nn.Sequential(Twice(), nn.Linear(2, 2))
    assert names(model) == [f"0.relu_sites.{k}" for k in range(4)]
    convert(model, example_input=ROWS)
    assert len({id(p) for _, m in named_arelus(model) for p in m.parameters()}) == 8


def test_a_block_that_runs_twice_in_a_sequential_alone_is_refused() -> None:
    block = Block()
    with pytest.raises(
        SurgeryError, match="0 calls relu where it can be given no activation of its own"
    ):
        find_sites(nn.Sequential(block, block), ROWS)


def test_functional_calls_belong_to_the_module_whose_method_makes_them() -> None:
    model = nn.Sequential(Function(F.relu), Function(lambda x: F.relu6(x) + F.relu(x)))
    sites = find_sites(model, ROWS)
    assert [(s.name, s.kind, s.operator) for s in sites] == [
        ("0.relu_sites.0", "functional", "relu"),
        ("1.relu_sites.0", "functional", "relu6"),
        ("1.relu_sites.1", "functional", "relu"),
    ]


def test_a_plain_model_may_itself_own_its_calls() -> None:
    (site,) = find_sites(Function(F.relu), ROWS)
    assert (site.name, site.owner) == ("relu_sites.0", "")


def test_a_root_that_is_also_entered_through_forward_features_cannot_own_calls() -> None:
    class Timmish(Function):
        def forward_features(self, x: Tensor) -> Tensor:
            return self.forward(x)

    with pytest.raises(
        SurgeryError, match="Timmish calls relu where it can be given no activation"
    ):
        find_sites(Timmish(F.relu), ROWS)


# What they are ----------------------------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self, gate: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.reduce, self.act, self.expand, self.gate = (
            nn.Conv2d(4, 2, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(2, 4, 1),
            gate,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


def test_relus_of_squeeze_excite_and_the_gate_of_a_hard_sigmoid_are_recognised() -> None:
    hard_sigmoid: Callable[[Tensor], Tensor] = lambda x: F.relu6(x + 3.0) / 6.0  # noqa: E731
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), SqueezeExcite(hard_sigmoid), nn.ReLU())
    assert [s.role for s in find_sites(model, torch.randn(2, 3, 8, 8))] == [
        "activation", "squeeze-excite", "gate", "activation",
    ]  # fmt: skip


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu6(x + 3)": lambda x: F.relu6(x + 3),
    "F.relu6(3 + x)": lambda x: F.relu6(3 + x),
    "relu6 in place": lambda x: F.relu6(x.add_(3.0), inplace=True),
    "clamp": lambda x: x.add(3.0).clamp_(0, 6),
    "hardtanh": lambda x: F.hardtanh(x + 3.0, 0, 6),
    "hard swish": lambda x: x * F.relu6(x + 3.0) / 6,
    "module": nn.Sequential(Function(lambda x: x + 3, nn.Identity()), nn.ReLU6()),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES.keys())
def test_a_relu6_of_x_plus_3_is_a_gate_and_stays(gate: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(Function(lambda x: gate(F.relu(x))), nn.Linear(2, 2))
    assert sorted(s.role for s in find_sites(model, ROWS)) == ["activation", "gate"]
    assert convert(model, example_input=ROWS).replaced == 1


def test_hard_mish_is_a_gate_and_stays() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2), nn.ReLU(), Function(lambda x: 0.5 * x * torch.add(x, other=2).clamp(0, 2))
    )
    assert [s.role for s in find_sites(model, ROWS)] == ["activation", "gate"]
    assert convert(model, example_input=ROWS).replaced == 1


def test_a_relu_that_is_an_operand_of_a_matrix_product_starts_at_the_least_leak() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2),
        Function(lambda x: F.relu(x).transpose(0, 1) @ x),
        nn.ReLU(),
        nn.Linear(2, 2),
    )
    report = convert(model, example_input=ROWS)
    assert [(p.site.role, p.alpha0) for p in report.sites] == [
        ("kernel", 0.01),
        ("activation", 0.9),
    ]


@pytest.mark.parametrize(
    "shifted", [lambda x: F.relu6(x + 2), lambda x: F.relu(x + 3), lambda x: F.relu6(x - 3)]
)
def test_another_shift_or_no_cap_is_no_gate(shifted: Callable[[Tensor], Tensor]) -> None:
    assert [s.role for s in find_sites(Function(shifted), ROWS)] == ["activation"]


SQUARES: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda x: F.relu(x).square(),
    "torch.square": lambda x: torch.square(F.relu(x)),
    "** 2": lambda x: F.relu(x) ** 2,
    "pow": lambda x: torch.pow(F.relu(x), 2),
    "y * y": lambda x: (y := F.relu(x)) * y,
    "in place": lambda x: F.relu(x).square_(),
}


@pytest.mark.parametrize("square", SQUARES.values(), ids=SQUARES.keys())
def test_a_relu_whose_output_is_multiplied_by_itself_is_squared(
    square: Callable[[Tensor], Tensor],
) -> None:
    assert [s.role for s in find_sites(Function(square), ROWS)] == ["squared"]


@pytest.mark.parametrize(
    "other", [lambda x: F.relu(x) * x, lambda x: F.relu(x) ** 3, lambda x: 2 * F.relu(x)]
)
def test_another_product_or_power_is_not_squared(other: Callable[[Tensor], Tensor]) -> None:
    assert [s.role for s in find_sites(Function(other), ROWS)] == ["activation"]


def test_the_layer_or_operation_before_a_site_is_named() -> None:
    with torch.device("meta"):
        before = {
            s.name: s.preceding for s in find_sites(timm.create_model("resnet18", pretrained=False))
        }
    assert before["act1"] == "bn1 (batch_norm)"
    assert before["layer1.0.act1"] == "layer1.0.bn1 (batch_norm)"
    assert before["layer1.0.act2"] == before["layer4.1.act2"] == "add"
    assert find_sites(nn.Sequential(nn.ReLU()), ROWS)[0].preceding == "input"


LAYOUTS: dict[str, tuple[nn.Module, Tensor, tuple[int, ...], int]] = {
    "convolution": (nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 5, 5), (1, 4, 5, 5), 1),
    "linear": (nn.Linear(3, 4), torch.zeros(1, 5, 5, 3), (1, 5, 5, 4), -1),
    "layer norm": (nn.LayerNorm(3), torch.zeros(1, 5, 5, 3), (1, 5, 5, 3), -1),
    "tokens": (nn.Linear(3, 4), torch.zeros(1, 7, 3), (1, 7, 4), -1),
    "convolution, flattened": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2)), torch.zeros(1, 3, 5, 5), (1, 4, 25), 1),
    "convolution, then channels last": (
        Function(lambda x: x.permute(0, 2, 3, 1), nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 5, 6), (1, 5, 6, 4), 3,
    ),
    "tokens, then channels first": (
        Function(lambda x: x.transpose(1, 2), nn.Linear(3, 4)), torch.zeros(1, 7, 3), (1, 4, 7), 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "x", "shape", "channels"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_shape_and_channels_dimension_are_those_of_the_sites_input(
    layer: nn.Module, x: Tensor, shape: tuple[int, ...], channels: int
) -> None:
    (site,) = find_sites(nn.Sequential(layer, nn.ReLU()), x)
    assert (site.shape, site.channel_dim % len(shape)) == (shape, channels % len(shape))
    convert(model := nn.Sequential(layer, nn.ReLU()), example_input=x, granularity="channel")
    assert model[1].alpha.numel() == site.channels == shape[channels]


@pytest.mark.parametrize("cap", [None, 6.0])
def test_the_leak_ratio_compares_what_is_cut_off_with_what_passes(cap: float | None) -> None:
    act = nn.ReLU() if cap is None else nn.ReLU6()
    symmetric = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    (site,) = find_sites(nn.Sequential(act), symmetric)
    assert site.leak_ratio == pytest.approx(1, rel=0.1)
    (more,) = find_sites(nn.Sequential(act), symmetric - 1)
    (less,) = find_sites(nn.Sequential(act), symmetric + 1)
    assert less.leak_ratio < 1 < more.leak_ratio
    (silent,) = find_sites(nn.Sequential(act), -symmetric.abs() - 1)
    assert silent.leak_ratio is None or math.isfinite(silent.leak_ratio)


def test_the_share_of_negative_inputs_is_measured_on_the_example() -> None:
    assert [s.negative_share for s in find_sites(nn.Sequential(nn.ReLU(), nn.ReLU()), ROWS)] == [
        2 / 8,
        0.0,
    ]


# Refusals ---------------------------------------------------------------------------------------------------------------


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.relu(x)


@pytest.mark.parametrize(
    "hidden",
    [scripted, torch.ops.aten.relu, torch.ops.aten.clamp_min_],
    ids=["script", "aten", "aten_"],
)
def test_a_relu_that_surgery_cannot_reach_is_refused_by_name(hidden: Callable[..., Tensor]) -> None:
    call = (lambda x: hidden(x, 0)) if hidden is torch.ops.aten.clamp_min_ else hidden
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Function(call))
    for examine in (find_sites, lambda m, x: convert(m, example_input=x)):
        with pytest.raises(
            SurgeryError, match=r"1 ReLUs are executed in a way that surgery cannot replace, in 2"
        ):
            examine(model, ROWS)
    assert isinstance(model[1], nn.ReLU)


def test_a_forward_pass_that_runs_other_relus_in_training_is_refused_by_name() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.act, self.extra = nn.Linear(2, 2), nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.lin(x))
            return y + self.extra(x) if self.training else y

    model = nn.Sequential(nn.Linear(2, 2), Auxiliary())
    with pytest.raises(
        SurgeryError, match=r"training runs other ReLUs than evaluation does, in 1\.extra"
    ):
        convert(model, example_input=ROWS)
    assert not list(named_arelus(model))


# Families ---------------------------------------------------------------------------------------------------------------

FAMILIES = {
    "resnet18": {("module", "relu", "activation")},
    "mobilenetv2_100": {("module", "relu6", "activation")},
    "tf_efficientnet_lite0": {("module", "relu6", "activation")},
    "mobilevitv2_050": {("functional", "relu", "activation")},
    "dla34": {("module", "relu", "activation"), ("shared", "relu", "activation")},
    "res2net50_14w_8s": {("module", "relu", "activation"), ("shared", "relu", "activation")},
    "hrnet_w18_small": {("module", "relu", "activation"), ("shared", "relu", "activation")},
    "efficientvit_b0": {("shared", "relu", "kernel")},
    "legacy_seresnet18": {
        ("module", "relu", "activation"), ("shared", "relu", "activation"), ("module", "relu", "squeeze-excite"),
    },
    "caformer_s18": {("module", "relu", "squared")},
    "regnety_002": {("module", "relu", "activation"), ("module", "relu", "squeeze-excite")},
}  # fmt: skip


SHORTER = {"res2net50_14w_8s": {"layers": (1, 1, 1, 1)}}  # one block a stage is enough


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_converted_with_no_relu_left_and_parameters_of_its_own_at_each_site(
    name: str,
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **SHORTER.get(name, {})).eval()
    state = model.state_dict()
    seen: list[None] = []

    def executed() -> int:
        seen.clear()
        with torch.no_grad(), ReLUTap(lambda: seen.append(None)):
            model(torch.zeros(1, *model.pretrained_cfg["input_size"], device="meta"))
        return len(seen)

    before = executed()
    report = convert(model)
    running = [p.site for p in report.sites if p.site.runs]
    assert {(s.kind, s.operator, s.role) for s in running} == FAMILIES[name]
    assert before == len(running) == report.replaced > 0
    assert executed() == 0
    assert len({id(p) for _, m in named_arelus(model) for p in m.parameters()}) == 2 * before
    added = {
        re.sub(r"\.?(alpha|beta|scale)$", "", key)
        for key in model.state_dict().keys() - state.keys()
    }
    assert added == {s.name for s in running}
    assert state.keys() <= model.state_dict().keys()


# Known faults -----------------------------------------------------------------------------------------------------------


def test_a_module_that_does_not_run_has_the_operator_that_it_would_have_if_it_ran() -> None:
    model = Backwards()
    model.unused = nn.Hardtanh(0, 6)
    assert find_sites(model, ROWS)[-1].operator == "relu6"


def test_an_empty_input_has_no_share_of_negatives() -> None:
    (site,) = find_sites(Function(lambda x: F.relu(x[:0]).sum() + x), ROWS)
    assert site.negative_share in (None, 0.0)


def test_the_example_stays_as_it_was() -> None:
    x = ROWS.clone()
    find_sites(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), x)
    assert torch.equal(x, ROWS)


def test_a_model_that_needs_values_is_examined_in_training_too() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.act, self.extra = nn.Linear(2, 2), nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.lin(x))
            y = y / 2 if y.max().item() > 1e9 else y
            return y + self.extra(x) if self.training else y

    with pytest.raises(SurgeryError, match="training runs other ReLUs"):
        convert(Auxiliary(), example_input=ROWS)
