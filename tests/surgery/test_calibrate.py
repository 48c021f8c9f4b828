"""BatchNorm re-estimated and corrected against statistics worked out by hand; drift and its budget; the report."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_tl.activation.arelu import named_arelus
from arelu_tl.errors import SurgeryError
from arelu_tl.surgery.apply import apply_plan
from arelu_tl.surgery.calibrate import (
    batchnorm_moments,
    correct_batchnorm,
    measure_outputs,
    reestimate_batchnorm,
    relative_drift,
)
from arelu_tl.surgery.convert import convert
from arelu_tl.surgery.plan import make_plan
from arelu_tl.surgery.sites import find_sites


def batches(count: int = 3, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 6, generator=generator) * (i + 1) + i for i in range(count)]


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.03),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5, momentum=None),
        nn.ReLU(),
    )


def deaf_net() -> nn.Sequential:
    """Finite and constant with ReLU; a leak of any size overflows float32."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    for layer, weight, bias in zip(net[::2], (-1e20, 1e20, 1e20), (0.0, 0.0, 1.0), strict=True):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    return net


def modes(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(before: dict[str, Tensor], model: nn.Module) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items())


def structure(model: nn.Module) -> list[tuple[str, int, type]]:
    """Which module stands where, and of which class it is."""
    return [
        (name, id(module), type(module))
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def set_statistics(norm: nn.Module, mean: float, variance: float) -> None:
    """Statistics a little different in each channel."""
    c = torch.arange(norm.num_features, dtype=norm.running_mean.dtype)
    norm.running_mean.copy_(mean + c / 10)
    norm.running_var.copy_(variance + c / 7)


def seasoned_net() -> nn.Sequential:
    """small_net whose statistics are not those of the pictures, as pretrained ones never are, in eval mode."""
    net = small_net()
    set_statistics(net[1], 0.3, 0.8)
    set_statistics(net[5], -0.2, 1.3)
    return net.eval()


class Scale(nn.Module):
    """x -> factor x + shift, a pair a channel."""

    def __init__(self, factor: list[float], shift: list[float]) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor), persistent=False)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.factor.to(x).view(shape) + self.shift.to(x).view(shape)


