"""Handing a module's ReLU calls out: each its own activation, and the model is still what it was to everyone else."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointError, checkpoint

from arelu_tl.activation.arelu import AReLU, named_arelus
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.apply import restore_sites
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.relu_calls import ReLUTap
from arelu_tl.surgery.routing import is_routed, route
from arelu_tl.surgery.sites import find_sites


class Block(nn.Module):
    """One ReLU called twice and a functional one, around whatever stands inside."""

    def __init__(self, inner: nn.Module | None = None, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.relu = nn.ReLU(inplace=True)
        self.inner = inner or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(x))
        y = self.inner(F.relu(self.second(y) - 0.1))
        return self.relu(self.first(y) + x)


def distinct(model: nn.Module) -> nn.Module:
    """Give each AReLU slopes of its own, so that handing out the wrong one shows."""
    with torch.no_grad():
        for k, (_, module) in enumerate(named_arelus(model)):
            module.alpha.fill_(0.05 + 0.9 * ((k * 7) % 11) / 11)
            module.beta.fill_(-1 + 2 * ((k * 3) % 7) / 7)
    return model


def by_hand(
    block: Block,
    x: Tensor,
    sites: list[Callable[[Tensor], Tensor]],
    inner: Callable[[Tensor], Tensor],
) -> Tensor:
    y = sites[0](block.first(x))
    y = inner(sites[1](block.second(y) - 0.1))
    return sites[2](block.first(y) + x)


def executed(model: nn.Module, x: Tensor) -> int:
    seen: list[None] = []
    with torch.no_grad(), ReLUTap(lambda: seen.append(None)):
        model(x)
    return len(seen)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    model(x).square().sum().backward()
    return {
        "input": x.grad,
        **{n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
    }


def assert_same_gradients(got: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient is not None, name
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def block(x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = Block(Block())
    convert(model, init="paper", example_input=x)
    return distinct(model)


# Which activation goes where --------------------------------------------------------------------------------------------


def test_the_kth_call_gets_the_kth_activation_in_nested_blocks(block: Block, x: Tensor) -> None:
    sites, inner = list(block.relu_sites.values()), list(block.inner.relu_sites.values())
    assert len(sites) == len(inner) == 3
    plain = copy.deepcopy(block)
    plain.__class__ = plain.inner.__class__ = Block
    wanted = by_hand(plain, x, sites, lambda y: by_hand(plain.inner, y, inner, nn.Identity()))
    assert torch.equal(block(x), wanted)
    assert executed(block, x) == 0


@pytest.mark.parametrize(
    "excluded",
    [
        ["relu_sites.1"],
        ["relu"],
        ["inner.relu_sites.0"],
        ["inner.relu", "relu_sites.0"],
        ["inner.*"],
        ["relu_sites.*"],
    ],
    ids=" ".join,
)
def test_excluded_calls_pass_through_nested_owners_as_relus(excluded: list[str], x: Tensor) -> None:
    torch.manual_seed(0)
    model = Block(Block())
    plain = copy.deepcopy(model)
    report = convert(model, init="paper", exclude=excluded, example_input=x)
    distinct(model)
    arelus = iter(
        [m for owner in (model, model.inner) if is_routed(owner) for m in owner.relu_sites.values()]
    )
    order = [p for p in report.sites if not p.site.name.startswith("inner.")]
    order += [p for p in report.sites if p.site.name.startswith("inner.")]
    acts = [next(arelus) if p.status == "replaced" else F.relu for p in order]
    wanted = by_hand(plain, x, acts[:3], lambda y: by_hand(plain.inner, y, acts[3:], nn.Identity()))
    assert torch.equal(model(x), wanted)
    assert executed(model, x) == 6 - report.replaced > 0


def test_including_one_call_leaves_the_others(x: Tensor) -> None:
    model = Block(Block())
    assert convert(model, include=["inner.relu_sites.1"], example_input=x).replaced == 1
    assert executed(model, x) == 5
    assert not is_routed(model)


def test_a_gate_within_an_owner_stays(x: Tensor) -> None:
    class HardSwish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * F.relu6(x + 3) / 6

    model = Block(HardSwish())
    assert convert(model, example_input=x).replaced == 3
    assert executed(model, x) == 1


def test_a_relu_module_all_of_whose_calls_are_routed_is_none_any_more(block: Block) -> None:
    assert not any(isinstance(m, nn.ReLU) for m in block.modules())
    assert sum(p.numel() for _, m in named_arelus(block) for p in m.parameters()) == 12


def test_undoing_gives_back_class_and_attributes() -> None:
    model = Block()
    before = sorted(vars(model)), list(model._modules)
    undo = route(model, [("0", AReLU()), None, ("2", AReLU())])
    assert is_routed(model)
    undo()
    assert type(model) is Block
    assert (sorted(vars(model)), list(model._modules)) == before


def test_a_routed_module_is_not_routed_again(block: Block, x: Tensor) -> None:
    with pytest.raises(SurgeryError, match="Block has been operated on already"):
        route(block, [("0", AReLU())])
    with pytest.raises(SurgeryError, match="has been operated on already"):
        find_sites(block, x)


@pytest.mark.parametrize(("calls", "told"), [(0, "fewer"), (1, "fewer"), (3, "more")])
def test_a_forward_that_runs_another_number_of_relus_than_examined_is_an_error(
    calls: int, told: str
) -> None:
    class Changing(nn.Module):
        calls = 2

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.calls):
                x = F.relu(x - 1)
            return x

    model = nn.Sequential(nn.Linear(4, 4), Changing())
    convert(model, example_input=torch.zeros(1, 4))
    model[1].calls = calls
    with pytest.raises(SurgeryError, match=f"Changing ran {told} ReLUs than the 2 .* `exclude`"):
        model(torch.zeros(1, 4))
    model[1].calls = 2
    assert model(torch.zeros(1, 4)).shape == (1, 4)


def test_an_error_within_a_forward_comes_through_as_it_is(block: Block, x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        block(torch.zeros(1, 5))
    assert block(x).isfinite().all()


def test_relus_outside_of_a_routed_module_stay_relus(block: Block, x: Tensor) -> None:
    block(x)
    assert torch.equal(F.relu(x), x.clamp(min=0))


# What a block can still do ----------------------------------------------------------------------------------------------


def copies() -> dict[str, Callable[[nn.Module], nn.Module]]:
    def saved(model: nn.Module) -> nn.Module:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
        "torch.save": saved,
    }


@pytest.mark.parametrize("duplicate", copies().values(), ids=copies().keys())
def test_a_copy_is_routed_and_independent(
    duplicate: Callable[[nn.Module], nn.Module], block: Block, x: Tensor
) -> None:
    twin = duplicate(block)
    before = block(x)
    assert type(twin) is type(block)
    assert twin.state_dict().keys() == block.state_dict().keys()
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for _, module in named_arelus(twin):
            module.alpha.fill_(0.5)
    assert not torch.equal(twin(x), before)
    assert torch.equal(block(x), before)


def test_class_name_documentation_and_isinstance_stay(block: Block) -> None:
    assert isinstance(block, Block)
    assert (type(block).__name__, type(block).__qualname__) == (Block.__name__, Block.__qualname__)
    assert (type(block).__module__, type(block).__doc__) == (Block.__module__, Block.__doc__)
    assert repr(block).startswith("Block(")


def test_a_module_of_the_same_class_elsewhere_is_left_alone(block: Block, x: Tensor) -> None:
    other = Block()
    assert executed(other, x) == 3
    assert type(other) is Block


def test_forward_hooks_on_the_owner_run_once(block: Block, x: Tensor) -> None:
    seen: list[Tensor] = []
    block.register_forward_hook(lambda _, __, output: seen.append(output))
    assert torch.equal(block(x), seen[0])
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_move_to_another_format_takes_the_sites_along(
    dtype: torch.dtype, block: Block, x: Tensor
) -> None:
    block.to(dtype)
    assert {p.dtype for p in block.parameters()} == {dtype}
    assert block(x.to(dtype)).dtype == dtype


def test_modes_reach_the_sites(block: Block) -> None:
    assert {m.training for m in block.eval().modules()} == {False}
    assert {m.training for m in block.train().modules()} == {True}


def test_compiled_in_one_graph_it_computes_the_same(block: Block, x: Tensor) -> None:
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    wanted = gradients(block, x)
    assert_same_gradients(
        {k.removeprefix("_orig_mod."): v for k, v in gradients(compiled, x).items()}, wanted
    )


def test_exported_it_computes_the_same_with_no_relu_in_the_graph(block: Block, x: Tensor) -> None:
    program = torch.export.export(block.eval(), (x,), strict=False)
    torch.testing.assert_close(program.module()(x), block(x))
    assert not [node for node in program.graph.nodes if "relu." in str(node.target)]


def test_checkpointing_around_an_owner_gives_equal_gradients(block: Block, x: Tensor) -> None:
    class Outside(nn.Module):
        def __init__(self, block: nn.Module, on: bool) -> None:
            super().__init__()
            self.block, self.on = block, on

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=False) if self.on else self.block(x)

    assert_same_gradients(gradients(Outside(block, True), x), gradients(Outside(block, False), x))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_distributed_data_parallel_gives_equal_gradients_for_every_site(
    block: Block, x: Tensor
) -> None:
    wanted = gradients(block, x)
    got = gradients(DistributedDataParallel(block), x)
    assert_same_gradients({k.removeprefix("module."): v for k, v in got.items()}, wanted)


def test_threads_do_not_disturb_each_other(block: Block, x: Tensor) -> None:
    from concurrent.futures import ThreadPoolExecutor

    wanted = block(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, wanted) for y in pool.map(lambda _: block(x), range(40)))


# What a timm model can still do -----------------------------------------------------------------------------------------

TIMM = ("mobilevitv2_050", "legacy_seresnet18")
PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=TIMM)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """(untouched, routed); whoever changes one works on a copy."""
    torch.manual_seed(0)
    untouched = timm.create_model(request.param, pretrained=False, num_classes=5).eval()
    routed = copy.deepcopy(untouched)
    convert(routed, init="near-relu", example_input=PICTURES)
    return untouched, distinct(routed)


def test_a_timm_model_keeps_its_class_its_names_and_its_weights(
    pair: tuple[nn.Module, nn.Module],
) -> None:
    untouched, routed = pair
    assert type(routed) is type(untouched)
    assert any(is_routed(m) for m in routed.modules())
    state, added = routed.state_dict(), routed.state_dict().keys() - untouched.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in untouched.state_dict().items())
    assert {key.rpartition(".")[2] for key in added} == {"alpha", "beta", "scale"}
    assert routed.default_cfg == untouched.default_cfg


def test_a_timm_model_takes_another_classifier(pair: tuple[nn.Module, nn.Module]) -> None:
    model = copy.deepcopy(pair[1])
    model.reset_classifier(7)
    assert model(PICTURES).shape == (2, 7)
    model.reset_classifier(0)
    assert model(PICTURES).shape == (2, model.num_features)


def test_a_timm_models_features_and_head_make_its_output(pair: tuple[nn.Module, nn.Module]) -> None:
    _, model = pair
    assert torch.equal(model.forward_head(model.forward_features(PICTURES)), model(PICTURES))


def test_a_timm_models_intermediates_are_those_of_its_features(
    pair: tuple[nn.Module, nn.Module],
) -> None:
    untouched, model = pair
    last, maps = model.forward_intermediates(PICTURES)
    assert torch.equal(last, model.forward_features(PICTURES))
    assert [m.shape for m in maps] == [
        m.shape for m in untouched.forward_intermediates(PICTURES)[1]
    ]
    assert not torch.equal(maps[-1], untouched.forward_intermediates(PICTURES)[1][-1])


@pytest.mark.parametrize("duplicate", copies().values(), ids=copies().keys())
def test_a_timm_model_can_be_copied_and_saved(
    duplicate: Callable[[nn.Module], nn.Module], pair: tuple[nn.Module, nn.Module]
) -> None:
    assert torch.equal(duplicate(pair[1])(PICTURES), pair[1](PICTURES))


def test_a_timm_model_trains_and_evaluates(pair: tuple[nn.Module, nn.Module]) -> None:
    model = copy.deepcopy(pair[1])
    before = model(PICTURES)
    missing = [
        n
        for n, g in gradients(model.train(), PICTURES).items()
        if g is None or not g.isfinite().all()
    ]
    assert missing == []
    model.load_state_dict(pair[1].state_dict())
    assert torch.equal(model.eval()(PICTURES), before)


@pytest.mark.parametrize("name", ["mobilevitv2_050", "efficientvit_b0"])
def test_gradient_checkpointing_of_a_timm_model_gives_equal_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5).eval()
    convert(model, init="near-relu", example_input=PICTURES)
    distinct(model)
    wanted = gradients(model, PICTURES)
    model.set_grad_checkpointing(True)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    assert_same_gradients(gradients(model, PICTURES), wanted)


@pytest.mark.parametrize(
    ("name", "partly"),
    [("dla46_c", False), ("mobilevitv2_050", True), ("legacy_seresnet18", True)]
    + [
        pytest.param("dla46_c", True, marks=pytest.mark.slow),
        pytest.param("mobilevitv2_050", False, marks=pytest.mark.slow),
    ]
    + [pytest.param("legacy_seresnet18", False, marks=pytest.mark.slow)],
)
def test_a_recorded_surgery_is_repeated_on_a_timm_model(name: str, partly: bool) -> None:
    def build() -> nn.Module:
        return timm.create_model(name, pretrained=False, num_classes=5).eval()

    trained = build()
    sites = [s.name for s in find_sites(trained) if s.owner is not None]
    excluded = sites[1::3] if partly else []
    report = convert(trained, init="near-relu", exclude=excluded, example_input=PICTURES)
    assert report.executed - report.replaced == len(excluded)
    distinct(trained)
    rebuilt = build()
    restore_sites(rebuilt, json.loads(json.dumps(report.to_json()))["sites"])
    rebuilt.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(rebuilt(PICTURES), trained(PICTURES))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilevitv2_050", "dla34", "efficientvit_b0"])
def test_a_timm_model_is_compiled_in_one_graph_and_exported(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5).eval()
    convert(model, init="near-relu", example_input=PICTURES)
    distinct(model)
    with torch.no_grad():
        wanted = model(PICTURES)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(PICTURES), wanted, rtol=1e-4, atol=1e-5)
        program = torch.export.export(model, (PICTURES,), strict=False)
        torch.testing.assert_close(program.module()(PICTURES), wanted, rtol=1e-4, atol=1e-5)


# Known faults -----------------------------------------------------------------------------------------------------------


def test_batchnorm_within_a_routed_module_is_corrected() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x)))

    assert (
        convert(
            nn.Sequential(Normed(), nn.Conv2d(4, 2, 1)), calibration=[PICTURES]
        ).batchnorm_layers
        == 1
    )


def test_each_replacement_has_the_name_that_its_site_told(x: Tensor) -> None:
    model = Block()
    report = convert(model, exclude=["relu_sites.0"], example_input=x)
    assert [n for n, _ in named_arelus(model)] == [
        p.site.name for p in report.sites if p.status == "replaced"
    ]


def test_a_relu_in_a_slot_and_in_a_forward_is_none_any_more(x: Tensor) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()
            self.stage = nn.Sequential(nn.Linear(4, 4), self.relu)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.stage(x) - 1)

    model = Both()
    convert(model, example_input=x)
    assert executed(model, x) == 0
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_within_an_owner_is_an_error_and_never_a_wrong_gradient(
    reentrant: bool, x: Tensor
) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.on = nn.Linear(4, 4), False

        def part(self, x: Tensor) -> Tensor:
            return F.relu(self.lin(x))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.part, x, use_reentrant=reentrant) if self.on else self.part(x)

    model = Inside()
    convert(model, init="paper", example_input=x)
    model.on = True
    # Either torch sees that the recomputation differs, or, where it would not, the owner does.
    with pytest.raises((SurgeryError, CheckpointError)):
        gradients(model, x)
