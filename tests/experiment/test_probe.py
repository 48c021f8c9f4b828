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
from arelu_tl.data.decode import open_picture
from arelu_tl.data.folder import scan_folder
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.experiment import probe as probe_module
from arelu_tl.experiment.build import begin
from arelu_tl.experiment.finetune import finetune
from arelu_tl.experiment.probe import PROBED, evaluate_probe, prepare_probe
from arelu_tl.experiment.start import load_starts
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
    prepared = prepare_probe(config, folder, backbone, CPU)
    assert prepared is not None
    probe = evaluate_probe(prepared.head(), config, folder, backbone, CPU)
    assert probe.top1 > 0.8
    assert probe.pictures == 48
    again = prepare_probe(config, folder, backbone, CPU)
    assert again is not None
    assert evaluate_probe(again.head(), config, folder, backbone, CPU) == probe
    kept = prepared.head(without=set(range(40)))
    assert kept.pictures == 8
    alone = prepared.training.train(prepared.x[40:], prepared.y[40:], prepared.lr)
    assert torch.equal(kept.classifier.weight, alone.weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


def test_of_many_pictures_some_are_taken_and_some_for_each_class(
    make_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(train=20, val=1)
    folder, config = scan_folder(root), settings(root, arm="relu")
    backbone = begin(config, folder, CPU).backbone

    def pictures(most: int) -> int:
        monkeypatch.setattr(probe_module, "_MOST_PICTURES", most)
        prepared = prepare_probe(config, folder, backbone, CPU)
        assert prepared is not None
        assert len(set(prepared.pictures)) == len(prepared.y)
        return prepared.head().pictures

    assert [pictures(most) for most in (100, 50, 4)] == [60, 50, 48]


@pytest.mark.parametrize(
    "more",
    [{"freeze": "backbone"}, {"model": "levit_128s", "img_size": 224}],
    ids=["frozen", "two heads"],
)
def test_where_there_is_none(make_folder: Any, more: dict[str, Any]) -> None:
    root = make_folder(train=2, val=1)
    folder, config = scan_folder(root), settings(root, arm="relu", **more)
    assert prepare_probe(config, folder, begin(config, folder, CPU).backbone, CPU) is None


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


def test_fine_tuning_starts_with_the_probe_and_at_its_accuracy(
    make_folder: Any, tmp_path: Path
) -> None:
    config = settings(make_folder(), output=tmp_path, name="study", eval_every=1)
    study = finetune(config)
    for run in study.runs:
        assert run.settled["head_init"] == "probe"
        assert run.settled["head_lr"] == run.summary["head_lr"] == config.lr
        first = run.curve()[0]
        assert first["step"] == 0
        assert first["top1"] == pytest.approx(run.summary["probe"]["top1"])
        assert first["loss"] == pytest.approx(run.summary["probe"]["loss"], rel=1e-4)
    (found,) = compare([study.path]).rates
    assert found.pairs[0].proof["head_init"] == PROBED


@pytest.mark.parametrize("more", [{"head_init": "random"}, {"freeze": "backbone"}])
def test_or_at_random(make_folder: Any, tmp_path: Path, more: dict[str, Any]) -> None:
    config = settings(make_folder(), output=tmp_path, name="s", baseline=False, **more)
    (run,) = finetune(config).runs
    assert run.settled["head_init"] == "random"
    assert len(run.summary["pairing"]["head_init"]) == 64


def test_the_start_can_be_built_again(make_folder: Any, tmp_path: Path) -> None:
    root = make_folder()
    study = finetune(settings(root, output=tmp_path, name="study"))
    for run, (model, card) in zip(study.runs, load_starts(study.runs), strict=True):
        prepare = Preprocessing(card.data_config)
        right = []
        for path in sorted(root.glob("val/*/*.png")):
            with torch.no_grad():
                logits = model(torch.from_numpy(prepare(open_picture(path)))[None])
            right.append(card.classes[int(logits.argmax())] == path.parent.name)
        assert np.mean(right) == pytest.approx(run.summary["probe"]["top1"])


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