class Twice(nn.Module):
    """One BatchNorm that runs twice, before each run of which a constant is added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.first = self.second = 0.0
        set_statistics(self.norm, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x + self.first) + self.second)


# Re-estimated BatchNorm -------------------------------------------------------------------------------------------------


def test_one_batchnorm_gets_the_mean_over_the_batches_of_what_each_batch_shows() -> None:
    norm = nn.BatchNorm2d(3)
    given = batches()
    norm(batches(1)[0] * 50)
    assert reestimate_batchnorm(norm, given) == 1
    means = torch.stack([b.mean(dim=(0, 2, 3)) for b in given]).mean(0)
    variances = torch.stack([b.var(dim=(0, 2, 3), unbiased=True) for b in given]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)


def test_a_later_batchnorm_sees_what_earlier_ones_give_while_training_and_no_dropout() -> None:
    net = small_net().train()
    (batch,) = batches(1)
    reestimate_batchnorm(net, [batch])
    first = nn.functional.batch_norm(net[0](batch), None, None, training=True)
    seen = net[4](first.relu())
    torch.testing.assert_close(net[5].running_mean, seen.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_modes_and_momenta_are_put_back() -> None:
    net = small_net().train()
    net[1].eval()
    net[3].eval()
    before = modes(net)
    assert reestimate_batchnorm(net, batches()) == 2
    assert modes(net) == before
    assert (net[1].momentum, net[5].momentum) == (0.03, None)


def test_modes_and_momenta_are_put_back_when_a_batch_fails() -> None:
    net = small_net().train()
    net[3].eval()
    before = modes(net)
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(net, [*batches(1), torch.zeros(2, 7, 6, 6)])
    assert modes(net) == before
    assert net[1].momentum == 0.03


def test_all_but_the_running_statistics_stays() -> None:
    net = small_net()
    before = state(net)
    reestimate_batchnorm(net, batches())
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {
        f"{i}.{name}"
        for i in (1, 5)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert all(p.grad is None for p in net.parameters())


def test_batches_may_come_from_a_generator() -> None:
    listed, generated = small_net(), small_net()
    reestimate_batchnorm(listed, batches())
    reestimate_batchnorm(generated, (batch for batch in batches()))
    assert torch.equal(generated[5].running_var, listed[5].running_var)


def test_no_batches_leave_the_statistics() -> None:
    net = small_net().train()
    net(batches(1)[0])
    before = net[1].running_mean.clone()
    assert before.any()
    reestimate_batchnorm(net, [])
    assert torch.equal(net[1].running_mean, before)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)),
        lambda: nn.BatchNorm2d(3, track_running_stats=False),
    ],
    ids=["no BatchNorm", "BatchNorm without statistics"],
)
def test_a_model_without_running_statistics_has_nothing_to_reestimate(
    build: Callable[[], nn.Module],
) -> None:
    assert reestimate_batchnorm(build(), batches()) == 0


def test_a_batchnorm_that_the_forward_pass_does_not_reach_is_not_reestimated() -> None:
    net = seasoned_net()
    net.append(Unused())
    before = state(net[7])
    assert reestimate_batchnorm(net, batches()) == 2
    assert same(before, net[7])


# Corrected BatchNorm ----------------------------------------------------------------------------------------------------


def test_an_unchanged_model_keeps_its_statistics_to_rounding() -> None:
    net = seasoned_net()
    before, given = state(net), batches()
    assert correct_batchnorm(net, given, batchnorm_moments(net, given)) == 2
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-6, atol=1e-7)


def test_an_unchanged_model_keeps_its_statistics_in_float64_and_half_precision_too() -> None:
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.bfloat16, 1e-2)):
        net, given = seasoned_net().to(dtype), [b.to(dtype) for b in batches()]
        before = state(net)
        correct_batchnorm(net, given, batchnorm_moments(net, given))
        for key, value in net.state_dict().items():
            assert value.dtype == before[key].dtype
            torch.testing.assert_close(value, before[key], rtol=tolerance, atol=tolerance)


def test_moments_are_those_of_each_layers_input_on_each_batch() -> None:
    net, given = seasoned_net(), batches(2)
    recorded = batchnorm_moments(net, given)
    assert [sorted(seen) for seen in recorded] == [["1", "5"]] * 2
    for batch, seen in zip(given, recorded, strict=True):
        for index in (1, 5):
            x = net[:index](batch).detach()
            (moments,) = seen[str(index)]
            torch.testing.assert_close(moments.mean, x.mean(dim=(0, 2, 3)))
            torch.testing.assert_close(moments.variance, x.var(dim=(0, 2, 3), unbiased=False))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d, nn.BatchNorm1d, nn.BatchNorm3d], ids=["2d", "1d", "3d"]
)
def test_a_constant_added_before_a_batchnorm_is_taken_out_exactly(norm: type[nn.Module]) -> None:
    shape = {nn.BatchNorm2d: (4, 3, 5, 5), nn.BatchNorm1d: (6, 3), nn.BatchNorm3d: (2, 3, 3, 3, 3)}[
        norm
    ]
    given = [torch.randn(*shape, dtype=torch.float64) * 3 + 1 for _ in range(3)]
    net = nn.Sequential(nn.Identity(), norm(3)).double().eval()
    set_statistics(net[1], 0.4, 0.6)
    wanted, moments = [net(x) for x in given], batchnorm_moments(net, given)
    before = state(net)
    net[0] = Scale([1.0, 1.0, 1.0], [5.0, -2.0, 0.25])
    assert correct_batchnorm(net, given, moments) == 1
    for x, outputs in zip(given, wanted, strict=True):
        torch.testing.assert_close(net(x), outputs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        net[1].running_mean, before["1.running_mean"] + torch.tensor([5.0, -2.0, 0.25]).double()
    )
    torch.testing.assert_close(net[1].running_var, before["1.running_var"])


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.BatchNorm1d], ids=["2d", "1d"])
def test_a_scale_and_shift_before_a_batchnorm_is_taken_out_where_the_pictures_have_its_mean(
    norm: type[nn.Module],
) -> None:
    shape = (5, 3, 4, 4) if norm is nn.BatchNorm2d else (5, 3, 4)
    x = torch.randn(*shape, dtype=torch.float64)
    net = nn.Sequential(nn.Identity(), norm(3, eps=1e-12)).double().eval()
    set_statistics(net[1], 0.0, 0.6)
    net[1].running_mean.copy_(x.transpose(0, 1).flatten(1).mean(1))
    wanted, moments = net(x), batchnorm_moments(net, [x])
    variance = net[1].running_var.clone()
    net[0] = Scale([2.0, 0.5, 30.0], [5.0, -2.0, 0.0])
    correct_batchnorm(net, [x], moments)
    torch.testing.assert_close(net(x), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        net[1].running_var, variance * torch.tensor([4.0, 0.25, 900.0]).double(), rtol=1e-9, atol=0
    )


def test_a_scale_before_a_batchnorm_is_taken_out_whatever_the_pictures_mean() -> None:
    given = [b.double() for b in batches()]
    net = nn.Sequential(nn.Identity(), nn.BatchNorm2d(3, eps=1e-12)).double().eval()
    set_statistics(net[1], 0.4, 0.6)
    wanted, moments = [net(x) for x in given], batchnorm_moments(net, given)
    net[0] = Scale([2.0, 0.5, 30.0], [0.0, 0.0, 0.0])
    correct_batchnorm(net, given, moments)
    for x, outputs in zip(given, wanted, strict=True):
        torch.testing.assert_close(net(x), outputs, rtol=1e-6, atol=1e-6)


def test_layers_behind_see_what_the_corrected_ones_give() -> None:
    # All of the change is in front of the first BatchNorm, whose correction undoes it: the second must stay as it was.
    net = nn.Sequential(nn.Identity(), seasoned_net()).double().eval()
    given = [b.double() for b in batches()]
    wanted, moments, before = [net(x) for x in given], batchnorm_moments(net, given), state(net)
    net[1][0].bias.data += torch.tensor([10.0, -20.0, 30.0, 5.0])
    correct_batchnorm(net, given, moments)
    torch.testing.assert_close(
        net[1][5].running_mean, before["1.5.running_mean"], rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        net[1][5].running_var, before["1.5.running_var"], rtol=1e-12, atol=1e-12
    )
    for x, outputs in zip(given, wanted, strict=True):
        torch.testing.assert_close(net(x), outputs, rtol=1e-10, atol=1e-10)


def test_a_batchnorm_that_runs_twice_gets_the_mean_of_both_corrections() -> None:
    net = Twice().double().eval()
    given = [b.double() for b in batches()]
    moments, before = batchnorm_moments(net, given), state(net.norm)
    assert [len(seen["norm"]) for seen in moments] == [2, 2, 2]
    net.first, net.second = 3.0, 1.0
    assert correct_batchnorm(net, given, moments) == 1
    torch.testing.assert_close(net.norm.running_mean, before["running_mean"] + 2.0)
    torch.testing.assert_close(net.norm.running_var, before["running_var"])


def test_of_several_batches_the_mean_of_their_corrections_stays() -> None:
    given = batches()
    alone = []
    for batch in given:
        net = seasoned_net()
        moments = batchnorm_moments(net, [batch])
        net[0].weight.data *= 1.5
        correct_batchnorm(net, [batch], moments)
        alone.append(net[1])
    net = seasoned_net()
    moments = batchnorm_moments(net, given)
    net[0].weight.data *= 1.5
    correct_batchnorm(net, given, moments)
    for name in ("running_mean", "running_var"):
        wanted = torch.stack([getattr(norm, name) for norm in alone]).mean(0)
        torch.testing.assert_close(getattr(net[1], name), wanted)


def test_correction_changes_statistics_alone() -> None:
    net = seasoned_net().train()
    net[1].eval()
    given, kept_modes = batches(), modes(net)
    moments = batchnorm_moments(net, given)
    net[0].weight.data *= 2
    before, kept = state(net), structure(net)
    assert correct_batchnorm(net, given, moments) == 2
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"{i}.{name}" for i in (1, 5) for name in ("running_mean", "running_var")}
    assert modes(net) == kept_modes
    assert structure(net) == kept
    assert (net[1].momentum, net[5].momentum) == (0.03, None)
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_taking_moments_changes_nothing() -> None:
    net = seasoned_net().train()
    net[1].eval()
    before, kept_modes = state(net), modes(net)
    batchnorm_moments(net, batches())
    assert same(before, net)
    assert modes(net) == kept_modes
    assert not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failing_batch_leaves_all_as_it_was_before_the_correction(failing: int) -> None:
    net, given = seasoned_net().train(), batches()
    moments = batchnorm_moments(net, given)
    net[0].weight.data *= 2
    before, kept_modes = state(net), modes(net)
    # Passes the first BatchNorm, which is then corrected already, and fails behind it on a map that is too small.
    given[failing] = torch.zeros(2, 3, 3, 3)
    with pytest.raises(RuntimeError):
        correct_batchnorm(net, given, moments)
    assert same(before, net)
    assert modes(net) == kept_modes
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_moments_of_other_batches_are_refused_and_the_statistics_kept() -> None:
    net, given = seasoned_net(), batches()
    before = state(net)
    with pytest.raises(ValueError, match="zip"):
        correct_batchnorm(net, given, batchnorm_moments(net, given[:2]))
    assert same(before, net)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)),
        lambda: nn.BatchNorm2d(3, track_running_stats=False),
    ],
    ids=["no BatchNorm", "BatchNorm without statistics"],
)
def test_a_model_without_running_statistics_has_nothing_to_correct(
    build: Callable[[], nn.Module],
) -> None:
    net, given = build(), batches()
    assert correct_batchnorm(net, given, batchnorm_moments(net, given)) == 0


class Unused(nn.Module):
    """A BatchNorm that stands in the model and that the forward pass does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        set_statistics(self.norm, 4.0, 9.0)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Functional(nn.Module):
    """ReLUs that are no modules, around a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.second(self.norm(self.first(x)).relu()))


@pytest.mark.parametrize(
    "build",
    [Functional, lambda: timm.create_model("legacy_seresnet18", pretrained=False)],
    ids=["functional", "shared modules"],
)
def test_batchnorm_is_corrected_inside_a_module_whose_calls_are_handed_out(
    build: Callable[[], nn.Module],
) -> None:
    net = build().eval()
    report = convert(net, calibration=[torch.randn(2, 3, 32, 32) for _ in range(2)])
    assert report.batchnorm_layers == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_a_batchnorm_that_the_forward_pass_does_not_reach_is_not_corrected() -> None:
    net, given = seasoned_net(), batches()
    net.append(Unused())
    before = state(net[7])
    assert correct_batchnorm(net, given, batchnorm_moments(net, given)) == 2
    assert same(before, net[7])


def test_a_batchnorm_may_be_called_with_its_input_by_name() -> None:
    class ByName(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](input=x)

    net, given = ByName(nn.BatchNorm2d(3)).eval(), batches()
    assert correct_batchnorm(net, given, batchnorm_moments(net, given)) == 1


def test_a_channel_that_was_dead_on_the_pictures_stays_finite() -> None:
    net, given = seasoned_net(), batches()
    net[0].weight.data[0], net[0].bias.data[0] = 0.0, -1.0
    net[1].running_var[0] = 0.0
    moments = batchnorm_moments(net, given)
    net[0].weight.data[0], net[0].weight.data[1] = 0.3, 0.0
    correct_batchnorm(net, given, moments)
    assert all(v.isfinite().all() for v in net.state_dict().values())
    assert (net[1].running_var >= 0).all()
    assert (net[5].running_var >= 0).all()


# Drift ------------------------------------------------------------------------------------------------------------------


def test_an_untouched_model_has_no_drift() -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    pictures = [torch.randn(3, 3, 32, 32), torch.randn(2, 3, 32, 32)]
    drift = relative_drift(measure_outputs(model, pictures), measure_outputs(model, pictures))
    assert (drift.relative, drift.top1_agreement, drift.images) == (0.0, 1.0, 5)


def test_drift_is_the_relative_change_of_the_features_and_the_share_of_classes_kept() -> None:
    before = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1])
    after = torch.tensor([[3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0])
    drift = relative_drift(before, after)
    assert drift.relative == pytest.approx(1 / 5)
    assert drift.top1_agreement == 0.5
    assert json.loads(json.dumps(drift.to_json())) == {
        "relative": drift.relative,
        "top1_agreement": 0.5,
        "images": 2,
    }


@pytest.mark.parametrize("overflow", [float("inf"), float("nan")])
def test_drift_of_outputs_that_overflowed_is_none(overflow: float) -> None:
    before = torch.ones(2, 2), torch.tensor([0, 1])
    assert relative_drift(before, (torch.full((2, 2), overflow), before[1])).relative is None


def test_drift_from_outputs_that_are_all_zero_is_none() -> None:
    before = torch.zeros(2, 2), torch.tensor([0, 1])
    assert relative_drift(before, (torch.ones(2, 2), before[1])).relative is None


def test_outputs_are_pooled_features_and_classes_of_a_timm_model_in_eval_mode() -> None:
    model = timm.create_model("test_resnet", pretrained=False, num_classes=7, drop_rate=0.5).train()
    pictures = torch.randn(3, 3, 32, 32)
    before = state(model)
    features, classes = measure_outputs(model, [pictures[:2], pictures[2:]])
    assert model.training
    assert same(before, model)
    model.eval()
    assert features.shape == (3, model.num_features)
    assert torch.equal(classes, model(pictures).argmax(1))


def test_outputs_of_another_module_are_its_features() -> None:
    net = nn.Linear(3, 4)
    x = torch.randn(5, 3)
    features, classes = measure_outputs(net, [x])
    assert torch.equal(features, net(x))
    assert torch.equal(classes, net(x).argmax(1))


def test_measuring_keeps_the_mode_of_every_module() -> None:
    net = small_net().train()
    net[1].eval()
    before = modes(net)
    measure_outputs(net, batches(1))
    assert modes(net) == before


# The report -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorm", ["corrected", "reestimated"])
def test_calibration_puts_batchnorm_right_and_measures_before_and_after(batchnorm: str) -> None:
    net, given = small_net(), batches()
    reestimate_batchnorm(net, given)
    untouched = copy.deepcopy(net)
    report = convert(net, example_input=given[0], calibration=given, batchnorm=batchnorm)
    assert (report.batchnorm, report.batchnorm_layers) == (batchnorm, 2)
    assert (report.parameters_added, report.replaced) == (4, 2)
    assert report.drift is not None
    assert report.drift_uncalibrated is not None
    assert report.drift == relative_drift(
        measure_outputs(untouched, given[:2]), measure_outputs(net, given[:2])
    )
    assert report.drift.relative not in (0.0, report.drift_uncalibrated.relative)


def test_the_report_corrects_batchnorm_unless_told_otherwise() -> None:
    wanted, by_default, given = seasoned_net(), seasoned_net(), batches()
    moments = batchnorm_moments(wanted, given)
    convert(wanted, drift_budget=0, calibration=given, batchnorm="kept")
    correct_batchnorm(wanted, given, moments)
    assert convert(by_default, drift_budget=0, calibration=given).batchnorm == "corrected"
    assert same(state(wanted), by_default)


def test_reestimation_on_request_is_what_reestimating_afterwards_gives() -> None:
    wanted, asked, given = seasoned_net(), seasoned_net(), batches()
    convert(wanted, drift_budget=0, calibration=given, batchnorm="kept")
    reestimate_batchnorm(wanted, given)
    convert(asked, drift_budget=0, calibration=given, batchnorm="reestimated")
    assert same(state(wanted), asked)


def test_kept_batchnorm_is_not_touched_but_drift_is_measured() -> None:
    net, given = seasoned_net(), batches()
    before = state(net)
    report = convert(net, calibration=given, batchnorm="kept")
    assert (report.batchnorm, report.batchnorm_layers, report.drift_uncalibrated) == (
        "kept",
        0,
        None,
    )
    assert report.drift is not None
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("batchnorm", ["corrected", "reestimated", "kept"])
def test_the_drift_before_calibration_is_that_of_the_slopes_alone(batchnorm: str) -> None:
    kept, net, given = seasoned_net(), seasoned_net(), batches()
    alone = convert(kept, drift_budget=0, calibration=given, batchnorm="kept").drift
    report = convert(net, drift_budget=0, calibration=given, batchnorm=batchnorm)
    assert (report.drift if batchnorm == "kept" else report.drift_uncalibrated) == alone


def test_a_model_without_batchnorm_reports_that_none_was_put_right() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    report = convert(net, calibration=batches())
    assert (report.batchnorm, report.batchnorm_layers, report.drift_uncalibrated) == (
        "kept",
        0,
        None,
    )
    assert report.drift is not None


def test_an_unknown_treatment_of_batchnorm_is_refused() -> None:
    net = small_net()
    kept = structure(net)
    with pytest.raises(SurgeryError, match="corrected, reestimated, kept"):
        convert(net, calibration=batches(), batchnorm="frozen")
    assert structure(net) == kept


@pytest.mark.parametrize("init", ["paper", "near-relu"])
def test_other_inits_measure_drift_and_leave_batchnorm(init: str) -> None:
    net, given = small_net(), batches()
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    report = convert(net, init=init, example_input=given[0], calibration=given)
    assert (report.batchnorm_layers, report.drift_uncalibrated) == (0, None)
    assert report.drift is not None
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


def test_without_calibration_pictures_nothing_is_measured() -> None:
    report = convert(small_net(), example_input=batches(1)[0])
    assert (report.drift, report.drift_uncalibrated, report.batchnorm_layers) == (None, None, 0)


def test_conversion_keeps_the_mode_of_every_module() -> None:
    net = small_net().train()
    net[1].eval()
    before = modes(net)
    convert(net, example_input=batches(1)[0], calibration=batches())
    assert modes(net) == before


@pytest.mark.parametrize("batchnorm", ["corrected", "reestimated", "kept"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_failing_calibration_batch_leaves_the_model_unchanged(batchnorm: str, at: int) -> None:
    net, given = small_net(), batches()
    given[at] = torch.zeros(2, 7, 6, 6)
    before, kept = state(net), structure(net)
    options = {"calibration": given, "batchnorm": batchnorm}
    if batchnorm == "kept" and at == 2:  # nothing needs that batch
        convert(net, example_input=batches(1)[0], **options)
        return
    with pytest.raises((RuntimeError, SurgeryError)):
        convert(net, example_input=batches(1)[0], **options)
    assert same(before, net)
    assert structure(net) == kept


def test_the_report_of_an_overflow_is_valid_json() -> None:
    report = convert(deaf_net(), init="paper", calibration=[torch.ones(4, 2)])
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["drift"] == {
        "relative": None,
        "top1_agreement": content["drift"]["top1_agreement"],
        "images": 4,
    }


def test_the_report_lists_every_site_with_its_fate_as_json() -> None:
    report = convert(small_net(), exclude=["6"], drift_budget=0, calibration=batches())
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (content["arm"], content["init"]) == ("arelu", "calibrated")
    assert (content["parameters_added"], content["batchnorm"], content["batchnorm_layers"]) == (
        2,
        "corrected",
        2,
    )
    assert (content["strength"], content["drift_budget"]) == (None, None)
    assert [(s["name"], s["status"]) for s in content["sites"]] == [
        ("2", "replaced"),
        ("6", "excluded"),
    ]
    assert content["drift"]["images"] == 8
    assert content["drift_before_calibration"]["images"] == 8


# A drift budget ---------------------------------------------------------------------------------------------------------


def deep_net(sites: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    layers = []
    for i in range(sites):
        layers += [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            set_statistics(module, 0.1, 0.5)
    return net.eval()


def fresh_drift(before: nn.Module, after: nn.Module, given: list[Tensor]) -> float:
    """Relative drift by the definition of DESIGN.md: norm(f1 - f0) / norm(f0)."""
    with torch.no_grad():
        f0, f1 = torch.cat([before(x) for x in given]), torch.cat([after(x) for x in given])
    return float((f1 - f0).norm() / f0.norm())


def alphas(model: nn.Module) -> list[float]:
    return [m.alpha.item() for _, m in named_arelus(model)]


def leaking(
    base: nn.Module, given: list[Tensor], strength: float, batchnorm: str = "corrected"
) -> nn.Module:
    """A copy of ``base`` with measured leaks of this strength, made by hand."""
    net = copy.deepcopy(base)
    moments = batchnorm_moments(net, given)
    apply_plan(net, make_plan(find_sites(net, given[0]), strength=strength))
    if batchnorm == "corrected":
        correct_batchnorm(net, given, moments)
    elif batchnorm == "reestimated":
        reestimate_batchnorm(net, given)
    return net


@pytest.mark.parametrize("batchnorm", ["corrected", "kept"])
@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6])
def test_a_drift_budget_is_kept_by_about_the_strongest_leaks_that_keep_it(
    batchnorm: str, strength: float
) -> None:
    base, given = deep_net(), batches()
    budget = fresh_drift(base, leaking(base, given, strength, batchnorm), given[:2])
    net = copy.deepcopy(base)
    report = convert(net, calibration=given, batchnorm=batchnorm, drift_budget=budget)
    assert report.drift is not None
    assert report.budget_kept
    assert fresh_drift(base, net, given[:2]) <= budget * (1 + 1e-6)
    assert fresh_drift(base, net, given[:2]) == pytest.approx(report.drift.relative, rel=1e-5)
    assert report.strength == pytest.approx(strength, rel=0.1, abs=1 / 32)
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (content["strength"], content["drift_budget"]) == (report.strength, budget)


@pytest.mark.parametrize(
    "count",
    [
        2,
        6,
    ],
)
def test_a_drift_budget_is_kept_with_reestimated_batchnorm_too(count: int) -> None:
    base, given = deep_net(), batches(count)
    reestimate_batchnorm(base, given)
    budget = fresh_drift(base, leaking(base, given, 0.3, "reestimated"), given[:2])
    net = copy.deepcopy(base)
    report = convert(net, calibration=given, batchnorm="reestimated", drift_budget=budget)
    assert fresh_drift(base, net, given[:2]) <= budget * (1 + 1e-6)
    assert report.strength == pytest.approx(0.3, rel=0.15)


def test_the_result_under_a_budget_is_that_of_the_reported_strength_alone() -> None:
    # Nothing that the search tried may be left behind: neither in the statistics nor in the slopes.
    base, given = deep_net(), batches()
    searched = copy.deepcopy(base)
    report = convert(
        searched,
        calibration=given,
        drift_budget=fresh_drift(base, leaking(base, given, 0.3), given[:2]),
    )
    assert report.strength is not None
    direct = leaking(base, given, report.strength)
    assert [s.alpha0 for s in report.sites] == pytest.approx(alphas(searched))
    assert list(direct.state_dict()) == list(searched.state_dict())
    for key, value in direct.state_dict().items():
        torch.testing.assert_close(searched.state_dict()[key], value, rtol=1e-6, atol=1e-7)


def test_weaker_budgets_give_stronger_leaks() -> None:
    strengths, leaks = [], []
    base, given = deep_net(), batches()
    for budget in [
        fresh_drift(base, leaking(base, given, strength), given[:2])
        for strength in (0.05, 0.2, 0.5)
    ] + [100.0]:
        net = deep_net()
        report = convert(net, calibration=batches(), drift_budget=budget)
        assert report.drift is not None
        assert report.drift.relative is not None
        assert report.drift.relative <= budget
        strengths.append(report.strength)
        leaks.append(sum(alphas(net)))
    assert strengths == sorted(set(strengths))
    assert leaks == sorted(leaks)


@pytest.mark.parametrize("none", [None, 0, 0.0])
def test_no_budget_takes_the_unmeasured_grading_whatever_its_drift(none: float | None) -> None:
    net = deep_net()
    report = convert(net, calibration=batches(), drift_budget=none)
    assert alphas(net) == pytest.approx([max(0.01, 0.9 * (i / 4) ** 4) for i in range(5)])
    assert (report.strength, report.drift_budget, report.budget_kept) == (None, None, True)
    assert report.drift is not None


@pytest.mark.parametrize("batchnorm", ["corrected", "reestimated", "kept"])
def test_a_budget_that_no_leak_keeps_gets_the_least_there_is_and_says_so(batchnorm: str) -> None:
    base, given = deep_net(), batches(2)
    net = copy.deepcopy(base)
    report = convert(net, calibration=given, drift_budget=1e-9, batchnorm=batchnorm)
    assert alphas(net) == pytest.approx([0.01] * 5)
    assert not report.budget_kept
    assert report.strength == 0.0
    assert report.drift is not None
    assert report.drift.relative == pytest.approx(fresh_drift(base, net, given), rel=1e-5)
    wanted = leaking(base, given, 0.0, batchnorm)
    for key, value in wanted.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-6, atol=1e-7)


def test_outputs_that_overflow_keep_no_budget() -> None:
    report = convert(deaf_net(), calibration=[torch.ones(4, 2)], drift_budget=10.0)
    assert report.drift is not None
    assert report.drift.relative is None
    assert not report.budget_kept


class FailsLater(nn.Module):
    """Passes its input on a few times, then fails: in the middle of a search."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= x.device.type != "meta"
        if self.calls < 0:
            raise RuntimeError("no more")
        return x


