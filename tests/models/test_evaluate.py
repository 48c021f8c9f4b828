"""The numbers of an evaluation against their definitions, and what the evaluation leaves in a folder."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import GIVEN
from numpy.typing import NDArray
from PIL import Image
from tiny_onnx import write_tiny_onnx

import arelu_tl
from arelu_tl.data.gate import Rejected
from arelu_tl.errors import DataError, StorageError
from arelu_tl.models.classifier import open_classifier
from arelu_tl.models.evaluate import EvaluationReport, calibration_error, evaluate
from arelu_tl.models.files import EVALUATION, write_evaluation
from arelu_tl.models.mistakes import mistakes_figure
from arelu_tl.records.config import dump_yaml
from arelu_tl.records.csv_table import read_table
from arelu_tl.records.runs import load_run
from arelu_tl.records.storage import require_room, write_text
from arelu_tl.records.trained_on import TrainedOn
from arelu_tl.render.figures.confusion import confusion_figure, most_confused

# The true class and what the model's mean colour says.
PICTURES = {
    "red/1.png": (250, 0, 0), "red/2.png": (200, 90, 0), "red/3.png": (0, 255, 10), "red/4.png": (90, 80, 70),
    "green/1.png": (0, 250, 0), "green/2.png": (100, 120, 0),
}  # fmt: skip
PREDICTED = {"red/3.png": "green"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name, colour in PICTURES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(root / name)
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_onnx(tmp_path / "m.onnx")


def log_probabilities(colour: tuple[int, int, int]) -> NDArray[np.float64]:
    logits = 4 * (np.array(colour) / 127.5 - 1)
    return np.asarray(logits - np.log(np.exp(logits).sum()))


def test_numbers_are_what_they_are_called(model: Path, data: Path) -> None:
    report = evaluate(open_classifier(model), data, batch_size=4)
    assert report.paths == [
        "red/1.png",
        "red/2.png",
        "red/3.png",
        "red/4.png",
        "green/1.png",
        "green/2.png",
    ]
    assert report.confusion.tolist() == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert report.top1 == pytest.approx(5 / 6)
    assert report.top5 is None
    rows = {row.pop("class"): row for row in report.per_class}
    assert rows["red"] == {
        "support": 4,
        "precision": 1.0,
        "recall": 0.75,
        "f1": pytest.approx(6 / 7),
    }
    assert rows["green"] == {
        "support": 2,
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "f1": pytest.approx(0.8),
    }
    assert rows["blue"] == {"support": 0, "precision": None, "recall": None, "f1": None}
    assert report.macro_f1 == pytest.approx((6 / 7 + 0.8) / 2)
    assert report.balanced_accuracy == pytest.approx(0.875)
    label = [
        log_probabilities(colour)[0 if name.startswith("red") else 1]
        for name, colour in PICTURES.items()
    ]
    assert report.loss == pytest.approx(-np.mean(label), rel=1e-5)
    assert report.mistakes() == [2]


def test_a_class_that_is_predicted_and_never_there_has_no_recall_and_no_f1_to_be_proud_of(
    tmp_path: Path,
) -> None:
    model = write_tiny_onnx(tmp_path / "m.onnx")
    (tmp_path / "data" / "red").mkdir(parents=True)
    Image.new("RGB", (8, 8), (0, 0, 255)).save(tmp_path / "data" / "red" / "1.png")
    report = evaluate(open_classifier(model), tmp_path / "data")
    told = report.to_json()
    assert told["per_class"][2] == {
        "class": "blue",
        "support": 0,
        "precision": 0.0,
        "recall": None,
        "f1": 0.0,
    }
    assert told["per_class"][0]["precision"] is None
    assert told["macro_f1"] == 0.0
    json.dumps(told, allow_nan=False)


def test_calibration_error_is_guos() -> None:
    confidence = np.array([0.95, 0.94, 0.55, 0.55, 1.0, 1 / 15])
    correct = np.array([True, False, True, False, True, False])
    # Bins of a fifteenth: {0.95, 0.94, 1.0}, {0.55, 0.55}, {1/15}; the upper edge belongs to its bin.
    by_hand = (3 * abs(2 / 3 - 2.89 / 3) + 2 * abs(0.5 - 0.55) + abs(0 - 1 / 15)) / 6
    assert calibration_error(confidence, correct) == pytest.approx(by_hand)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0
    assert calibration_error(np.array([0.0]), np.array([False])) == 0.0


def test_the_true_class_among_five_is_counted(tmp_path: Path) -> None:
    names = [f"class {n}" for n in range(7)]
    # Red favours the classes in their order.
    weights = np.zeros((3, 7))
    weights[0] = np.arange(7, 0, -1)
    model = write_tiny_onnx(tmp_path / "m.onnx", classes=names, weights=weights)
    for n in (0, 3, 4, 5):
        (tmp_path / "data" / names[n]).mkdir(parents=True)
        Image.new("RGB", (8, 8), (255, 128, 128)).save(tmp_path / "data" / names[n] / "1.png")
    report = evaluate(open_classifier(model), tmp_path / "data")
    assert report.label_rank.tolist() == [0, 3, 4, 5]
    assert (report.top1, report.top5) == (0.25, 0.75)


def test_pictures_that_cannot_be_read_are_told_and_left_out(model: Path, data: Path) -> None:
    (data / "green" / "bad.png").write_bytes(b"no picture")
    told: list[Rejected] = []
    done: list[tuple[int, int]] = []
    report = evaluate(
        open_classifier(model), data, rejected=told.append, progress=lambda *n: done.append(n)
    )
    assert (
        [each.path for each in told] == ["green/bad.png"] == [each.path for each in report.rejected]
    )
    assert (report.images, done[-1]) == (6, (7, 7))
    for picture in data.rglob("*.png"):
        picture.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no readable picture"):
        evaluate(open_classifier(model), data)


def test_a_split_can_be_named(model: Path, data: Path) -> None:
    (data / "green").rename(data.parent / "green")
    (data / "test").mkdir()
    (data.parent / "green").rename(data / "test" / "green")
    assert evaluate(open_classifier(model), data, split="test").paths == [
        "test/green/1.png",
        "test/green/2.png",
    ]


@pytest.fixture(scope="module")
def run(make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on a flat folder, which training has split."""
    data: Path = make_folder(train=9, val=1) / "train"
    config = arelu_tl.FinetuneConfig(
        data=data, output=tmp_path_factory.mktemp("runs"), model="test_resnet", pretrained=False, **GIVEN, img_size=32, epochs=2,
        batch_size=8, workers=0, baseline=False, lr=1e-3, device="cpu",
    )  # fmt: skip
    return arelu_tl.finetune(config).runs[0].path, data


