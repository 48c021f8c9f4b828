"""What leaves a run answers as the run does, in every form, for every family of backbones, and can be used tomorrow."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from trained_runs import write_trained_run

import arelu_tl
from arelu_tl.errors import ArtefactError, ConfigError, DataError, StorageError
from arelu_tl.exporting import artefacts
from arelu_tl.exporting.proof import FLOOR, MULTIPLE, measure, prove
from arelu_tl.exporting.report import ExportReport
from arelu_tl.models import export_folder as folder_of_export
from arelu_tl.models.classifier import open_classifier
from arelu_tl.models.freeze import FrozenAReLU
from arelu_tl.models.load import load_model
from arelu_tl.training.checkpoint import save_checkpoint

# family: (architecture, picture size, what is left of its gains, whether timm alone builds it)
FAMILIES = {
    "plain": ("vgg11_bn", 32, 0, False),
    "relu6": ("mobilenetv2_035", 64, 0, False),
    "functional": ("mobilevitv2_050", 64, 0, False),
    "shared": ("hrnet_w18_small", 64, None, False),
    "residual": ("test_resnet", 64, 0, True),
    "squeeze-excite": ("semnasnet_050", 64, 0, True),
    "norm-act": ("mnasnet_small", 64, 0, True),
}
FAST = "residual"


@pytest.fixture(scope="module")
def pictures(make_folder: Any) -> Path:
    return make_folder(classes=3, train=6, val=4, size=50)


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained_run(tmp_path_factory.mktemp("study"), "test_resnet", data=pictures)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The run as a folder, for those who only read it."""
    return arelu_tl.export(run, "safetensors", tmp_path_factory.mktemp("folder") / "out")


def probabilities(path: Path) -> np.ndarray[Any, Any]:
    stream = np.random.default_rng(0)
    shown = [
        Image.fromarray(stream.integers(0, 256, (90, 120, 3), dtype=np.uint8)) for _ in range(3)
    ]
    return open_classifier(path).probabilities(shown)


@pytest.mark.parametrize(
    "folding",
    [pytest.param(True, id="folded"), pytest.param(False, id="unfolded", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f == FAST else pytest.mark.slow) for f in FAMILIES]
)
def test_every_family_leaves_in_every_form_and_comes_back(
    family: str, folding: bool, tmp_path: Path
) -> None:
    name, size, kept, by_timm = FAMILIES[family]
    run = write_trained_run(tmp_path / "study", name, size=size)
    expected = probabilities(run)
    for format_, ending in (("safetensors", ""), ("onnx", ".onnx"), ("pt2", ".pt2")):
        report = arelu_tl.export(run, format_, tmp_path / f"out{ending}", folding=folding)
        assert report.proofs
        assert all(proof.inputs == 10 and proof.share <= 1 for proof in report.proofs)
        if folding:
            assert report.fold is not None
            assert kept is None or len(report.fold.kept) == kept, report.fold.kept
        else:
            assert report.fold is None
        if format_ == "safetensors":
            assert (report.form == "timm") == (by_timm and folding), report.unlike_timm
        if format_ != "pt2":  # which is never loaded
            # Probabilities move by less than logits, which span less than the logarithms of the probabilities do.
            allowed = max(FLOOR * np.abs(np.log(expected)).max(), MULTIPLE * report.proofs[0].own)
            assert np.abs(probabilities(report.path) - expected).max() <= allowed


def test_timm_alone_loads_a_folder_of_its_own_layers(run: Path, exported: ExportReport) -> None:
    theirs = timm.create_model(f"local-dir:{exported.path}", pretrained=True).eval()
    ours, _ = arelu_tl.load_model(run)
    assert not any(isinstance(m, arelu_tl.AReLU | FrozenAReLU) for m in theirs.modules())
    batch = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        prove("timm's", measure(ours, [batch]), theirs)
    assert timm.data.resolve_model_data_config(theirs)["mean"] == [0.5, 0.4, 0.3]
    assert theirs.pretrained_cfg["label_names"] == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize(
    ("arm", "options"),
    [
        ("arelu", {"folding": False}),
        ("arelu", {"trainable": True}),
        ("leaky", {"trainable": True}),
        ("gelu", {}),
    ],
    ids=["unfolded", "trainable", "trainable leaky", "gelu"],
)
def test_timm_alone_does_not_take_another_folder_for_its_own(
    tmp_path: Path, arm: str, options: dict[str, Any]
) -> None:
    """It would put ReLUs where there are none, without a word; activations without weights leave nothing to notice it by."""
    run = write_trained_run(tmp_path / "study", "test_resnet", arm=arm)
    report = arelu_tl.export(run, "safetensors", tmp_path / "out", **options)
    assert report.unlike_timm is not None
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{report.path}", pretrained=True)