@pytest.mark.parametrize("calls", [0, 1, 3, 6, 9, 12])
@pytest.mark.parametrize("batchnorm", ["corrected", "reestimated"])
def test_an_error_in_the_middle_of_a_search_leaves_the_model_unchanged(
    calls: int, batchnorm: str
) -> None:
    net = deep_net().train()
    net[1].eval()
    net.append(FailsLater(calls))
    before, kept, kept_modes = state(net), structure(net), modes(net)
    momenta = [m.momentum for m in net if isinstance(m, nn.BatchNorm2d)]
    with pytest.raises((RuntimeError, SurgeryError), match="no more"):
        convert(net, calibration=batches(), batchnorm=batchnorm, drift_budget=0.1)
    assert same(before, net)
    assert structure(net) == kept
    assert modes(net) == kept_modes
    assert [m.momentum for m in net if isinstance(m, nn.BatchNorm2d)] == momenta
    assert not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("batchnorm", ["kept", "reestimated", "corrected"])
def test_a_budget_is_kept_with_routed_calls(batchnorm: str) -> None:
    base, given = Functional().eval(), batches(2)
    reestimate_batchnorm(base, given)
    net = copy.deepcopy(base)
    report = convert(net, calibration=given, drift_budget=0.2, batchnorm=batchnorm)
    assert fresh_drift(base, net, given) <= 0.2 * (1 + 1e-6)
    assert report.budget_kept
    assert len(alphas(net)) == 2


