"""The configuration: what it takes, what it refuses in one line, and that a file brings back what was written."""

import inspect
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from arelu_tl.activation.catalogue import SURGERY_ARMS
from arelu_tl.errors import ConfigError
from arelu_tl.paper.config import ReproduceConfig
from arelu_tl.records.config import (
    ARM_KEYS,
    ARMS,
    PLACE_KEYS,
    TRAINED_OTHERWISE,
    Arm,
    BatchNorm,
    FinetuneConfig,
    Granularity,
    Init,
    SweepConfig,
    check_config,
    dump_yaml,
    read_yaml,
)
from arelu_tl.surgery.convert import BATCHNORM_MODES, RECALIBRATED, convert
from arelu_tl.surgery.plan import GRANULARITIES, INITS

QUICK = settings(deadline=None, max_examples=30)
text = st.text(
    st.sampled_from("aé😀 1.-_:#'\"\\/[]{}*&!%@\n\r\t\x00~=?|>,"), max_size=10
) | st.sampled_from(
    ["null", "yes", "no", "1e-4", "0x10", "1_000", "12:30:45", "2024-01-01", "~", "<<", "="]
)
positive = st.floats(min_value=0, exclude_min=True, max_value=1e6, allow_subnormal=False)


@st.composite
def configurations(draw: st.DrawFn) -> FinetuneConfig:
    values: dict[str, Any] = {
        "data": draw(st.none() | text.filter(lambda path: "\0" not in path).map(Path)),
        "train_split": draw(
            text.filter(lambda name: name not in ("", ".", "..") and not set(name) & set("/\\\0"))
        ),
        "val_fraction": draw(st.floats(0.001, 0.999)),
        "workers": draw(st.none() | st.integers(0, 64)),
        "model": draw(text),
        "arm": draw(st.sampled_from(ARMS)),
        "granularity": draw(st.sampled_from(["site", "channel"])),
        "batchnorm": draw(st.sampled_from(["corrected", "reestimated", "kept"])),
        "drift_budget": draw(st.just(0.0) | positive),
        "share_sites": draw(st.booleans()),
        "inplace": draw(st.booleans()),
        "alpha": draw(st.none() | st.floats(0.01, 0.99)),
        "beta": draw(st.none() | st.floats(-20, 20)),
        "include": draw(st.lists(text, max_size=3)),
        "epochs": draw(st.integers(1, 10**6)),
        "batch_size": draw(st.just("auto") | st.integers(1, 10**6)),
        "channels_last": draw(st.none() | st.booleans()),
        "lr": draw(positive),
        "head_lr": draw(st.none() | positive),
        "sched": draw(st.sampled_from(["cosine", "tanh", "step", "poly", "none"])),
        "scale": tuple(sorted(draw(st.tuples(st.floats(0.001, 1), st.floats(0.001, 1))))),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "name": draw(st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,6}", fullmatch=True)),
        "baseline": draw(st.booleans()),
    }
    return check_config(values)


def yaml_file(folder: Path, content: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(content, encoding="utf-8")
    return path


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


# There and back


@given(configurations())
@QUICK
def test_a_written_configuration_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, config: FinetuneConfig
) -> None:
    path = yaml_file(tmp_path_factory.getbasetemp(), dump_yaml(config))
    assert check_config(read_yaml(path)) == config


def test_the_defaults_are_valid_and_written_in_full() -> None:
    defaults = check_config({})
    assert set(yaml.safe_load(dump_yaml(defaults))) == set(FinetuneConfig.model_fields)
    assert check_config(yaml.safe_load(dump_yaml(defaults))) == defaults


def test_what_is_written_is_plain_yaml_that_a_person_can_read() -> None:
    written = dump_yaml(
        check_config({"data": "my pictures/kräuter", "lr": 3e-4, "include": ["blocks.*"]})
    )
    assert "data: my pictures/kräuter\n" in written
    assert "lr: 0.0003\n" in written
    assert "!!" not in written


def test_a_configuration_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        check_config({}).lr = 1.0  # type: ignore[misc]


