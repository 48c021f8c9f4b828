"""A converted model can be traced, exported, taken apart and transformed as the one that it was, and computes the same."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.fx
import torch.nn.functional as F  # noqa: N812 (its usual name)
from timm.models._features_fx import FeatureGraphNet, GraphExtractNet
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.feature_extraction import create_feature_extractor

from arelu_tl.activation.catalogue import SURGERY_ARMS, named_activations
from arelu_tl.activation.rivals import Maxout
from arelu_tl.surgery.convert import SurgeryReport, convert

PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """One module called twice, and functions: what surgery hands out, in place and not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.norm = (
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.BatchNorm2d(width),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        y = F.relu6(self.second(y) - 0.1)
        return self.relu(y + torch.relu(x))


def routed() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU())
    return nn.Sequential(
        stem, Block(6), Block(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "test_resnet": (lambda: timm.create_model("test_resnet", num_classes=5), {}),
    "routed": (routed, {"granularity": "channel"}),
}
Converted = tuple[nn.Module, SurgeryReport]
# What torch says of its older exporters is for those who maintain them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(deprecated|legacy TorchScript|feature will be removed)"),
    pytest.mark.filterwarnings("error::torch.jit.TracerWarning"),
]


@pytest.fixture(scope="module", params=MODELS)
def converted(request: pytest.FixtureRequest) -> Converted:
    """In eval mode, with another slope at every site; whoever changes it works on a copy."""
    torch.manual_seed(0)
    build, options = MODELS[request.param]
    model = build().eval()
    report = convert(model, init="near-relu", example_input=PICTURES, **options)
    with torch.no_grad():
        for number, (_, site) in enumerate(named_activations(model)):
            site.alpha.add_(
                0.02
                * torch.arange(1, site.alpha.numel() + 1)
                / site.alpha.numel()
                * (number % 5 + 1)
            )
            site.beta.add_(0.5 * (number % 3))
    return model, report


@pytest.fixture
def wanted(converted: Converted) -> Tensor:
    with torch.no_grad():
        return converted[0](PICTURES)


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(
        found.detach(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max())
    )


def test_torch_jit_traces_saves_and_loads_it(converted: Converted, wanted: Tensor) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(converted[0], PICTURES[:1]), file)
    assert b"PythonOp" not in file.getvalue()
    file.seek(0)
    near(torch.jit.load(file)(PICTURES), wanted)


@pytest.mark.parametrize("arm", SURGERY_ARMS)
def test_the_site_of_every_arm_can_be_traced_symbolically_and_by_jit_without_a_warning(
    arm: str,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), nn.ReLU6()
    ).eval()
    convert(model, arm=arm, example_input=PICTURES)
    wanted = model(PICTURES).detach()
    near(torch.fx.symbolic_trace(model)(PICTURES), wanted)
    near(torch.jit.trace(model, PICTURES)(PICTURES), wanted)


def test_maxout_can_be_traced_symbolically() -> None:
    module = nn.Sequential(Maxout(3))
    assert torch.equal(torch.fx.symbolic_trace(module)(PICTURES), module(PICTURES))


def test_torchs_older_onnx_exporter_takes_it(
    converted: Converted, wanted: Tensor, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        converted[0],
        (PICTURES,),
        path,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch"}},
    )
    session = onnxruntime.InferenceSession(path)
    for pictures in (PICTURES, PICTURES[:1]):
        found = torch.from_numpy(session.run(None, {"x": pictures.numpy()})[0])
        near(found, wanted[: len(pictures)])


def test_a_symbolic_trace_has_a_step_a_site_and_can_be_copied_pickled_and_trained(
    converted: Converted, wanted: Tensor
) -> None:
    model, report = converted
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    steps = [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and node.target.__name__ == "arelu"
    ]
    assert len(steps) == report.replaced
    for each in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        near(each(PICTURES), wanted)
    graph(PICTURES).sum().backward()
    assert all(
        p.grad is not None
        for name, p in graph.named_parameters()
        if name.endswith(("alpha", "beta"))
    )


