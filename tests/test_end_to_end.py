"""The main job on real digits with real ImageNet weights, through the real command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import GIVEN, run_command

import arelu_tl
from arelu_tl.activation.arelu import named_arelus
from arelu_tl.data.decode import open_picture
from arelu_tl.data.folder import scan_folder
from arelu_tl.data.loader import eval_transform, eval_view, make_eval_batches
from arelu_tl.records.storage import read_rows
from arelu_tl.records.weights import load_weights
from arelu_tl.training.evaluate import evaluate
from arelu_tl.training.fit import fit


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the demo."""
    place = tmp_path_factory.mktemp("demo")
    done = run_command("demo", "--epochs", "1", "--lr", "3e-4", cwd=place, killed_after=900)
    assert done.returncode == 0, done.stderr
    (place / "stdout").write_text(done.stdout)
    return place


def test_both_arms_train_and_the_answer_is_that_of_their_curves(demo: Path) -> None:
    study = demo / "runs" / "demo"
    found = json.loads((study / "comparison.json").read_text())["rates"][0]
    assert (found["arm"], found["reference"]) == ("arelu", "relu")
    assert min(found["pairs"][0]["final_top1"]) > 0.4
    assert found["aulc"]["pictures"] == 300
    assert found["one_seed"]
    assert found["aulc"]["mean"] == pytest.approx(np.subtract(*found["pairs"][0]["aulc"]))
    assert found["sentence"] in (demo / "stdout").read_text()
    # The page's heading is the sentence up to its numbers.
    assert found["sentence"].partition(": ")[0] in (study / "report.html").read_text()


def test_both_baselines_are_strong_and_the_page_says_how(demo: Path) -> None:
    study = demo / "runs" / "demo"
    shown = (demo / "stdout").read_text()
    for cell in json.loads((study / "comparison.json").read_text())["cells"]:
        record = json.loads((study / Path(cell["runs"][0]).name / "choices.json").read_text())
        assert record["settings"]["head_init"] == "probe"
        assert cell["head_lrs"] == [record["settings"]["head_lr"]] == [3e-4]
        # A probe of ImageNet's features does well, and fine-tuning goes on from there.
        assert cell["probe_top1"] > 0.7
        first = read_rows(study / Path(cell["runs"][0]).name / "metrics.jsonl")[0]
        assert (first["step"], first["top1"]) == (0, pytest.approx(cell["probe_top1"]))
        assert f"{cell['arm']} {cell['probe_top1']:.3f} (loss" in shown


def test_the_page_shows_the_pictures_on_which_the_arms_part(demo: Path) -> None:
    page = (demo / "runs" / "demo" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 2


def test_every_relu_of_the_backbone_was_replaced_and_its_cap_kept(demo: Path) -> None:
    model, card = arelu_tl.load_model(demo / "runs" / "demo" / "arelu-lr0.0003-s0")
    assert not [m for m in model.modules() if isinstance(m, torch.nn.ReLU | torch.nn.ReLU6)]
    assert [m.cap for _, m in named_arelus(model)] == [6.0] * 33
    assert card.classes == [str(digit) for digit in range(10)]


def test_reloaded_model_gives_the_trained_models_logits_bit_for_bit(demo: Path) -> None:
    """The journal writes the probabilities of the best checkpoint while the trained model is still in memory."""
    run = demo / "runs" / "demo" / "arelu-lr0.0003-s0"
    model, card = arelu_tl.load_model(run)
    stored, _ = load_weights(run / "best.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    folder = scan_folder(demo / "demo-data")
    batches = make_eval_batches(
        folder.root, folder.splits["val"], eval_view(card.data_config), batch_size=32
    )
    result = evaluate(model, batches.epoch(), torch.device("cpu"))
    assert result.top1 == card.top1
    best = next(
        r
        for r in read_rows(run / "metrics.jsonl")
        if r["split"] == "val" and r["step"] == card.step
    )
    # The subprocess may have used another number of threads, whose sums differ in the last place.
    assert result.loss == pytest.approx(best["loss"], rel=1e-5)


def test_reloaded_model_is_the_one_that_was_trained(
    tmp_path: Path, make_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spy keeps the very model that the loop trained; at its last step, the best, it must equal the reloaded one."""
    trained: list[torch.nn.Module] = []

    def keep(model: torch.nn.Module, *rest: Any, **named: Any) -> Any:
        trained.append(model)
        return fit(model, *rest, **named)

    monkeypatch.setattr("arelu_tl.experiment.run.fit", keep)
    pictures = make_folder(train=12)
    config = arelu_tl.FinetuneConfig(
        data=pictures, output=tmp_path, model="test_resnet", pretrained=False, **GIVEN, img_size=32, epochs=2,
        batch_size=12, workers=0,
        baseline=False, lr=1e-3, device="cpu",
    )  # fmt: skip
    run = arelu_tl.finetune(config).runs[0]
    assert run.summary["best_step"] == run.summary["steps"] == 6
    model, card = arelu_tl.load_model(run.path)
    picture = eval_transform(card.data_config)(open_picture(next(pictures.rglob("*.png"))))[None]
    # Training on the CPU lays maps out in another way, which rounds in another way.
    alike = trained[0].eval().to(memory_format=torch.contiguous_format)
    with torch.inference_mode():
        assert torch.equal(model(picture), alike(picture))


@pytest.mark.parametrize("arm", ["arelu", pytest.param("relu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("format_", ["safetensors", "onnx", "pt2"])
def test_both_runs_leave_in_every_format_and_are_used(
    demo: Path, tmp_path: Path, arm: str, format_: str
) -> None:
    """The README's next commands."""
    run = demo / "runs" / "demo" / f"{arm}-lr0.0003-s0"
    out = tmp_path / ("out" if format_ == "safetensors" else f"out.{format_}")
    done = run_command("export", run, "--format", format_, "--output", out, "--json", cwd=demo)
    assert done.returncode == 0, done.stderr
    proofs = json.loads(done.stdout)["proofs"]
    assert proofs
    assert all(proof["inputs"] == 20 and proof["share"] <= 1 for proof in proofs)
    if format_ == "pt2":  # which is loaded by whoever trusts who made it, and not by us
        model: Any = torch.export.load(out).module()
        original, card = arelu_tl.load_model(run)
        with torch.inference_mode():
            batch = torch.randn(2, *card.data_config["input_size"])
            assert torch.equal(model(batch).argmax(1), original(batch).argmax(1))
        return
    pictures = sorted((demo / "demo-data" / "val").glob("*/*.png"))[::60]
    told = [run_command("predict", model, *pictures, "--json", cwd=demo) for model in (run, out)]
    labels = [
        [each["predictions"][0]["label"] for each in json.loads(each.stdout)] for each in told
    ]
    assert labels[0] == labels[1]
    assert len(labels[0]) > 3
    if format_ != "onnx":
        return
    found = run_command("evaluate", out, demo / "demo-data", "--json", cwd=demo)
    assert found.returncode == 0, found.stderr
    summary = json.loads((run / "summary.json").read_text())
    # A tie may fall either way.
    assert json.loads(found.stdout)["top1"] == pytest.approx(summary["best_top1"], abs=0.01)
