"""Faults such as a mistake of ours would make, one at a time, at every place where they could be: all are refused.

A fault that changes nothing is none: a bias that is 0, a cap that nothing reaches. Its effect, in float64, tells which these are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper
from torch import fx, nn
from trained_runs import disturb

import arelu_tl
from arelu_tl.activation.arelu import named_arelus
from arelu_tl.backbone.embedded import EMBEDDED_ARCHITECTURE, embedded_weights, load_embedded
from arelu_tl.errors import ArtefactError
from arelu_tl.exporting import fold as folding
from arelu_tl.exporting.capture import capture, site_products
from arelu_tl.exporting.fold import fold
from arelu_tl.exporting.onnx_file import answers, require_slopes, to_onnx
from arelu_tl.exporting.plain import fold_modules
from arelu_tl.exporting.proof import Answer, Yardstick, in_float64, measure, proof_batches, prove
from arelu_tl.models.freeze import FrozenSite, freeze, put_site

# Picture sizes. The first is in the fast suite.
NETS = {
    "test_resnet": 64,
    EMBEDDED_ARCHITECTURE: 96,
    "mobilenetv2_035": 64,
    "semnasnet_050": 64,
    "regnetx_002": 64,
}
# Of the largest logit: what float64 itself is off by.
NOTHING = 1e-12


@dataclass(frozen=True)
class Net:
    frozen: nn.Module
    sites: list[FrozenSite]
    graph: fx.GraphModule
    yardstick: Yardstick
    example: torch.Tensor


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=() if n == "test_resnet" else pytest.mark.slow) for n in NETS],
)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    torch.manual_seed(0)
    size = NETS[request.param]
    if request.param == EMBEDDED_ARCHITECTURE:
        model = demo_net()
    else:
        model = timm.create_model(request.param, num_classes=7)
        arelu_tl.convert(model, example_input=torch.zeros(2, 3, size, size))
        disturb(model)
    frozen, sites = freeze(model)
    with torch.inference_mode():
        example = torch.zeros(2, 3, size, size)
        yardstick = measure(model, proof_batches((3, size, size), None))
        yield Net(frozen, sites, capture(frozen, example), yardstick, example)


def demo_net() -> nn.Module:
    """The demo's, its sites moved from their start as far as a short training moves them."""
    weights = embedded_weights()
    assert weights is not None, "install the extra 'demo'"
    model = timm.create_model(EMBEDDED_ARCHITECTURE)
    load_embedded(model, weights)
    model.reset_classifier(10)  # type: ignore[operator]
    arelu_tl.convert(model, example_input=torch.zeros(2, 3, 96, 96))
    with torch.no_grad():
        for _, site in named_arelus(model):
            site.alpha.add_(0.02 * torch.randn(1))
            site.beta.add_(0.05 * torch.randn(1))
    return model.eval()


def require_refused(net: Net, mutants: Iterator[tuple[str, nn.Module]], *, at_least: int) -> None:
    """Each mutant that changes an answer at all is refused, and there are so many."""
    seen = 0
    for name, mutant in mutants:
        changes = [
            float((in_float64(mutant)(batch) - expected).abs().max() / expected.abs().max())
            for batch, expected in zip(net.yardstick.batches, net.yardstick.answers, strict=True)
        ]
        if max(changes) > NOTHING:
            seen += 1
            assert refused(name, net.yardstick, mutant), (
                f"{name} changes {max(changes):.2e} of the largest logit"
            )
    assert seen >= at_least


def refused(name: str, yardstick: Yardstick, candidate: Answer) -> bool:
    try:
        prove(name, yardstick, candidate)
    except ArtefactError as error:
        return "does not answer as the trained model" in str(error) or "another first class" in str(
            error
        )
    return False


def spoilt(net: Net, change: Callable[[nn.Module], object]) -> nn.Module:
    mutant = copy.deepcopy(net.frozen)
    change(mutant)
    return mutant


def test_what_is_right_is_let_through(net: Net) -> None:
    prove("frozen", net.yardstick, net.frozen)
    prove("folded", net.yardstick, fold_modules(net.frozen, net.sites, net.example)[0])


