"""Re-estimated BatchNorm against statistics worked out by hand; drift; the report of a conversion."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from arelu_tl.surgery import convert, measure_outputs, reestimate_batchnorm, relative_drift


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


# BatchNorm --------------------------------------------------------------------------------------------------------------


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
    before = {k: v.clone() for k, v in net.state_dict().items()}
    reestimate_batchnorm(net, batches())
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"{i}.{name}" for i in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")}
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
    [lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), lambda: nn.BatchNorm2d(3, track_running_stats=False)],
    ids=["no BatchNorm", "BatchNorm without statistics"],
)
def test_a_model_without_running_statistics_has_nothing_to_reestimate(build: Callable[[], nn.Module]) -> None:
    assert reestimate_batchnorm(build(), batches()) == 0


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
    assert json.loads(json.dumps(drift.to_json())) == {"relative": drift.relative, "top1_agreement": 0.5, "images": 2}


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
    state = {k: v.clone() for k, v in model.state_dict().items()}
    features, classes = measure_outputs(model, [pictures[:2], pictures[2:]])
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
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


def test_calibration_reestimates_batchnorm_and_measures_before_and_after() -> None:
    net, given = small_net(), batches()
    reestimate_batchnorm(net, given)
    untouched = copy.deepcopy(net)
    report = convert(net, example_input=given[0], calibration=given)
    assert report.batchnorm_layers == 2
    assert (report.parameters_added, report.replaced) == (4, 2)
    assert report.drift is not None
    assert report.drift_uncalibrated is not None
    assert report.drift == relative_drift(measure_outputs(untouched, given[:2]), measure_outputs(net, given[:2]))
    assert report.drift.relative not in (0.0, report.drift_uncalibrated.relative)


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


def test_a_failing_calibration_batch_leaves_the_model_unchanged() -> None:
    net = small_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError):
        convert(net, example_input=batches(1)[0], calibration=[*batches(2), torch.zeros(2, 7, 6, 6)])
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_the_report_of_an_overflow_is_valid_json() -> None:
    report = convert(deaf_net(), init="paper", calibration=[torch.ones(4, 2)])
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["drift"] == {"relative": None, "top1_agreement": content["drift"]["top1_agreement"], "images": 4}


def test_the_report_lists_every_site_with_its_fate_as_json() -> None:
    report = convert(small_net(), exclude=["6"], calibration=batches())
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (content["arm"], content["init"]) == ("arelu", "calibrated")
    assert (content["parameters_added"], content["batchnorm_layers_reestimated"]) == (2, 2)
    assert [(s["name"], s["status"]) for s in content["sites"]] == [("2", "replaced"), ("6", "excluded")]
    assert content["drift"]["images"] == 8
    assert content["drift_before_calibration"]["images"] == 8