def test_a_run_on_its_own_folder_gets_the_numbers_of_its_validation(run: tuple[Path, Path]) -> None:
    path, data = run
    report = evaluate(open_classifier(path, "cpu"), data, batch_size=4)
    assert report.images == 6  # two of nine, of three classes: the others were trained on
    summary = json.loads((path / "summary.json").read_text())
    assert report.top1 == summary["best_top1"]
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    best = next(
        row for row in rows if row["split"] == "val" and row["step"] == summary["best_step"]
    )
    assert report.loss == pytest.approx(best["loss"], rel=1e-5)
    with open(path / "predictions.csv", newline="") as file:
        trained = {row["path"]: (row["label"], row["predicted"]) for row in csv.DictReader(file)}
    names = report.classes
    told = zip(report.paths, report.labels, report.predicted, strict=True)
    assert {p: (names[label], names[predicted]) for p, label, predicted in told} == trained


# Pictures that were trained on


@pytest.fixture(scope="module")
def moved(run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pictures elsewhere under other names, with another copy of a training picture and a new picture."""
    path, data = run
    place = tmp_path_factory.mktemp("moved") / "pictures"
    for picture in data.rglob("*.png"):
        (place / picture.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place / picture.parent.name / f"copied {picture.name}")
    trained = next(
        row["path"] for row in read_table(path.parent / "split.csv") if row["split"] == "train"
    )
    shutil.copy(data / trained, (place / trained).parent / "again.png")
    Image.new("RGB", (40, 40), (9, 9, 250)).save(place / "class 2" / "new.png")
    return place


EXPORTS = {"safetensors": "export", "onnx": "export.onnx"}


@pytest.fixture(scope="module")
def models(run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("exports")
    for format_, name in {**EXPORTS, "pt2": "export.pt2"}.items():
        arelu_tl.export(run[0], format_, place / name)
    return {
        "run": run[0],
        **{format_: place / name for format_, name in EXPORTS.items()},
        "pt2": place / "export.pt2",
    }


@pytest.mark.parametrize("form", ["run", *EXPORTS])
def test_training_pictures_are_known_wherever_they_lie_and_left_out(
    form: str, models: dict[str, Path], moved: Path, run: tuple[Path, Path]
) -> None:
    here = evaluate(open_classifier(models[form], "cpu"), run[1])
    there = evaluate(open_classifier(models[form], "cpu"), moved)
    held_out = {
        row["path"] for row in read_table(run[0].parent / "split.csv") if row["split"] == "val"
    }
    assert set(here.paths) == held_out
    copied = {(Path(path).parent / f"copied {Path(path).name}").as_posix() for path in held_out}
    assert set(there.paths) == {*copied, "class 2/new.png"}
    assert (here.trained_on, there.trained_on) == (21, 22)
    assert there.to_json()["training_pictures"] == {"found": 22, "counted": False}
    counted = evaluate(open_classifier(models[form], "cpu"), moved, include_training=True)
    assert counted.images == 29
    assert counted.to_json()["training_pictures"] == {"found": 22, "counted": True}


def test_a_pt2_file_says_what_it_was_trained_on(
    models: dict[str, Path], run: tuple[Path, Path]
) -> None:
    inside = {"trained_on": ""}
    torch.export.load(models["pt2"], extra_files=inside)
    assert (
        json.loads(inside["trained_on"])
        == TrainedOn.read((run[0].parent / "trained-on.bin").read_bytes(), "").to_text()
    )


def test_where_all_were_trained_on_the_option_is_named(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    path, data = run
    shutil.copytree(data, tmp_path / "data" / "train")
    for name in [
        row["path"] for row in read_table(path.parent / "split.csv") if row["split"] == "val"
    ]:
        (tmp_path / "data" / "train" / name).unlink()
    with pytest.raises(DataError, match=r"all 21 pictures were trained on.*`include_training`"):
        evaluate(open_classifier(path, "cpu"), tmp_path / "data", split="train")


def test_a_study_without_the_record_is_known_by_the_pictures_at_their_old_place(
    run: tuple[Path, Path], moved: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    shutil.copytree(run[0].parent, study)
    (study / "trained-on.bin").unlink()
    old = study / run[0].name
    pictures = tmp_path / "pictures"
    shutil.copytree(run[1], pictures)
    write_text(
        old / "run.yaml", dump_yaml(load_run(old).config.model_copy(update={"data": pictures}))
    )
    assert evaluate(open_classifier(old, "cpu"), moved).trained_on == 22
    row = next(row for row in read_table(study / "split.csv") if row["split"] == "train")
    (pictures / row["path"]).unlink()
    partly = open_classifier(old, "cpu").trained_on()
    assert partly is not None
    assert partly.gone == 1
    shutil.rmtree(pictures)
    unknown = evaluate(open_classifier(old, "cpu"), moved)
    assert (unknown.trained_on, unknown.images) == (None, 29)
    assert unknown.to_json()["training_pictures"] == {"found": None, "counted": True}


# What is left in a folder


def random_report(root: Path, classes: list[str], pictures: int = 60) -> EvaluationReport:
    stream = np.random.default_rng(0)
    labels = np.arange(pictures) % len(classes)
    predicted = np.where(stream.random(pictures) < 0.5, labels, 0)
    paths = []
    for n in range(pictures):
        Image.new("RGB", (5 + n, 64 - n), (n, 0, 0)).save(root / f"{n}.png")
        paths.append(f"{n}.png")
    uniform = stream.random(pictures)
    return EvaluationReport(
        classes, root, paths, labels, predicted, uniform, np.log(uniform), labels != predicted, []
    )


def test_the_folder_holds_numbers_labels_and_two_figures(tmp_path: Path) -> None:
    report = random_report(tmp_path, ["=cmd()", "b"])
    out = tmp_path / "out"
    written = write_evaluation(report, out)
    assert {p.name for p in out.iterdir()} == {p.name for p in written}
    assert {p.name for p in written} == {
        "evaluation.json",
        "predictions.csv",
        "confusion.png",
        "mistakes.png",
    }
    assert json.loads((out / "evaluation.json").read_text()) == report.to_json()
    rows = read_table(out / "predictions.csv")
    assert [row["path"] for row in rows] == report.paths
    assert rows[0] == {
        "path": "0.png",
        "label": "=cmd()",
        "predicted": "=cmd()",
        "probability": f"{report.probability[0]:.6f}",
    }
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300


def test_an_earlier_evaluation_is_replaced_whole_and_nothing_else(tmp_path: Path) -> None:
    report = random_report(tmp_path, ["a", "b"])
    write_evaluation(report, tmp_path / "out")
    perfect = EvaluationReport(
        report.classes, tmp_path, report.paths, report.labels, report.labels, report.probability,
        report.label_log_probability, np.zeros_like(report.labels), [],
    )  # fmt: skip
    write_evaluation(perfect, tmp_path / "out")
    assert not (tmp_path / "out" / "mistakes.png").exists()
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["top1"] == 1.0
    (tmp_path / "mine").mkdir()
    require_room(tmp_path / "mine", EVALUATION)
    (tmp_path / "mine" / "letter.txt").write_text("")
    for place in ("mine", "mine/letter.txt"):
        with pytest.raises(StorageError, match="`output`"):
            write_evaluation(report, tmp_path / place)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_of_many_classes_the_most_confused_are_drawn_and_no_picture_is_lost() -> None:
    counts = np.diag(np.full(100, 10))
    counts[70, 20] = 5
    merged, names = most_confused(counts, [str(n) for n in range(100)], 4)
    # A class without mistakes fills the last place: the first of them.
    assert names == ["0", "20", "70", "97 others"]
    assert merged.sum() == counts.sum()
    assert merged[2].tolist() == [0, 5, 10, 0]
    assert merged[3].tolist() == [0, 0, 0, 970]
    few = np.eye(3, dtype=np.int64)
    assert most_confused(few, ["a", "b", "c"], 4)[0] is few
    figure = confusion_figure([("one", merged)], names)
    assert figure is not None
    assert [t.get_text() for t in figure.axes[0].texts] == ["10", "10", "5", "10", "970"]


def test_worst_mistakes_come_first_and_foreign_names_are_drawn_as_text(tmp_path: Path) -> None:
    report = random_report(tmp_path, ["$a\\frac{$", "b\x1b[31m"])
    figure = mistakes_figure(report)
    assert figure is not None
    assert len(figure.axes) == min(24, len(report.mistakes()))
    assert "\x1b" not in "".join(text.get_text() for text in figure.texts)
    surest = report.mistakes()[0]
    assert f"({report.probability[surest]:.2f})" in figure.texts[1].get_text()
    assert report.probability[surest] == max(report.probability[report.predicted != report.labels])
    (tmp_path / report.paths[surest]).unlink()
    write_evaluation(
        report, tmp_path / "out"
    )  # draws it: a picture that is gone since, and a name like mathematics
