"""Arm recalibrated: every ReLU stays, and BatchNorm is re-estimated from the pictures that other arms are calibrated on."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from commands import GIVEN
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import arelu_tl
from arelu_tl.activation.catalogue import named_activations
from arelu_tl.errors import NoSitesError, SurgeryError
from arelu_tl.explain.sites.inspection import inspect_backbone
from arelu_tl.records import runs
from arelu_tl.records.storage import read_json
from arelu_tl.records.weights import load_weights
from arelu_tl.surgery.apply import restore_sites
from arelu_tl.surgery.calibrate import reestimate_batchnorm
from arelu_tl.surgery.convert import BATCHNORM_MODES, RECALIBRATED, convert
from arelu_tl.surgery.plan import INITS
from arelu_tl.surgery.sites import find_sites

PICTURES = list(torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 + 1)
TINY: dict[str, Any] = {
    "model": "test_resnet",
    "pretrained": False,
    **GIVEN,
    "img_size": 32,
    "batch_size": 8,
    "epochs": 1,
    "workers": 0,
}


def resnet() -> nn.Module:
    return copy.deepcopy(_built()).eval()


@functools.cache
def _built() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", pretrained=False, num_classes=5)


class Shared(nn.Module):
    """One in-place ReLU module that runs twice, a functional one, and a hard sigmoid's gate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.relu(self.norm(self.first(x)))))
        return torch.relu(x - 1) * nn.functional.relu6(x + 3) / 6


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("build", [resnet, Shared])
def test_the_statistics_are_reestimated_and_nothing_else_changes(build: Any) -> None:
    model, by_hand = build(), build()
    before, modules = state(model), list(model.named_modules(remove_duplicate=False))
    report = convert(model, arm=RECALIBRATED, calibration=PICTURES)
    layers = reestimate_batchnorm(by_hand, PICTURES)
    assert same(state(model), state(by_hand))
    assert list(model.named_modules(remove_duplicate=False)) == modules
    assert not list(named_activations(model))
    statistics = {
        f"{n}.{b}"
        for n, m in modules
        if isinstance(m, _BatchNorm)
        for b, _ in m.named_buffers(recurse=False)
    }
    changed = {
        name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])
    }
    assert changed == statistics
    assert (report.batchnorm, report.batchnorm_layers) == ("reestimated", layers)
    assert not torch.equal(model.eval()(PICTURES[0]), build().eval()(PICTURES[0]))


def test_the_report_says_that_every_site_stays() -> None:
    model = Shared()
    report = convert(model, arm=RECALIBRATED, calibration=PICTURES)
    assert (report.replaced, report.parameters_added, report.executed) == (0, 0, 4)
    assert [p.status for p in report.sites] == ["kept"] * 3 + ["gate"]
    assert [p.site for p in report.sites] == find_sites(Shared(), PICTURES[0])
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert told["arm"] == RECALIBRATED
    assert told["batchnorm"] == "reestimated"
    assert told["batchnorm_layers"] == 1
    assert told["drift"]["relative"] > 0
    assert told["drift"]["images"] == 16
    # Nothing happened before the statistics were estimated that could be measured by itself.
    assert told["drift_before_calibration"] is None
    assert (told["strength"], told["drift_budget"], told["budget_kept"]) == (None, None, True)
    unknown = ("alpha0", "beta0", "scale", "num_parameters", "route")
    assert {site[key] for site in told["sites"] for key in unknown} == {None}


@pytest.mark.parametrize(("init", "batchnorm"), [*zip(INITS, BATCHNORM_MODES, strict=True)])
def test_it_is_the_same_whatever_is_asked_of_init_and_batchnorm(init: str, batchnorm: str) -> None:
    model, by_hand = resnet(), resnet()
    report = convert(
        model,
        arm=RECALIBRATED,
        calibration=PICTURES,
        init=init,
        batchnorm=batchnorm,
        drift_budget=0,
    )
    reestimate_batchnorm(by_hand, PICTURES)
    assert same(state(model), state(by_hand))
    assert report.batchnorm == "reestimated"


def test_weights_come_back_from_the_record() -> None:
    trained, loaded = Shared(), Shared()
    record = convert(trained, arm=RECALIBRATED, calibration=PICTURES).to_json()
    restore_sites(loaded, record["sites"], arm=RECALIBRATED)
    loaded.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(loaded.eval()(PICTURES[0]), trained.eval()(PICTURES[0]))


# What is refused


def refused(model: nn.Module, error: type[SurgeryError] = SurgeryError, **options: Any) -> str:
    before, mode = state(model), model.training
    with pytest.raises(error) as caught:
        convert(model, arm=RECALIBRATED, **options)
    assert same(state(model), before)
    assert model.training == mode
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("calibration", [None, []])
def test_without_pictures_it_is_refused(calibration: Any) -> None:
    assert "recalibrated" in refused(resnet(), calibration=calibration)
    assert "calibration pictures" in refused(resnet(), calibration=calibration)


def test_a_model_without_relus_is_refused_as_for_every_arm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GELU())
    assert "GELU" in refused(model, NoSitesError, calibration=PICTURES)


@pytest.mark.parametrize(
    "norm", [nn.Identity(), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_a_model_without_statistics_is_refused(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU())
    assert "nothing to re-estimate" in refused(model, calibration=PICTURES)


def test_patterns_are_held_to_the_sites_as_for_every_arm() -> None:
    assert "matches no site" in refused(resnet(), calibration=PICTURES, include="nowhere*")


def test_a_failure_puts_the_model_back() -> None:
    """The last of the pictures cannot be run: by then the statistics were reset, and estimated from the first."""
    with pytest.raises(RuntimeError):
        convert(model := Shared(), arm=RECALIBRATED, calibration=[*PICTURES, PICTURES[0][:, :2]])
    assert same(state(model), state(Shared()))


# From the command's side


def test_a_finetune_of_it_is_a_pair_with_the_baseline_and_comes_back(
    make_folder: Any, tmp_path: Path
) -> None:
    pictures = make_folder()
    config = arelu_tl.FinetuneConfig(
        **TINY, arm=RECALIBRATED, data=pictures, output=tmp_path, name="study", device="cpu"
    )
    study = arelu_tl.finetune(config)
    assert [run.config.arm for run in study.runs] == [RECALIBRATED, "relu"]
    run, relu = study.runs
    surgery = read_json(run.path / runs.SURGERY)
    assert (surgery["arm"], surgery["batchnorm"], surgery["parameters_added"]) == (
        RECALIBRATED,
        "reestimated",
        0,
    )
    assert {site["status"] for site in surgery["sites"]} == {"kept"}
    assert surgery["drift"]["relative"] > 0
    assert not any("sites" in row for row in run.metrics)
    assert relu.summary["pairing"] == run.summary["pairing"]
    assert relu.curve("val")[0]["loss"] != run.curve("val")[0]["loss"]
    model, card = arelu_tl.load_model(run.path)
    assert card.arm == RECALIBRATED
    assert same(state(model), load_weights(run.path / runs.BEST)[0])
    assert not list(named_activations(model))


def test_inspection_needs_pictures_and_shows_one_drift_because_no_init_changes_it(
    make_folder: Any,
) -> None:
    config = arelu_tl.FinetuneConfig(**TINY, arm=RECALIBRATED, calibration_images=8)
    with pytest.raises(SurgeryError, match="`images=FOLDER`"):
        inspect_backbone(config)
    inspection = inspect_backbone(config, make_folder(train=4, val=1))
    assert list(inspection.inits) == ["calibrated"]
    assert inspection.cost is None
    assert inspection.to_json()["drift"]["relative"] > 0