@pytest.mark.parametrize("calibration", [None, []], ids=["none", "empty"])
def test_a_budget_says_nothing_without_pictures(calibration: list[Tensor] | None) -> None:
    asked, plain = deep_net(), deep_net()
    report = convert(
        asked, example_input=batches(1)[0], calibration=calibration, drift_budget=0.001
    )
    convert(plain, example_input=batches(1)[0], drift_budget=None)
    assert (report.strength, report.drift_budget, report.drift) == (None, None, None)
    assert same(state(plain), asked)


@pytest.mark.parametrize("init", ["paper", "near-relu"])
def test_a_budget_is_for_calibrated_alone(init: str) -> None:
    asked, plain = deep_net(), deep_net()
    report = convert(asked, init=init, calibration=batches(), drift_budget=0.001)
    convert(plain, init=init, calibration=batches(), drift_budget=None)
    assert (report.strength, report.drift_budget) == (None, None)
    assert same(state(plain), asked)


@pytest.mark.parametrize("budget", [-1.0, float("nan")])
def test_a_budget_is_not_negative(budget: float) -> None:
    net = deep_net()
    kept = structure(net)
    with pytest.raises(SurgeryError, match="must not be negative"):
        convert(net, calibration=batches(), drift_budget=budget)
    assert structure(net) == kept


@pytest.mark.parametrize("arm", ["arelu", "leaky", "prelu", "arelu-frozen"])
def test_a_budget_is_kept_alike_by_every_arm_that_leaks(arm: str) -> None:
    base, given = deep_net(), batches()
    net, twin = copy.deepcopy(base), copy.deepcopy(base)
    budget = fresh_drift(base, leaking(base, given, 0.3), given[:2])
    report = convert(net, arm=arm, calibration=given, drift_budget=budget)
    assert report.budget_kept
    assert fresh_drift(base, net, given[:2]) <= budget * (1 + 1e-6)
    assert report.strength == pytest.approx(
        convert(twin, calibration=given, drift_budget=budget).strength, abs=1 / 32
    )


def test_a_budget_says_nothing_to_a_rival_that_has_no_slope_to_weaken() -> None:
    report = convert(deep_net(), arm="gelu", calibration=batches(), drift_budget=1e-6)
    assert (report.strength, report.drift_budget, report.budget_kept) == (None, None, True)
    assert report.drift is not None
