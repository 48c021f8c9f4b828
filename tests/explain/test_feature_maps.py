"""What is told of a picture is what the trained nets do with it, and the start is the one that training began with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import GIVEN
from PIL import Image
from trained_runs import write_trained_run

import arelu_tl
from arelu_tl.activation.arelu import named_arelus
from arelu_tl.data.decode import open_picture
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.errors import ArtefactError, ConfigError, DataError, SurgeryError
from arelu_tl.experiment.start import load_starts
from arelu_tl.explain.features.study import FeatureReport, explain_features
from arelu_tl.models.classifier import open_classifier
from arelu_tl.records.runs import load_run
from arelu_tl.records.storage import read_json, write_json


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "wide.png"
    stream = np.random.default_rng(0)
    Image.fromarray(stream.integers(0, 255, (80, 120, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("study")
    for arm in ("relu", "arelu"):
        write_trained_run(study, "test_resnet", arm=arm, size=96)
    return study


@pytest.fixture(scope="module")
def report(study: Path, picture: Path) -> FeatureReport:
    return explain_features(study / "arelu-lr0.0001-s0", picture)


def test_answers_are_those_of_predict(report: FeatureReport, study: Path, picture: Path) -> None:
    assert [answer.arm for answer in report.answers] == ["relu", "arelu"]
    for answer in report.answers:
        classifier = open_classifier(answer.run)
        expected = classifier.probabilities([open_picture(picture)])[0]
        np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-5)
        assert (
            answer.evidence.label
            == answer.top(1)[0][0]
            == classifier.classes[int(expected.argmax())]
        )
        assert not answer.evidence.asked
    seen = Preprocessing(classifier.data_config).resized(open_picture(picture))
    np.testing.assert_array_equal(report.picture, np.asarray(seen))


def test_every_site_is_measured_in_both_arms_and_three_are_shown(report: FeatureReport) -> None:
    model, card = arelu_tl.load_model(report.answers[1].run)
    arelus = dict(named_arelus(model))
    assert [site.site.name for site in report.sites] == [site["name"] for site in card.sites]
    for site in report.sites:
        relu, arelu = site.statistics["relu"], site.statistics["arelu"]
        assert relu.zero_share == pytest.approx(relu.negative_share, abs=1e-6)
        assert (relu.attention_negative, relu.attention_positive) == (0, 1)
        module = arelus[site.site.name]
        leak = float(module.scale) * float(module.alpha.detach().clamp(0.01, 0.99))
        assert arelu.attention_negative == pytest.approx(leak, rel=1e-4)
        assert arelu.attention_positive == pytest.approx(
            float(module.scale * (1 + module.beta.detach().sigmoid())), rel=1e-4
        )
        assert arelu.zero_share < 0.01
    # Nothing is changed before the first site.
    assert (
        report.sites[0].statistics["relu"].negative_share
        == report.sites[0].statistics["arelu"].negative_share
    )
    shown = report.shown
    assert len(shown) == 3
    assert shown[0][0].number == 1
    assert shown[-1][0].number > len(report.sites) // 2
    for site, each in shown:
        assert len(each.channels) == 4
        for maps in each.maps.values():
            assert maps.before.shape == (4, *site.shape[2:])
            assert maps.attention is not None
            np.testing.assert_allclose(maps.before * maps.attention, maps.after, atol=1e-5)
        np.testing.assert_array_equal(
            each.maps["relu"].after, np.maximum(each.maps["relu"].before, 0)
        )


def test_evidence_is_the_share_of_what_speaks_for_the_class_that_is_asked_for(
    study: Path, picture: Path
) -> None:
    found = [
        explain_features(study / "relu-lr0.0001-s0", picture, label=f"class {n}").answers
        for n in range(7)
    ]
    shares = [answer.evidence.shares for answers in found for answer in answers]
    told = [each for each in shares if each is not None]
    assert told
    for each in told:
        assert each.min() >= 0
        assert each.sum() == pytest.approx(1, abs=1e-5)
    assert all(answer.evidence.asked and answer.evidence.label == "class 3" for answer in found[3])
    for answers in found:
        for answer in answers:
            assert (answer.evidence.shares is None) == (
                answer.evidence.reason == "no place speaks for it"
            )


def test_sites_and_channels_can_be_chosen(study: Path, picture: Path) -> None:
    found = explain_features(
        study / "relu-lr0.0001-s0", picture, site=["layer1.*", "conv1.2"], channels=2
    )
    assert [site.site.name for site, _ in found.shown] == [
        site.site.name
        for site in found.sites
        if site.site.name == "conv1.2" or site.site.name.startswith("layer1.")
    ]
    assert all(len(each.channels) == 2 for _, each in found.shown)
    with pytest.raises(SurgeryError, match="matches no site"):
        explain_features(study / "relu-lr0.0001-s0", picture, site=["conv9*"])
    with pytest.raises(ConfigError, match="no class of this run; there are class 1"):
        explain_features(study / "relu-lr0.0001-s0", picture, label="clas 1")


def test_a_page_has_an_end(picture: Path, tmp_path: Path) -> None:
    run = write_trained_run(tmp_path, "resnet18", arm="relu", size=32)
    with pytest.raises(ConfigError, match="matches 17 sites; a page holds 12"):
        explain_features(run, picture, site=["*"])


def test_a_run_alone_has_the_sites_that_it_runs_and_says_that_it_is_alone(
    study: Path, picture: Path, tmp_path: Path
) -> None:
    runs = {
        arm: shutil.copytree(study / f"{arm}-lr0.0001-s0", tmp_path / arm / f"{arm}-lr0.0001-s0")
        for arm in ("relu", "arelu")
    }
    both = {arm: explain_features(run, picture) for arm, run in runs.items()}
    for arm, found in both.items():
        assert [answer.arm for answer in found.answers] == [arm]
        assert "shown alone" in found.note
    assert [s.site.name for s in both["relu"].sites] == [s.site.name for s in both["arelu"].sites]


def test_runs_of_different_pictures_are_not_shown_beside_each_other(
    study: Path, picture: Path, tmp_path: Path
) -> None:
    shutil.copytree(study / "arelu-lr0.0001-s0", tmp_path / "arelu-lr0.0001-s0")
    write_trained_run(tmp_path, "test_resnet", arm="relu", size=64)
    with pytest.raises(DataError, match="differ in their data_config"):
        explain_features(tmp_path / "arelu-lr0.0001-s0", picture)


def test_tokens_are_laid_out_and_an_activation_without_attention_is_said(
    picture: Path, tmp_path: Path
) -> None:
    arguments = {"act_layer": "relu"}
    for arm in ("relu", "softplus"):
        write_trained_run(tmp_path, "test_vit", arm=arm, size=160, model_args=arguments)
    found = explain_features(tmp_path / "softplus-lr0.0001-s0", picture)
    assert [answer.arm for answer in found.answers] == ["relu", "softplus"]
    for site, each in found.shown:
        assert site.shape[1] == 101  # a class token and 10 x 10 places
        assert each.maps["relu"].before.shape == (4, 10, 10)
        assert each.maps["softplus"].attention is None
        assert site.statistics["softplus"].attention is None
    assert all("no map: shape (101, 64)" in answer.evidence.reason for answer in found.answers)


def test_one_value_a_channel_is_no_map(picture: Path, tmp_path: Path) -> None:
    run = write_trained_run(tmp_path, "mobilenetv3_small_050", arm="arelu", size=64)
    found = explain_features(run, picture, site=["*.se.*"])
    assert found.shown
    for site, each in found.shown:
        assert (each.maps, each.channels) == ({}, [])
        assert "no maps" in each.reason
        assert site.statistics["arelu"].attention is not None
    assert all(each.maps for _, each in explain_features(run, picture).shown)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    config = arelu_tl.FinetuneConfig(
        data=make_folder(train=8, val=4), output=tmp_path_factory.mktemp("runs"), model="test_resnet", pretrained=False, **GIVEN,
        img_size=32, epochs=1, batch_size=8, workers=0, lr=1e-2, device="cpu", calibration_images=8, grad_checkpointing=True,
    )  # fmt: skip
    return arelu_tl.finetune(config).path


def test_the_start_is_what_training_began_with(trained: Path) -> None:
    """Its loss on the validation pictures is that of the row at step 0."""
    found = [load_run(trained / f"{arm}-lr0.01-s0") for arm in ("relu", "arelu")]
    told: list[tuple[int, int]] = []
    for run, (model, card) in zip(
        found, load_starts(found, lambda *at: told.append(at)), strict=True
    ):
        prepare = Preprocessing(card.data_config)
        losses = []
        for path in sorted((run.config.data or trained).glob("val/*/*.png")):
            with torch.no_grad():
                logits = model(torch.from_numpy(prepare(open_picture(path)))[None])
            target = torch.tensor([card.classes.index(path.parent.name)])
            losses.append(float(torch.nn.functional.cross_entropy(logits, target)))
        first = run.curve("val")[0]
        assert first["step"] == card.step == 0
        assert np.mean(losses) == pytest.approx(first["loss"], rel=1e-4)
        assert (run.surgery or {"sites": []})["sites"] == card.sites
    assert told[-1] == (36, 36)


def test_start_and_best_are_told_apart(trained: Path, picture: Path) -> None:
    start, best = (explain_features(trained, picture, at=at) for at in ("start", "best"))
    assert [answer.step for answer in start.answers] == [0, 0]
    assert all(answer.top1 is None for answer in start.answers)
    for before, after in zip(start.answers, best.answers, strict=True):
        if after.step:
            assert np.abs(before.probabilities - after.probabilities).max() > 1e-4


def test_a_start_that_cannot_be_had_is_refused(
    trained: Path, tmp_path: Path, picture: Path
) -> None:
    moved = shutil.copytree(trained, tmp_path / "moved")
    run = moved / "relu-lr0.01-s0"
    summary = read_json(run / "summary.json")
    summary["pairing"]["head_init"] = "0" * 64
    write_json(run / "summary.json", summary)
    with pytest.raises(ArtefactError, match="cannot be built again"):
        explain_features(run, picture, at="start")
    dataset = moved / "dataset.json"
    write_json(dataset, {**read_json(dataset), "fingerprint": "0" * 64})
    with pytest.raises(DataError, match=r"not those that .*relu-lr0\.01-s0 was trained on"):
        explain_features(run, picture, at="start")
    dataset.unlink()
    with pytest.raises(DataError, match=r"no dataset\.json beside"):
        explain_features(run, picture, at="start")
    config = run / "run.yaml"
    data = load_run(run).config.data
    config.write_text(config.read_text().replace(str(data), str(tmp_path / "gone")))
    with pytest.raises(
        DataError, match=r"gone: the pictures of .*moved are not there any more.*--data"
    ):
        explain_features(run, picture, at="start")