def test_a_slope_off_by_a_percent(net: Net) -> None:
    changed = [replace(site, slopes=[1.01 * slope for slope in site.slopes]) for site in net.sites]
    require_refused(
        net,
        ((site.name, spoilt(net, lambda m, s=site: put_site(m, s))) for site in changed),
        at_least=len(changed),
    )


def test_a_cap_lost(net: Net) -> None:
    capped = [replace(site, cap=None) for site in net.sites if site.cap is not None]
    mutants = ((site.name, spoilt(net, lambda m, s=site: put_site(m, s))) for site in capped)
    require_refused(net, mutants, at_least=len(capped) // 2)


def test_a_bias_lost(net: Net) -> None:
    names = [
        name for name, bias in net.frozen.named_parameters() if name.endswith("bias") and bias.any()
    ]
    mutants = ((name, spoilt(net, lambda m, n=name: m.get_parameter(n).zero_())) for name in names)
    require_refused(net, mutants, at_least=len(names) // 2)


def test_two_channels_exchanged(net: Net) -> None:
    names = [name for name, module in net.frozen.named_modules() if isinstance(module, nn.Conv2d)]

    def exchange(model: nn.Module, name: str) -> None:
        weight = model.get_parameter(f"{name}.weight")
        weight[[0, 1]] = weight[[1, 0]]

    require_refused(
        net,
        ((n, spoilt(net, lambda m, n=n: exchange(m, n))) for n in names),
        at_least=int(0.9 * len(names)),
    )


def test_a_fold_left_out(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gain is taken out at its site, and one of the layers around it is not given it."""
    scaled: list[int] = []
    scale_layer = folding._scale_layer

    def mutant(left_out: int) -> fx.GraphModule:
        scaled.clear()

        def scale(*given: Any) -> None:
            scaled.append(1)
            if len(scaled) - 1 != left_out:
                scale_layer(*given)

        monkeypatch.setattr(folding, "_scale_layer", scale)
        module = copy.deepcopy(net.graph)
        fold(module, site_products(module, net.sites))
        return module

    prove("folded", net.yardstick, mutant(-1))
    count = len(scaled)
    assert count > len(net.sites) // 2
    require_refused(net, ((f"layer {n}", mutant(n)) for n in range(count)), at_least=count)


def test_faults_of_an_onnx_file(net: Net) -> None:
    """What float32 can see of them, in onnxruntime; a slope, however small, by itself."""
    module = copy.deepcopy(net.graph)
    fold(module, site_products(module, net.sites))
    content = to_onnx(module, net.example)
    require_slopes(content, module)
    prove("onnxruntime", net.yardstick, answers(content))
    model = onnx.load_from_string(content)
    convolutions = [
        node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3
    ]
    for node in (convolutions[0], convolutions[len(convolutions) // 2], convolutions[-1]):
        for fault in (lost_bias, exchanged_channels):
            mutant = onnx.load_from_string(content)
            fault(mutant, node)
            name = f"{fault.__name__} at {node.name}"
            assert refused(name, net.yardstick, answers(mutant.SerializeToString())), name
    for number in range(len([node for node in model.graph.node if node.op_type == "LeakyRelu"])):
        mutant = onnx.load_from_string(content)
        attribute = [node for node in mutant.graph.node if node.op_type == "LeakyRelu"][
            number
        ].attribute[0]
        attribute.f *= 1.01
        with pytest.raises(ArtefactError, match=f"slope {attribute.f:.6g}, which no site has"):
            require_slopes(mutant.SerializeToString(), module)


def lost_bias(model: Any, node: Any) -> None:
    change(model, node.input[2], np.zeros_like)


def exchanged_channels(model: Any, node: Any) -> None:
    change(model, node.input[1], lambda weight: weight[[1, 0, *range(2, len(weight))]])


def change(model: Any, name: str, by: Callable[[Any], Any]) -> None:
    (tensor,) = (each for each in model.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(by(numpy_helper.to_array(tensor)), name))
