"""One classifier for whatever a model lies in, and nothing is loaded that could execute code."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import GIVEN
from PIL import Image
from tiny_onnx import CLASSES, DATA, logits_of, write_tiny_onnx

import arelu_tl
from arelu_tl.data.decode import open_picture
from arelu_tl.data.loader import eval_transform
from arelu_tl.errors import ArtefactError, ConfigError, DataError
from arelu_tl.models.classifier import open_classifier
from arelu_tl.records.storage import EXECUTABLE_ENDINGS


def colour(red: int, green: int, blue: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (red, green, blue))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


@pytest.mark.parametrize("with_preprocessing", [False, True])
def test_an_onnx_file_gives_probabilities_in_either_form(
    with_preprocessing: bool, tmp_path: Path
) -> None:
    classifier = open_classifier(
        write_tiny_onnx(tmp_path / "m.onnx", with_preprocessing=with_preprocessing)
    )
    assert (classifier.classes, classifier.data_config) == (CLASSES, DATA)
    pictures = [colour(200, 10, 30), colour(0, 255, 0, (30, 11)), colour(128, 128, 128, (3, 3))]
    told = classifier.probabilities(pictures)
    assert told.dtype == np.float64
    expected = [softmax(logits_of(np.asarray(picture, dtype=np.float64))) for picture in pictures]
    np.testing.assert_allclose(told, expected, rtol=1e-5)
    assert classifier.probabilities([]).shape == (0, 3)


def test_a_probability_that_came_out_as_zero_has_a_finite_logarithm(tmp_path: Path) -> None:
    weights = np.eye(3) * 500
    classifier = open_classifier(
        write_tiny_onnx(tmp_path / "m.onnx", with_preprocessing=True, weights=weights)
    )
    told = classifier.log_probabilities([classifier.prepare(colour(255, 0, 0))])
    assert np.isfinite(told).all()
    assert told[0, 1] < -100


@pytest.fixture(scope="module")
def run(make_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = arelu_tl.FinetuneConfig(
        data=make_folder(train=4, val=2), output=tmp_path_factory.mktemp("runs"), model="test_resnet", pretrained=False, **GIVEN,
        img_size=32, epochs=1, batch_size=4, workers=0, baseline=False, lr=1e-3, device="cpu",
    )  # fmt: skip
    return arelu_tl.finetune(config).runs[0].path


def test_a_runs_probabilities_are_the_reloaded_models(run: Path) -> None:
    import torch

    pictures = [colour(200, 10, 30, (50, 40)), colour(0, 90, 0, (31, 70))]
    told = open_classifier(run, "cpu").probabilities(pictures)
    model, card = arelu_tl.load_model(run)
    transform = eval_transform(card.data_config)
    with torch.inference_mode():
        expected = (
            model(torch.stack([transform(picture) for picture in pictures])).double().softmax(1)
        )
    np.testing.assert_allclose(told, expected.numpy(), rtol=1e-12)


def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    weights = np.full((3, 3), np.nan)
    for form in (False, True):
        classifier = open_classifier(
            write_tiny_onnx(tmp_path / "m.onnx", weights=weights, with_preprocessing=form)
        )
        with pytest.raises(ArtefactError, match=r"not finite|no probabilities"):
            classifier.probabilities([colour(1, 2, 3)])


@pytest.mark.parametrize("ending", EXECUTABLE_ENDINGS)
def test_files_that_can_execute_code_are_never_loaded(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"model{ending.upper()}"
    file.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ArtefactError, match="execute code"):
        open_classifier(file)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        open_classifier(tmp_path / "nowhere.onnx")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="no model"):
        open_classifier(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="neither a run folder nor"):
        open_classifier(tmp_path)


GOOD = {"classes": json.dumps(CLASSES), "preprocessing": json.dumps(DATA), "arelu_tl": "{}"}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "not written by arelu-tl"),
        ({k: v for k, v in GOOD.items() if k != "arelu_tl"}, "not written by arelu-tl"),
        (GOOD | {"classes": "[1, 2"}, "damaged"),
        (GOOD | {"classes": "[1, 2, 3]"}, "no list of names"),
        (GOOD | {"preprocessing": "7"}, "no object"),
        (GOOD | {"preprocessing": json.dumps(DATA | {"interpolation": "psychic"})}, "psychic"),
    ],
)
def test_an_onnx_file_that_is_not_ours_is_refused(
    metadata: dict[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=reason) as told:
        open_classifier(write_tiny_onnx(tmp_path / "m.onnx", metadata=metadata))
    assert "\n" not in str(told.value)


def test_more_classes_than_answers_are_noticed(tmp_path: Path) -> None:
    metadata = GOOD | {"classes": json.dumps(["a", "b", "c", "d"])}
    classifier = open_classifier(write_tiny_onnx(tmp_path / "m.onnx", metadata=metadata))
    with pytest.raises(ArtefactError, match="numbers"):
        classifier.probabilities([colour(1, 2, 3)])


@pytest.mark.parametrize(
    "content", [b"", b"not an ONNX file", b"\x08\x0a"], ids=["empty", "text", "no graph"]
)
def test_a_damaged_onnx_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtefactError) as told:
        open_classifier(tmp_path / "m.onnx")
    assert "\n" not in str(told.value)


def test_an_onnx_file_that_reads_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime looks for it in the working folder, where it would be found."""
    model = onnx.load(write_tiny_onnx(tmp_path / "whole.onnx"))
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtefactError, match="another file"):
        open_classifier(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("device", "reason"),
    [("mps", "cpu, cuda"), ("cuda:x", "cpu, cuda"), ("cuda", "onnxruntime-gpu")],
)
def test_a_device_that_onnxruntime_lacks_is_told(
    device: str, reason: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=reason):
        open_classifier(write_tiny_onnx(tmp_path / "m.onnx"), device)


