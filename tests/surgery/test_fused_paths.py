"""No way around a replaced site: fused kernels, branches on the mode of gradients, scripted, compiled and quantised parts."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from arelu_tl.errors import NoSitesError, SurgeryError
from arelu_tl.surgery.apply import apply_plan, restore_sites
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.plan import make_plan
from arelu_tl.surgery.relu_calls import ReLUTap
from arelu_tl.surgery.sites import find_sites
from arelu_tl.surgery.verify import verify

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
ACTIVATIONS: dict[str, Any] = {
    "a module": nn.ReLU(),
    "a name": "relu",
    "a function": F.relu,
    "torch's": torch.relu,
}
MODES = {
    "gradients": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


class Net(nn.Module):
    """Torch's own encoder, as a net of somebody's has it; the padding makes it run on nested tensors."""

    def __init__(self, activation: Any = "relu", *, layers: int = 2, padded: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation=activation, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.padded = padded

    def forward(self, x: Tensor) -> Tensor:
        if not self.padded:
            y: Tensor = self.encoder(x)
            return y
        hidden = torch.arange(x.shape[1], device=x.device) >= 4
        return self.encoder(x, src_key_padding_mask=hidden.expand(len(x), -1))[:, :4]


def made(activation: Any = "relu", **options: Any) -> Net:
    torch.manual_seed(0)
    return Net(activation, **options).eval()


def relus(model: nn.Module, mode: Callable[[], AbstractContextManager[Any]]) -> int:
    seen: list[None] = []
    with mode(), ReLUTap(lambda: seen.append(None)):
        model(X)
    return len(seen)


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
def test_torchs_encoder_runs_what_surgery_put_in_whatever_becomes_of_gradients(
    activation: Any, padded: bool
) -> None:
    model = made(activation, padded=padded)
    before = model(X).detach()
    report = convert(model, init="paper", example_input=X)
    wanted = model(X).detach()
    assert report.replaced == 2
    assert not torch.allclose(wanted, before, atol=1e-2)
    for duplicate in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for mode in MODES.values():
            with mode():
                torch.testing.assert_close(duplicate(X).clone(), wanted)
            assert relus(duplicate, mode) == 0


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
def test_a_rebuilt_encoder_does_too(padded: bool) -> None:
    model = made(padded=padded)
    report = convert(model, init="paper", example_input=X)
    rebuilt = made(padded=padded)
    restore_sites(rebuilt, json.loads(json.dumps(report.to_json()))["sites"])
    rebuilt.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(X), model(X))
    assert relus(rebuilt, torch.no_grad) == 0


def test_a_layer_whose_site_stays_keeps_its_fused_kernel() -> None:
    model = made()
    first, second = (site.name for site in find_sites(model, X))
    report = convert(model, init="paper", example_input=X, exclude=first)
    assert (report.replaced, relus(model, torch.no_grad), relus(model, torch.enable_grad)) == (
        1,
        1,
        1,
    )
    assert [layer.activation_relu_or_gelu for layer in model.encoder.layers] == [1, 0]
    assert second.startswith("encoder.layers.1")


def test_what_fails_leaves_the_fused_kernels_as_they_were() -> None:
    class Hidden(Net):
        def forward(self, x: Tensor) -> Tensor:
            return (
                torch.relu(super().forward(x))
                if torch.is_inference_mode_enabled()
                else super().forward(x)
            )

    model = Hidden(padded=True).eval()
    with pytest.raises(SurgeryError, match="in inference mode"):
        convert(model, init="paper", example_input=X)
    assert [layer.activation_relu_or_gelu for layer in model.encoder.layers] == [1, 1]
    assert model.encoder.use_nested_tensor
    assert relus(model, torch.no_grad) == 2


def test_gelu_keeps_its_fused_kernel() -> None:
    model = nn.Sequential(nn.ReLU(), made("gelu"))
    convert(model, example_input=X)
    assert [layer.activation_relu_or_gelu for layer in model[1].encoder.layers] == [2, 2]


# Branches ---------------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """Runs its activation, or ``instead``, as ``asked`` has it."""

    def __init__(self, asked: Callable[[], bool], instead: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.act, self.asked, self.instead = nn.Linear(8, 8), nn.ReLU(), asked, instead

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.instead(y) if self.asked() and not self.training else self.act(y)


def _fused_relu(y: Tensor) -> Tensor:
    return torch._addmm_activation(torch.zeros(8), y.flatten(0, -2), torch.eye(8)).view_as(y)


BRANCHES: dict[str, Callable[[], bool]] = {
    "without gradients": lambda: not torch.is_grad_enabled(),
    "with gradients": torch.is_grad_enabled,
    "in inference mode": torch.is_inference_mode_enabled,
}
INSTEAD: dict[str, Callable[[Tensor], Tensor]] = {
    "a function": F.relu,
    "relu6": F.relu6,
    "clip": lambda y: torch.clip(y, 0),
    "a fused kernel": _fused_relu,
    "another activation": torch.tanh,
}


@pytest.mark.parametrize("asked", BRANCHES.values(), ids=BRANCHES.keys())
@pytest.mark.parametrize("instead", INSTEAD.values(), ids=INSTEAD.keys())
def test_a_branch_around_a_site_is_refused_and_the_model_stays(
    asked: Callable[[], bool], instead: Callable[[Tensor], Tensor]
) -> None:
    model = nn.Sequential(Branching(asked, instead), nn.ReLU()).eval()
    before = copy.deepcopy(model)
    with pytest.raises(SurgeryError) as caught:
        convert(model, example_input=X)
    assert "0" in str(caught.value)
    assert "\n" not in str(caught.value)
    for mode in MODES.values():
        with mode():
            assert torch.equal(model(X), before(X))


def test_the_verifier_keeps_nothing_that_inference_mode_made() -> None:
    """As timm's LeViT keeps its attention's biases in evaluation: made in inference mode they could not be trained on."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.kept = nn.Parameter(torch.ones(8)), None

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return x * self.bias
            if self.kept is None:
                self.kept = self.bias * 2
            return x * self.kept

    model = nn.Sequential(nn.Linear(8, 8), Keeping(), nn.ReLU()).eval()
    convert(model, example_input=X)
    model(X).sum().backward()