def test_only_known_keys_are_exempt_from_fair_comparison() -> None:
    assert set(FinetuneConfig.model_fields) >= ARM_KEYS | PLACE_KEYS
    assert not (ARM_KEYS | PLACE_KEYS) & {
        "lr",
        "seed",
        "epochs",
        "batch_size",
        "opt",
        "model",
        "split_seed",
        "scale",
    }


# What surgery knows and the configuration may not import


def test_the_arms_are_relu_and_all_that_surgery_makes() -> None:
    assert len(set(SURGERY_ARMS)) == len(SURGERY_ARMS)
    assert RECALIBRATED not in SURGERY_ARMS  # which put something at their sites
    assert sorted(get_args(Arm)) == sorted(
        ["relu", "maxout", RECALIBRATED, *TRAINED_OTHERWISE, *SURGERY_ARMS]
    )
    assert get_args(Arm) == ARMS


@pytest.mark.parametrize(
    ("literal", "known"),
    [(Init, ("auto", *INITS)), (Granularity, GRANULARITIES), (BatchNorm, BATCHNORM_MODES)],
    ids=str,
)
def test_the_choices_of_surgery_are_those_of_the_configuration(
    literal: Any, known: tuple[str, ...]
) -> None:
    assert sorted(get_args(literal)) == sorted(known)


def test_the_defaults_are_those_of_surgery() -> None:
    defaults, parameters = check_config({}).surgery(), inspect.signature(convert).parameters
    for key in (
        "arm",
        "init",
        "granularity",
        "share_sites",
        "batchnorm",
        "drift_budget",
        "inplace",
    ):
        assert getattr(defaults, key) == parameters[key].default, key


# YAML


@pytest.mark.parametrize(
    ("written", "lr"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("0.0001", 1e-4),
        ("'0.01'", 0.01),
        ("1E-2", 0.01),
        ("1", 1.0),
    ],
)
def test_a_rate_may_be_written_as_people_write_it(written: str, lr: float, tmp_path: Path) -> None:
    assert check_config(read_yaml(yaml_file(tmp_path, f"lr: {written}\n"))).lr == lr