def test_what_timm_loads_it_can_also_change(exported: ExportReport) -> None:
    """Another head, no head, other channels: timm needs the names of the layers for it."""
    place = f"local-dir:{exported.path}"
    assert timm.create_model(place, pretrained=True, num_classes=5)(
        torch.randn(1, 3, 64, 64)
    ).shape == (1, 5)
    assert (
        timm.create_model(place, pretrained=True, num_classes=0)(torch.randn(1, 3, 64, 64)).dim()
        == 2
    )
    assert timm.create_model(place, pretrained=True, in_chans=1)(
        torch.randn(1, 1, 64, 64)
    ).shape == (1, 3)


@pytest.mark.slow
def test_a_net_of_a_fixed_size_is_timms_at_that_size(tmp_path: Path) -> None:
    run = write_trained_run(tmp_path / "study", "visformer_tiny", arm="relu", size=64, fixed=True)
    report = arelu_tl.export(run, "safetensors", tmp_path / "out")
    assert [proof.runtime for proof in report.proofs] == ["read back", "timm alone"]


def test_a_trainable_folder_is_the_trained_model_itself(run: Path, tmp_path: Path) -> None:
    report = arelu_tl.export(run, "safetensors", tmp_path / "out", trainable=True)
    assert [proof.stored for proof in report.proofs] == [0.0]
    (model, card), (original, _) = arelu_tl.load_model(report.path), arelu_tl.load_model(run)
    assert card.form == report.form == "trained"
    assert any(isinstance(m, arelu_tl.AReLU) for m in model.modules())
    theirs = original.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def test_the_unmodified_arm_is_timms_own(tmp_path: Path) -> None:
    run = write_trained_run(tmp_path / "study", "test_resnet", arm="relu")
    report = arelu_tl.export(run, "safetensors", tmp_path / "out")
    assert report.form == "timm"
    model = timm.create_model(f"local-dir:{report.path}", pretrained=True).eval()
    batch = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert prove("timm's", measure(arelu_tl.load_model(run)[0], [batch]), model).stored == 0


def test_a_checkpoint_leaves_as_it_is(run: Path, tmp_path: Path) -> None:
    model, _ = arelu_tl.load_model(run)
    with torch.no_grad():
        model.get_parameter("fc.bias").add_(1.0)
    checkpoint = save_checkpoint(run / "checkpoints", 4, model.state_dict(), {"a": 1})
    report = arelu_tl.export(checkpoint, "safetensors", tmp_path / "out")
    told, card = arelu_tl.load_model(report.path)
    assert (card.step, card.top1) == (4, None)
    assert report.run == run
    with torch.inference_mode():
        batch = torch.randn(2, 3, 64, 64)
        prove("the folder", measure(model, [batch]), told)
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtefactError, match="damaged"):
        arelu_tl.load_model(checkpoint)