def test_without_onnxruntime_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_tiny_onnx(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"arelu-tl\[export\]"):
        open_classifier(file)


EXAMPLE = Path(__file__).parents[2] / "examples" / "run_onnx.py"


def write_brightest(path: Path, **changes: Any) -> Path:
    """A file whose classes are the numbers of its input, so that its label names the greatest of them."""
    data = {**DATA, **changes}
    numbers = int(np.prod(data["input_size"]))
    port = onnx.helper.make_tensor_value_info(
        "pictures", onnx.TensorProto.FLOAT, ["batch", *data["input_size"]]
    )
    out = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", numbers])
    node = onnx.helper.make_node("Flatten", ["pictures"], ["logits"])
    graph = onnx.helper.make_graph([node], "brightest", [port], [out])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    inside = {
        "classes": [str(number) for number in range(numbers)],
        "preprocessing": data,
        "arelu_tl": {},
    }
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in inside.items()})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (12, 8), (9, 14), (15, 7)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_the_example_labels_as_predict_does(
    size: tuple[int, int],
    crop_pct: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On upright, lying, square and odd pictures, one of them turned by what its camera has noted."""
    model = write_brightest(tmp_path / "m.onnx", input_size=[3, *size], crop_pct=crop_pct)
    stream = np.random.default_rng(0)
    classifier = open_classifier(model)
    for width, height, turned in (
        (40, 64, 1),
        (64, 40, 1),
        (33, 33, 1),
        (101, 37, 1),
        (37, 101, 1),
        (7, 5, 1),
        (64, 40, 6),
    ):
        picture = Image.fromarray(stream.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = turned
        picture.save(path := tmp_path / "picture.png", exif=exif)
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(model), str(path)])
        runpy.run_path(str(EXAMPLE))
        expected = classifier.classes[int(classifier.probabilities([open_picture(path)]).argmax())]
        assert capsys.readouterr().out.strip() == expected, (width, height, turned)
