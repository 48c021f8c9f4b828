"""The linear probe of each arm's start, beside which fine-tuning has to show that it is needed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_command
from run_folders import write_run
from sweeps import plain as settings

from arelu_tl.analysis.comparison import compare
from arelu_tl.data.folder import scan_folder
from arelu_tl.experiment.build import begin
from arelu_tl.experiment.finetune import finetune
from arelu_tl.experiment.probe import linear_probe
from arelu_tl.records import runs
from arelu_tl.render.figures.convergence import convergence_figure
from arelu_tl.training.checkpoint import list_checkpoints, load_checkpoint

CPU = torch.device("cpu")


def test_features_that_tell_colours_apart_suffice_and_the_model_stays(make_folder: Any) -> None:
    root = make_folder(train=16, val=8)
    folder = scan_folder(root)
    config = settings(root)
    backbone = begin(config, folder, CPU).backbone
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    state = torch.get_rng_state()
    probe = linear_probe(config, folder, backbone, CPU)
    assert probe is not None
    assert probe.top1 > 0.8
    assert probe.pictures == 48
    assert linear_probe(config, folder, backbone, CPU) == probe
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


@pytest.mark.parametrize(
    "more",
    [{"freeze": "backbone"}, {"model": "levit_128s", "img_size": 224}],
    ids=["frozen", "two heads"],
)
def test_where_there_is_none(make_folder: Any, more: dict[str, Any]) -> None:
    root = make_folder(train=2, val=1)
    folder, config = scan_folder(root), settings(root, arm="relu", **more)
    assert linear_probe(config, folder, begin(config, folder, CPU).backbone, CPU) is None


def test_both_arms_probes_are_recorded_and_shown(make_folder: Any, tmp_path: Path) -> None:
    study = finetune(settings(make_folder(), output=tmp_path, name="study"))
    cells = compare([study.path]).cells
    assert {cell.arm for cell in cells} == {"relu", "arelu"}
    for cell in cells:
        summary = json.loads((Path(cell.runs[0]) / runs.SUMMARY).read_text())
        assert (cell.probe_top1, cell.probe_loss) == (
            summary["probe"]["top1"],
            summary["probe"]["loss"],
        )
        assert cell.head_lrs == [summary["head_lr"]]


def test_compare_says_them_and_the_heads_rates(tmp_path: Path) -> None:
    for arm, top1, head in (("relu", 0.75, 0.001), ("arelu", 0.5, 0.003)):
        told = {"head_lr": head, "probe": {"top1": top1, "loss": 1 - top1, "lr": 0.01}}
        write_run(tmp_path, arm, [0.1, 0.4, 0.6], told=told)
    done = run_command("compare", tmp_path, "--json", cwd=tmp_path)
    assert {c["arm"]: c["probe_top1"] for c in json.loads(done.stdout)["cells"]} == {
        "relu": 0.75,
        "arelu": 0.5,
    }
    shown = run_command("compare", tmp_path, cwd=tmp_path).stdout
    assert "a linear probe of the features has relu 0.750 (loss 0.250), arelu 0.500" in shown
    assert "Learning rate of the head: relu 0.001; arelu 0.003." in shown


def test_the_figure_has_a_level_for_each_arm(tmp_path: Path) -> None:
    def levels() -> list[float]:
        axes = convergence_figure(compare([tmp_path]), "t").axes[0]
        flat = [line for line in axes.lines if len(set(line.get_ydata())) == 1]
        return [float(line.get_ydata()[0]) for line in flat if len(line.get_xdata()) == 2]

    for arm in ("relu", "arelu"):
        write_run(tmp_path, arm, [0.1, 0.4, 0.6])
    without = levels()
    for arm, top1 in (("relu", 0.75), ("arelu", 0.95)):
        path = tmp_path / f"{arm}-lr0.0001-s0" / runs.SUMMARY
        told = json.loads(path.read_text()) | {"probe": {"top1": top1, "loss": 0.5}}
        path.write_text(json.dumps(told))
    assert sorted(levels()) == sorted([*without, 0.75, 0.95])
    assert convergence_figure(compare([tmp_path]), "t").axes[0].get_ylim()[1] > 0.95


def test_frozen_statistics_stay_and_the_weights_around_them_train(
    make_folder: Any, tmp_path: Path
) -> None:
    root = make_folder()

    def trained(mode: str) -> tuple[dict[str, Any], dict[str, Any]]:
        config = settings(
            root, output=tmp_path, name=mode, bn_stats=mode, arm="relu", lr=1e-2, epochs=2
        )
        start = begin(config, scan_folder(root), CPU).backbone.model.state_dict()
        (run,) = finetune(config).runs
        _, newest = list_checkpoints(run.path / runs.CHECKPOINTS)[-1]
        return start, load_checkpoint(newest)[0]

    for mode in ("batch", "frozen"):
        start, end = trained(mode)
        moved = {key for key, value in start.items() if not torch.equal(value, end[key])}
        statistics = {key for key in start if "running_" in key}
        assert bool(moved & statistics) == (mode == "batch")
        assert {key for key in start if key.endswith("bn1.weight")} <= moved
    assert np.isfinite([float(v.abs().max()) for v in end.values()]).all()