# Kernels ----------------------------------------------------------------------------------------------------------------


class Calls(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _quantised(y: Tensor) -> Tensor:
    return nn.ReLU()(torch.quantize_per_tensor(y, 0.1, 0, torch.quint8)).dequantize()


@every_mode
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("call", "count"),
    [
        (_fused_relu, 1),
        (lambda y: torch._addmm_activation(torch.zeros(8), y[0], torch.eye(8), use_gelu=True), 0),
        (_quantised, 1),
        (F.relu6, 1),
        (lambda y: torch.clip(y, 0), 1),
        (lambda y: torch.clip(y, -1), 0),
        (lambda y: nn.RNN(8, 8, nonlinearity="relu", batch_first=True)(y)[0], 6),
        (lambda y: nn.RNNCell(8, 8, nonlinearity="relu")(y[0]), 1),
        (lambda y: nn.RNNCell(8, 8)(y[0]), 0),
        (F.leaky_relu, 0),
        (lambda y: F.rrelu(y), 0),
        (lambda y: F.prelu(y, torch.ones(1)), 0),
        (F.hardswish, 0),
    ],
)
def test_the_tap_counts_relus_within_kernels(
    mode: Callable[[], AbstractContextManager[Any]], call: Callable[[Tensor], Tensor], count: int
) -> None:
    assert relus(Calls(call), mode) == count


@pytest.mark.filterwarnings("ignore")
def test_a_relu_within_a_quantised_layer_is_refused() -> None:
    from torch.ao.nn.intrinsic.quantized.dynamic import LinearReLU

    with pytest.raises(SurgeryError, match="executed in a way that surgery cannot replace, in 1"):
        find_sites(nn.Sequential(nn.ReLU(), LinearReLU(8, 8)), X)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "how", [torch.jit.script, lambda m: torch.jit.trace(m, X)], ids=["script", "trace"]
)
def test_a_relu_within_a_part_that_torchscript_runs_is_refused(
    how: Callable[[nn.Module], nn.Module],
) -> None:
    part = how(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval())
    with pytest.raises(SurgeryError, match="executed in a way that surgery cannot replace"):
        convert(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), part), example_input=X)
    with pytest.raises((SurgeryError, NoSitesError)):
        convert(nn.Sequential(part), example_input=X)


@pytest.mark.slow
def test_a_compiled_part_is_operated_on_as_it_was_before() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    part = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), backend="aot_eager")
    model = nn.Sequential(nn.ReLU(), part).eval()
    plain = nn.Sequential(nn.ReLU(), copy.deepcopy(part._orig_mod)).eval()
    model(X)  # compiled, with its ReLU in it
    assert convert(model, init="paper", example_input=X).replaced == 2
    convert(plain, init="paper", example_input=X)
    for mode in MODES.values():
        with mode():
            torch.testing.assert_close(model(X).clone(), plain(X).clone())


def test_the_mode_and_the_place_of_what_is_left_are_named() -> None:
    model = nn.Sequential(Branching(torch.is_inference_mode_enabled, F.relu), nn.ReLU()).eval()
    plan = make_plan(find_sites(model, X))
    apply_plan(model, plan)
    with pytest.raises(
        SurgeryError,
        match="1 ReLUs run in inference mode where 0 were meant to stay: left over in 0;",
    ):
        verify(model, plan, X)
    model[0].instead = torch.tanh
    with pytest.raises(
        SurgeryError,
        match=r"evaluation in inference mode goes around 0\.act, which run 2 times .* 1 times",
    ):
        verify(model, plan, X)