def test_one_file_from_pixels_to_probabilities(run: Path, pictures: Path, tmp_path: Path) -> None:
    report = arelu_tl.export(run, "onnx", tmp_path / "out.onnx", with_preprocessing=True)
    assert report.proofs[-1].answers == "probabilities"
    shown = [Image.open(path).convert("RGB") for path in sorted(pictures.glob("val/*/*.png"))]
    told, expected = (open_classifier(path).probabilities(shown) for path in (report.path, run))
    assert (
        told.argmax(1) == expected.argmax(1)
    ).mean() > 0.9  # a level of 256 apart here and there
    assert np.abs(told - expected).max() < 0.2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"quantize": "static"}, id="static"),
        pytest.param({"quantize": "dynamic"}, id="dynamic", marks=pytest.mark.slow),
        pytest.param({"fp16": True}, id="fp16", marks=pytest.mark.slow),
    ],
)
def test_fewer_bits_say_what_they_cost(run: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = arelu_tl.export(run, "onnx", tmp_path / "out.onnx", **options)
    # The proofs are of what the fewer bits are made of, and say so.
    assert all(proof.runtime.startswith("in float32, ") for proof in report.proofs)
    change = report.accuracy
    assert change is not None
    assert change.pictures == 12
    told = open_classifier(run), open_classifier(report.path)
    root = arelu_tl.load_run(run).config.data
    assert root is not None
    paths = sorted(root.glob("val/*/*.png"))
    before, after = (
        c.probabilities([Image.open(p).convert("RGB") for p in paths]).argmax(1) for c in told
    )
    labels = np.array([told[0].classes.index(p.parent.name) for p in paths])
    assert change.before == pytest.approx((before == labels).mean())
    assert change.after == pytest.approx((after == labels).mean())
    assert change.same == pytest.approx((before == after).mean())


def test_fewer_bits_need_the_pictures(run: Path, tmp_path: Path) -> None:
    lonely = write_trained_run(tmp_path / "study", "test_resnet")
    with pytest.raises(DataError, match="`data`"):
        arelu_tl.export(lonely, "onnx", tmp_path / "out.onnx", quantize="static")
    with pytest.raises(DataError, match="no such folder"):
        arelu_tl.export(run, "onnx", tmp_path / "out.onnx", data=tmp_path / "nowhere")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("format_", "options", "told"),
    [
        (
            "safetensors",
            {"with_preprocessing": True},
            "`with_preprocessing`: with `format='onnx'` only",
        ),
        ("pt2", {"fp16": True}, "`quantize` and `fp16`: with `format='onnx'` only"),
        ("onnx", {"trainable": True}, "`trainable`"),
        ("onnx", {"fp16": True, "quantize": "static"}, "choose one"),
        ("onnx", {"private": True}, "`private`"),
        ("gguf", {}, "`format` gguf"),
    ],
)
def test_options_that_do_not_go_together(
    run: Path, tmp_path: Path, format_: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        arelu_tl.export(run, format_, tmp_path / "out", **options)


def swapped(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "mean": data["std"], "std": data["mean"]}


@pytest.mark.parametrize(
    ("format_", "options", "told"),
    [
        pytest.param(
            "onnx", {}, "the ONNX file does not hold the preprocessing", marks=pytest.mark.slow
        ),
        ("onnx", {"with_preprocessing": True}, "does not give Pillow's pixels"),
        pytest.param(
            "onnx",
            {"with_preprocessing": True, "quantize": "static"},
            "does not give Pillow's pixels",
            marks=pytest.mark.slow,
        ),
        ("safetensors", {}, "the folder, to timm, does not hold the preprocessing"),
        ("safetensors", {"trainable": True}, "the folder does not hold the preprocessing"),
        pytest.param(
            "pt2", {}, "the pt2 file does not hold the preprocessing", marks=pytest.mark.slow
        ),
    ],
)
def test_mean_and_deviation_exchanged_on_the_way_out(
    run: Path,
    tmp_path: Path,
    format_: str,
    options: dict[str, Any],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever an artefact's reader takes them from: the graph, the metadata, our card or what timm reads."""
    if "with_preprocessing" in options:
        whole = artefacts.with_preprocessing
        monkeypatch.setattr(
            artefacts, "with_preprocessing", lambda core, data: whole(core, swapped(data))
        )
    elif format_ == "safetensors":
        write = folder_of_export._config
        key = "arelu_tl" if options else "pretrained_cfg"

        def config(*given: Any) -> dict[str, Any]:
            made = copy.deepcopy(write(*given))
            made[key] = (
                swapped(made[key])
                if key == "pretrained_cfg"
                else made[key] | {"data_config": swapped(made[key]["data_config"])}
            )
            return made

        monkeypatch.setattr(folder_of_export, "_config", config)
    else:
        texts = artefacts.onnx_metadata
        monkeypatch.setattr(
            artefacts,
            "onnx_metadata",
            lambda card, known: texts({**card, "data_config": swapped(card["data_config"])}, known),
        )
    with pytest.raises(ArtefactError, match=told):
        arelu_tl.export(run, format_, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "format_",
    ["onnx", *(pytest.param(each, marks=pytest.mark.slow) for each in ("safetensors", "pt2"))],
)
def test_a_failed_proof_leaves_nothing(
    run: Path, tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is a real one: a fold that forgets a tenth of a percent of one weight."""

    def spoil(model: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            next(t for t in (*model.parameters(), *model.buffers()) if t.dim() > 1).mul_(1.001)
        return model

    fold, fold_modules = artefacts.fold, artefacts.fold_modules
    monkeypatch.setattr(
        artefacts, "fold", lambda module, products: (fold(module, products), spoil(module))[0]
    )
    monkeypatch.setattr(
        artefacts,
        "fold_modules",
        lambda *given: (lambda made: (spoil(made[0]), *made[1:]))(fold_modules(*given)),
    )
    with pytest.raises(ArtefactError, match="does not answer as the trained model"):
        arelu_tl.export(run, format_, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_proof_leaves_no_folder_behind_either(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "arelu_tl.exporting.export.load_model",
        lambda path: ({}[path], None) if path != run else load_model(run),
    )
    with pytest.raises(KeyError):
        arelu_tl.export(run, "safetensors", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_", ["safetensors", "onnx"])
def test_a_place_that_cannot_be_is_told_before_anything_is_loaded(
    run: Path, tmp_path: Path, format_: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="no folder: choose another `output`"):
        arelu_tl.export(run, format_, tmp_path / "file" / "out")


def test_an_empty_folder_of_ones_own_will_do(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert arelu_tl.export(run, "safetensors", ".", trainable=True).form == "trained"
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    "formats", [("safetensors",), pytest.param(("onnx", "pt2"), marks=pytest.mark.slow)], ids=str
)
def test_class_names_that_are_no_text_leave_as_they_are(
    formats: tuple[str, ...], tmp_path: Path
) -> None:
    names = ["caf\udce9", "日本"]
    run = write_trained_run(tmp_path / "study", "test_resnet", names=names)
    for format_ in formats:
        path = arelu_tl.export(run, format_, tmp_path / f"out.{format_}").path
        if format_ == "pt2":
            inside = {"classes": ""}
            torch.export.load(path, extra_files=inside)
            assert json.loads(inside["classes"]) == names
        else:
            assert open_classifier(path).classes == names


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a pickle to load": ({"model_args": {"checkpoint_path": "/nowhere.pth"}}, "checkpoint_path is no argument"),
    "an address": ({"architecture": "hf-hub:somebody/net"}, "timm has no architecture"),
    "a number for a name": ({"architecture": 3}, "no arelu-tl model card"),
    "text for a list": ({"classes": "abc"}, "no arelu-tl model card"),
    "numbers for names": ({"classes": [1, 2, 3]}, "no arelu-tl model card"),
    "something more": ({"spell": 1}, "unknown spell"),
    "an unknown site": (
        {"form": "frozen", "frozen_sites": [{"name": "nope", "slopes": [0.1], "gains": [1.0], "cap": None}]}, "do not fit",
    ),
    "a slope in words": (
        {"form": "frozen", "frozen_sites": [{"name": "act1", "slopes": ["a"], "gains": [1.0], "cap": None}]}, "do not fit",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arelu_tl.export(
        run, "safetensors", tmp_path_factory.mktemp("exported") / "out", trainable=True
    ).path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_from_somewhere_else_is_not_trusted(folder: Path, tmp_path: Path, name: str) -> None:
    changes, told = HOSTILE[name]
    shutil.copytree(folder, tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    config["arelu_tl"] |= changes
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtefactError, match=told):
        arelu_tl.load_model(tmp_path / "theirs")


@pytest.mark.parametrize("sha256", ["x", [1], None, {"model.safetensors": 3}])
def test_hashes_of_another_shape_are_no_hashes(folder: Path, tmp_path: Path, sha256: Any) -> None:
    shutil.copytree(folder, tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "sha256": sha256}))
    with pytest.raises(ArtefactError, match="has changed since it was exported"):
        arelu_tl.load_model(tmp_path / "theirs")


def test_a_taken_place_is_told_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    for format_ in ("safetensors", "onnx", "pt2"):
        with pytest.raises(StorageError, match="choose another"):
            arelu_tl.export(run, format_, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_export_is_not_exported_again(exported: ExportReport, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is an export already"):
        arelu_tl.export(exported.path, "onnx", tmp_path / "again.onnx")


def test_the_configuration_tells_all_and_names_no_path(
    run: Path, pictures: Path, exported: ExportReport
) -> None:
    text = (exported.path / "config.json").read_text()
    config = json.loads(text)
    assert config["model_args"] == {"act_layer": "prelu"}
    card = config["arelu_tl"]
    assert card["training"]["lr"] == arelu_tl.load_run(run).config.lr
    assert len(card["frozen_sites"]) == len(card["sites"])
    assert config["pretrained_cfg"]["license"] == "mit"
    for path in (run, pictures, exported.path.parent, Path(arelu_tl.__file__).parent):
        assert str(path) not in text


def test_a_local_backbones_folder_is_not_told() -> None:
    card = arelu_tl.ModelCard(
        backbone="local-dir:/a/b/net", architecture="x", img_size=None, arm="relu", classes=[], data_config={}, model_args={},
        sites=[], step=0, top1=0.0, loss=0.0, weights="local-dir:/a/b/net", license=None, version="0",
    )  # fmt: skip
    assert artefacts.without_paths(card) == replace(
        card, backbone="local-dir:net", weights="local-dir:net"
    )
