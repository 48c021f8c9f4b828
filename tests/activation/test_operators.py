"""torch.ops.arelu_tl.two_slope is an operator as torch wants them; AReLU compiles and exports to ATen's operators alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from arelu_tl.activation import fused
from arelu_tl.activation.arelu import AReLU
from arelu_tl.activation.catalogue import activation_parameters
from arelu_tl.activation.operators import two_slope

both_ways = pytest.mark.parametrize("inplace", [False, True], ids=["out of place", "in place"])


def problem(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=dtype)
    negative = torch.rand(channels, dtype=dtype)
    return (
        (x + 0.1 * x.sign()).requires_grad_(),
        (negative + 1).requires_grad_(),
        negative.requires_grad_(),
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cap", [None, 1.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_torchs_own_check_of_operators_passes(
    channels: int, cap: float | None, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x, positive, negative = (t.detach() for t in problem(channels))
    x = x.to(dtype).contiguous(memory_format=layout)
    torch.library.opcheck(
        torch.ops.arelu_tl.two_slope_backward.default,
        (torch.ones_like(x), x, positive, negative, cap, 1),
    )
    learning = tuple(t.clone().requires_grad_() for t in (x, positive, negative))
    torch.library.opcheck(torch.ops.arelu_tl.two_slope.default, (*learning, cap, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("portable", [False, True], ids=["as served", "portable"])
def test_the_operators_gradient_in_float64(
    channels: int, portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        monkeypatch.setattr(fused, "serves", lambda *_: False)
    assert torch.autograd.gradcheck(
        lambda *given: two_slope(*given, 50.0, 1), problem(channels, torch.float64)
    )


def test_a_net_with_the_operator_compiles_and_exports_whole() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.slope = nn.Parameter(torch.full((3,), 0.3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.ops.arelu_tl.two_slope(
                self.layer(x), self.slope + 1, self.slope, 2.0, -1
            )
            return y

    torch.manual_seed(0)
    net, x = Net(), torch.randn(5, 4)
    results = []
    for candidate in (net, torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")):
        candidate(x).square().sum().backward()
        results.append([p.grad for p in candidate.parameters()])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
    program = torch.export.export(net, (x,))
    assert [n.target for n in program.graph.nodes if "arelu_tl" in str(n.target)] == [
        torch.ops.arelu_tl.two_slope.default
    ]
    torch.testing.assert_close(program.module()(x), net(x))


def net(inplace: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        AReLU(scale=0.53, inplace=inplace),
        nn.Conv2d(4, 3, 1),
        AReLU(num_parameters=3, cap=0.4, inplace=inplace),
    )


@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_compiled_net_has_the_eager_values_and_gradients(
    inplace: bool, dtype: torch.dtype
) -> None:
    torch.compiler.reset()  # its count of recompilations outlives a test
    model, x, results = net(inplace), torch.randn(2, 3, 8, 8), []
    for candidate in (
        model,
        torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager"),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = candidate(x)
        y.float().square().sum().backward()
        results.append([y, *[p.grad for p in candidate.parameters()]])
    # The compiled form works from the output wherever the eager one has the input, and half precision has rounded that.
    options = {} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 0.1}
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, **options)


@both_ways
def test_an_exported_net_needs_nothing_of_ours_and_learns_as_the_eager_one(inplace: bool) -> None:
    model, x, results = net(inplace), torch.randn(2, 3, 8, 8), []
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    assert [
        str(n.target)
        for n in program.graph.nodes
        if n.op == "call_function" and "aten" not in str(n.target)
    ] == []
    other = torch.randn(3, 3, 8, 8)
    for candidate in (model, program.module()):
        candidate.zero_grad()
        y = candidate(other)
        y.square().sum().backward()
        results.append(
            [y, *[dict(candidate.named_parameters())[n].grad for n, _ in model.named_parameters()]]
        )
    assert all(p.grad is not None for p in activation_parameters(model))
    for eager, exported in zip(*results, strict=True):
        torch.testing.assert_close(exported, eager)
