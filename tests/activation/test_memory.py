"""What an AReLU keeps for its backward pass, counted against a ReLU, and what it starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from arelu_tl.activation import fused
from arelu_tl.activation.arelu import AReLU
from arelu_tl.surgery.convert import convert

bodies = pytest.mark.parametrize("portable", [False, True], ids=["as served", "portable"])


def kept(function: Callable[[Tensor], Tensor], x: Tensor) -> dict[int, int]:
    """{memory that a forward pass keeps for the backward pass: its bytes}, parameters aside."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(x)
    return found


def net(activation: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        activation(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        activation(),
        nn.Conv2d(8, 2, 1),
    )


@bodies
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("cap", [None, 6.0])
def test_in_place_a_net_keeps_no_map_more_than_with_relu(
    portable: bool, channels: int, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        monkeypatch.setattr(fused, "serves", lambda *_: False)
    x = torch.randn(4, 3, 32, 32)
    with_relu = sum(kept(net(lambda: nn.ReLU(inplace=True)), x).values())
    with_arelu = sum(
        kept(net(lambda: AReLU(inplace=True, num_parameters=channels, cap=cap)), x).values()
    )
    out_of_place = sum(kept(net(lambda: AReLU(num_parameters=channels, cap=cap)), x).values())
    # The slopes of two sites, on either side, in numbers of up to 8 bytes.
    assert with_relu <= with_arelu <= with_relu + 2 * 2 * channels * 8
    assert out_of_place > 1.2 * with_relu


def test_surgery_takes_a_relus_place_for_no_memory_unless_the_input_is_to_be_kept() -> None:
    x = torch.randn(4, 3, 32, 32)
    nets = {inplace: net(lambda: nn.ReLU(inplace=True)).eval() for inplace in (True, False)}
    with_relu = sum(kept(nets[True], x).values())
    for inplace, each in nets.items():
        convert(each, example_input=x, inplace=inplace)
    assert sum(kept(nets[True], x).values()) <= with_relu + 64
    assert sum(kept(nets[False], x).values()) > 1.2 * with_relu
    gradients = []
    assert torch.equal(nets[True](x), nets[False](x))
    for each in nets.values():
        each(x).square().sum().backward()
        gradients.append([p.grad for p in each.parameters()])
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_kept_input_leaves_later_readers_what_the_relu_left_them() -> None:
    x = torch.randn(50, dtype=torch.float64)
    given, module = x.clone(), AReLU(inplace=True, keep_input=True).double()
    result = module(given)
    assert result.data_ptr() == given.data_ptr()
    assert torch.equal(given, AReLU().double()(x))
    leaf = (x + 0.1 * x.sign()).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: module(z * 1), (leaf,))


@bodies
def test_a_site_is_one_node_of_the_graph(portable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if portable:
        monkeypatch.setattr(fused, "serves", lambda *_: False)
    module, x = AReLU(scale=0.5, cap=6.0), torch.randn(3, requires_grad=True)
    node = module(x).grad_fn
    assert node is not None
    into = [type(n).__name__ for n, _ in node.next_functions if n is not None]
    assert into == ["AccumulateGrad"] * 3