@pytest.mark.parametrize("content", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_holds_no_settings(content: str, tmp_path: Path) -> None:
    assert read_yaml(yaml_file(tmp_path, content)) == {}


@pytest.mark.parametrize(
    "content", ["- lr\n- 0.1\n", "just words\n", "3\n", "1: one\n2: two\n", "true: 1\n"]
)
def test_what_is_not_a_mapping_of_names_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        read_yaml(yaml_file(tmp_path, content))


@pytest.mark.parametrize(
    "content", ["lr: [1\n", "lr: 1: 2\n", "\tlr: 1\n", "lr: *nowhere\n", "{[a]: 1}\n"]
)
def test_what_is_not_yaml_is_refused_in_one_line_that_names_the_file(
    content: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        read_yaml(yaml_file(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "name: 2024-02-30\n",
        "lr: !!float abc\n",
        "name: !!timestamp x\n",
        "baseline: !!bool maybe\n",
    ],
)
def test_a_value_that_contradicts_its_yaml_type_is_refused_like_any_bad_yaml(
    content: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_yaml(yaml_file(tmp_path, content))


def test_yaml_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_yaml(yaml_file(tmp_path, "include: " + "[" * 1000))


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch",
        "!!python/object/new:pathlib.Path",
        "!!python/name:os.system",
    ],
)
def test_yaml_cannot_make_python_objects(tag: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    argument = "" if "name" in tag else f" ['{target.as_posix()}']"
    with pytest.raises(ConfigError):
        read_yaml(yaml_file(tmp_path, f"data: {tag}{argument}\n"))
    assert not target.exists()


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80\x02\xff\xfe")
    with pytest.raises(ConfigError, match=r"model\.pt"):
        read_yaml(path)


@pytest.mark.parametrize("name", ["nowhere.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path / name)


# Faults


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("bach_size", "batch_size"),
        ("batch-size", "batch_size"),
        ("epoch", "epochs"),
        ("weight-decay", "weight_decay"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(key: str, meant: str) -> None:
    assert f"unknown key {key!r} (did you mean {meant!r}?)" in refusal({key: 1})


@pytest.mark.parametrize("model", [FinetuneConfig, SweepConfig, ReproduceConfig])
def test_a_tilde_is_the_home_folder_in_every_path(
    model: type[BaseModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = [key for key, field in model.model_fields.items() if "Path" in str(field.annotation)]
    assert {"data", "output"} <= set(keys)
    for key in keys:
        for written in ("~/x y", Path("~/x y")):
            assert getattr(check_config({key: written}, model), key) == tmp_path / "x y"
        assert getattr(check_config({key: "a/~/b"}, model), key) == Path("a/~/b")
        assert getattr(check_config({key: "~nobody-of-this-name/b"}, model), key) == Path(
            "~nobody-of-this-name/b"
        )
    if "model" in model.model_fields:
        assert check_config({"model": "local-dir:~/net"}).model == f"local-dir:{tmp_path}/net"


def test_an_unknown_key_like_no_other_gets_no_suggestion() -> None:
    message = refusal({"zzzzzzzz": 1})
    assert "'zzzzzzzz'" in message
    assert "did you mean" not in message


def test_all_faults_are_told_together_in_one_line() -> None:
    message = refusal(
        {
            "lr": -1,
            "epochs": "many",
            "bach_size": 2,
            "arm": "glue",
            "scale": [1, 2, 3],
            "val_fraction": 1,
        }
    )
    for told in (
        "lr = -1",
        "epochs = 'many'",
        "'batch_size'",
        "arm = 'glue'",
        "scale",
        "val_fraction = 1",
    ):
        assert told in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0),
        ("lr", -1e-4),
        ("lr", math.inf),
        ("lr", math.nan),
        ("lr", "fast"),
        ("lr", None),
        ("lr", [1e-4]),
        ("head_lr", -1),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", -3),
        ("workers", -1),
        ("alpha", 1.0),
        ("alpha", 0.0),
        ("val_fraction", 0),
        ("val_fraction", 1),
        ("seed", -1),
        ("seed", 2**32),
        ("hflip", 1.01),
        ("patience", 0),
        ("img_size", 4),
        ("arm", "leaky relu"),
        ("init", "random"),
        ("granularity", "pixel"),
        ("batchnorm", "frozen"),
        ("drift_budget", None),
        ("drift_budget", -0.1),
        ("drift_budget", math.inf),
        ("share_sites", "perhaps"),
        ("baseline", "perhaps"),
        ("include", "blocks.*"),
        ("model", 3),
        ("name", "../elsewhere"),
        ("name", "a/b"),
        ("name", ".hidden"),
        ("name", ""),
        ("name", "line\nbreak"),
        ("name", "ends\n"),
        ("scale", 0.5),
        ("scale", [0.5]),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_named(key: str, value: Any) -> None:
    message = refusal({key: value})
    assert key in message
    assert repr(value) in message


def test_a_yes_is_not_a_number() -> None:
    message = refusal({"lr": True, "epochs": True, "seed": False})
    assert all(f"{key} = " in message for key in ("lr", "epochs", "seed"))


@pytest.mark.parametrize("scale", [(0.9, 0.3), (0.0, 1.0), (-0.1, 0.5), (0.5, 1.1)])
def test_scale_goes_from_least_to_most_within_the_picture(scale: tuple[float, float]) -> None:
    assert "scale needs two numbers with 0 < least <= most <= 1" in refusal({"scale": scale})


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), [0.1, 1]])
def test_scale_may_be_a_single_share_and_a_list(scale: Any) -> None:
    assert check_config({"scale": scale}).scale == tuple(scale)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"epochs": 2, "warmup_epochs": 3}, "warmup_epochs"),
        ({"pretrained": False, "pretrained_path": "weights.safetensors"}, "pretrained_path"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], hint: str) -> None:
    assert hint in refusal(values)


@given(
    st.dictionaries(
        st.sampled_from(sorted(FinetuneConfig.model_fields)) | text,
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | text
        | st.lists(st.floats() | text, max_size=3),
        max_size=5,
    )
)
@QUICK
def test_whatever_the_values_every_fault_is_told_in_one_line(values: dict[str, Any]) -> None:
    message = ""
    try:
        check_config(values)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message
    assert all(
        f"unknown key {key!r}" in message
        for key in values.keys() - FinetuneConfig.model_fields.keys()
    )