def test_torchvision_takes_features_at_a_site_by_its_name(
    converted: Converted, wanted: Tensor
) -> None:
    model, report = converted
    names = [planned.site.name for planned in report.sites if planned.status == "replaced"][1::4]
    seen: dict[str, Tensor] = {}
    twin = copy.deepcopy(model)
    for name in names:
        twin.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: seen.__setitem__(name, y.clone())
        )
    twin(PICTURES)
    for name, found in create_feature_extractor(model, names)(PICTURES).items():
        near(found, seen[name].detach())
    assert len(seen) == len(names) > 1
    assert not model.training


def test_timm_takes_features_through_its_graph_in_which_a_site_is_a_step() -> None:
    model = timm.create_model("test_resnet").eval()
    names = [planned.site.name for planned in convert(model, init="paper").sites]
    found = GraphExtractNet(model, names[-1:])(PICTURES)
    near(found, model.forward_features(PICTURES).detach())
    (untouched,) = model.forward_intermediates(PICTURES, indices=[2], intermediates_only=True)
    near(FeatureGraphNet(model, out_indices=(2,))(PICTURES)[0], untouched.detach())


def test_torch_export_takes_it(converted: Converted, wanted: Tensor) -> None:
    near(torch.export.export(converted[0], (PICTURES,), strict=False).module()(PICTURES), wanted)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES.keys())
def test_it_can_be_copied(
    duplicate: Callable[[nn.Module], nn.Module], converted: Converted, wanted: Tensor
) -> None:
    assert torch.equal(duplicate(converted[0])(PICTURES), wanted)


def test_torch_func_transforms_it(converted: Converted, wanted: Tensor) -> None:
    model, _ = converted
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def run(own: dict[str, Tensor], pictures: Tensor) -> Tensor:
        result: Tensor = functional_call(model, own, (pictures,))
        return result

    near(run(parameters, PICTURES), wanted)
    near(torch.vmap(lambda picture: run(parameters, picture[None])[0])(PICTURES), wanted)
    model.zero_grad()
    model(PICTURES).square().sum().backward()
    eager = {name: p.grad for name, p in model.named_parameters()}
    for name, found in torch.func.grad(lambda own: run(own, PICTURES).square().sum())(
        parameters
    ).items():
        assert eager[name] is not None
        near(found, eager[name])
    # A Jacobian each way, over the slopes of every site, and along a direction.
    slopes = {name: p for name, p in parameters.items() if name.endswith((".alpha", ".beta"))}
    rest = {name: p for name, p in parameters.items() if name not in slopes}
    backwards = torch.func.jacrev(lambda own: run({**rest, **own}, PICTURES[:1]))(slopes)
    _, along = torch.func.jvp(
        lambda own: run({**rest, **own}, PICTURES[:1]),
        (slopes,),
        ({k: torch.ones_like(p) for k, p in slopes.items()},),
    )
    near(sum(j.sum(-1) for j in backwards.values()), along)


def test_an_ensemble_of_converted_models_is_one_vmap(converted: Converted, wanted: Tensor) -> None:
    model, _ = converted
    stacked = {
        name: torch.stack([p.detach(), p.detach() * 1.01]) for name, p in model.named_parameters()
    }
    found = torch.vmap(lambda own: functional_call(model, own, (PICTURES,)))(stacked)
    near(found[0], wanted)
    assert not torch.allclose(found[1], wanted)


def test_forward_derivatives_over_slopes_alone(converted: Converted) -> None:
    """What the derivatives are taken over is then another one than what a site overwrites."""
    model, _ = converted
    name = next(n for n, _ in model.named_parameters() if n.endswith(".alpha"))
    own = {n: p.detach() for n, p in model.named_parameters()}
    function = lambda alpha: functional_call(model, {**own, name: alpha}, (PICTURES[:1],))  # noqa: E731
    near(torch.func.jacfwd(function)(own[name]), torch.func.jacrev(function)(own[name]))
