"""Runs as they lie on the disk become pairs, or a refusal that names what parts them."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import PAIRING, write_run

from arelu_tl.analysis.comparison import compare, compare_runs
from arelu_tl.analysis.pairing import differences
from arelu_tl.analysis.results import Comparison, RateComparison
from arelu_tl.errors import ComparisonError, ConfigError, DataError
from arelu_tl.records.config import check_config, dump_yaml
from arelu_tl.records.runs import load_run

SLOW = (0.1, 0.3, 0.5, 0.7)
FAST = (0.1, 0.7, 0.8, 0.85)


def only_rate(comparison: Comparison) -> RateComparison:
    (found,) = comparison.rates
    return found


# Which runs are a pair


def test_a_pair_shows_what_both_runs_share(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, right=1000)
    write_run(tmp_path, "relu", SLOW, right=1000)
    (pair,) = only_rate(compare([tmp_path])).pairs
    assert pair.proof == {
        "dataset": "d" * 64,
        "head_init": "h" * 64,
        "weights": "w" * 64,
        "order": "order 0",
        "augmentation": "batch 0",
    }
    assert [Path(each).name for each in (pair.run, pair.reference_run)] == [
        "arelu-lr0.0001-s0",
        "relu-lr0.0001-s0",
    ]


def test_what_only_one_run_has_recorded_is_not_shown_as_shared(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST)
    write_run(tmp_path, "relu", SLOW, status=None)
    (pair,) = only_rate(compare([tmp_path])).pairs
    assert set(pair.proof.values()) == {None}
    assert pair.statuses == ("finished", "running")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": 0.01}, "lr 0.01 and 0.0001"),
        ({"seed": 1}, "seed 1 and 0"),
        ({"epochs": 3}, "epochs 3 and 10"),
        ({"batch_size": 64}, "batch_size 64 and 32"),
        ({"model": "resnet18"}, "model resnet18 and tf_efficientnet_lite0"),
        ({"split_seed": 7}, "split_seed 7 and 0"),
        ({"scale": (0.5, 1.0)}, "scale"),
        ({"batch_size": 8, "opt": "sgd"}, "batch_size 8 and 32; opt sgd and adamw"),
    ],
)
def test_runs_with_other_settings_are_refused_by_naming_them(
    settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_run(tmp_path, "arelu", FAST, **settings)
    write_run(tmp_path, "relu", SLOW)
    with pytest.raises(ComparisonError, match="differ in more than the arm") as caught:
        compare([tmp_path])
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dataset": "x" * 64}, "pictures or split"),
        ({"head_init": "x" * 64}, "head initialisation"),
        ({"weights": "x" * 64}, "pretrained weights"),
        (
            {"epochs": [PAIRING["epochs"][0], {"order": "other", "first_batch": "batch 1"}]},
            "order or augmentation in epoch 2",
        ),
        (
            {"epochs": [{"order": "order 0", "first_batch": "other"}]},
            "order or augmentation in epoch 1",
        ),
    ],
)
def test_runs_that_did_not_see_the_same_are_refused_by_naming_it(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_run(tmp_path, "arelu", FAST, pairing={**PAIRING, **changed})
    write_run(tmp_path, "relu", SLOW)
    with pytest.raises(ComparisonError, match=named):
        compare([tmp_path])


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.5, "beta": 1.0, "init": "paper"},
        {"include": ["blocks.*"], "exclude": ["head"], "arelu_lr": 0.1, "calibration_images": 8},
        {
            "data": "elsewhere",
            "output": "elsewhere",
            "workers": 7,
            "name": "x",
            "pretrained_path": "copy.safetensors",
        },
        {"tensorboard": True},
    ],
)
def test_what_belongs_to_the_arm_or_the_place_does_not_part_a_pair(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    write_run(tmp_path, "arelu", FAST, right=1000, **settings)
    write_run(tmp_path, "relu", SLOW, right=1000)
    assert only_rate(compare([tmp_path])).verdict == "ahead in this run"


@pytest.mark.parametrize(
    ("arm", "relu", "words"),
    [
        (
            {"micro_batch": 16},
            {"micro_batch": None},
            ("arelu-lr0.0001-s0 in parts of 16", "relu-lr0.0001-s0 whole"),
        ),
        ({"micro_batch": 8}, {"micro_batch": 16}, ("in parts of 8", "in parts of 16")),
        (
            {"on_features": False},
            {"on_features": True},
            ("relu-lr0.0001-s0 passed its pictures", "once"),
        ),
        ({"micro_batch": 16, "on_features": True}, {"micro_batch": 16, "on_features": True}, ()),
        ({}, {"micro_batch": None, "on_features": False}, ()),
    ],
)
def test_what_became_of_one_run_alone_while_it_trained_is_told(
    arm: dict[str, Any], relu: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    write_run(tmp_path, "arelu", FAST, right=1000, told=arm)
    write_run(tmp_path, "relu", SLOW, right=1000, told=relu)
    found = compare([tmp_path])
    assert len(found.uneven) == bool(words)
    assert set(found.uneven) <= set(found.warnings)
    assert all(word in found.uneven[0] for word in words)


@pytest.mark.parametrize(
    "setting",
    [{"micro_batch": 8}, {"compile": True}, {"channels_last": True}, {"grad_checkpointing": True}],
)
def test_what_changes_the_computation_parts_a_pair(setting: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, **setting)
    write_run(tmp_path, "relu", SLOW)
    with pytest.raises(ComparisonError, match=next(iter(setting))):
        compare([tmp_path])


def test_a_run_that_stopped_early_still_pairs_on_the_epochs_both_have(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, pairing={**PAIRING, "epochs": PAIRING["epochs"][:1]})
    write_run(tmp_path, "relu", SLOW)
    assert only_rate(compare([tmp_path])).pairs[0].proof["order"] == "order 0"


def test_differences_are_the_same_seen_from_either_side(tmp_path: Path) -> None:
    one = load_run(
        write_run(tmp_path, "arelu", FAST, lr=0.01, pairing={**PAIRING, "dataset": "x" * 64})
    )
    other = load_run(write_run(tmp_path, "relu", SLOW))
    assert len(differences(one, other)) == len(differences(other, one)) == 2
    assert differences(one, one) == []


def test_each_rate_and_seed_is_compared_with_its_own_baseline(tmp_path: Path) -> None:
    for lr, arm in ((1e-4, FAST), (1e-3, SLOW)):
        for seed in (0, 1):
            write_run(tmp_path, "arelu", arm, lr=lr, seed=seed)
            write_run(tmp_path, "relu", SLOW, lr=lr, seed=seed)
    alone = write_run(tmp_path, "arelu", FAST, lr=0.1)
    comparison = compare([tmp_path])
    assert [(each.lr, each.seeds, each.aulc.mean > 0.1) for each in comparison.rates] == [
        (1e-4, [0, 1], True),
        (1e-3, [0, 1], False),
    ]
    assert comparison.unpaired == [str(alone)]


def test_a_seed_is_paired_with_the_same_seed(tmp_path: Path) -> None:
    """The head's initialisation comes from the seed: another one is another experiment."""
    write_run(tmp_path, "arelu", FAST, seed=1, pairing={**PAIRING, "head_init": "x" * 64})
    write_run(tmp_path, "relu", SLOW, seed=0)
    with pytest.raises(ComparisonError, match=r"seed 1 and 0; head initialisation \(x+ and h+\)"):
        compare([tmp_path])


def test_a_run_is_paired_within_its_own_study(tmp_path: Path) -> None:
    """Its seconds are then those of the same machine, also where another study's run stands for the cell."""
    for study, seconds, arm in (("a", 0.5, "arelu"), ("b", 5.0, "leaky")):
        for each in ("relu", arm):
            write_run(tmp_path / study, each, SLOW, seconds_a_step=seconds)
    comparison = compare([tmp_path])
    homes = {each.arm: Path(each.pairs[0].reference_run).parent.name for each in comparison.rates}
    assert homes == {"arelu": "a", "leaky": "b"}
    assert [each.cost.seconds_per_step for each in comparison.rates] == pytest.approx([1.0, 1.0])
    assert comparison.repeated == []


def test_runs_of_two_experiments_are_refused_with_what_parts_them(tmp_path: Path) -> None:
    for study, epochs in (("short", 3), ("long", 30)):
        for arm, curve in (("arelu", FAST), ("relu", SLOW)):
            write_run(tmp_path / study, arm, curve, epochs=epochs)
    with pytest.raises(
        ComparisonError, match=r"epochs (3 and 30|30 and 3) .*`allow_difference=KEY`"
    ):
        compare([tmp_path])
    # One seed in two studies is no two seeds, whatever is allowed.
    with pytest.raises(ComparisonError, match="one arm at one rate and seed, and differ: epochs"):
        compare([tmp_path], allow_difference=["epochs"])


def test_a_difference_between_the_arms_can_be_insisted_on_and_is_told(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        "arelu",
        FAST,
        batch_size=64,
        pairing={**PAIRING, "epochs": [{"order": "x", "first_batch": "y"}]},
    )
    write_run(tmp_path, "relu", SLOW)
    with pytest.raises(ComparisonError, match="batch_size"):
        compare([tmp_path])
    comparison = compare([tmp_path], allow_difference=["batch_size"])
    assert comparison.allowed == ["batch_size 64 and 32", "order or augmentation in epoch 1"]
    assert any(
        text.startswith("Compared although they differ: batch_size") for text in comparison.warnings
    )


def test_another_head_is_refused_whatever_else_is_allowed(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, epochs=4, pairing={**PAIRING, "head_init": "x" * 64})
    write_run(tmp_path, "relu", SLOW)
    with pytest.raises(ComparisonError, match="head initialisation"):
        compare([tmp_path], allow_difference=["epochs"])


@pytest.mark.parametrize(
    ("key", "told"),
    [("epoch", "no such setting"), ("lr", "best with best"), ("seed", "best with best")],
)
def test_only_settings_can_be_allowed_to_differ(key: str, told: str, tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST)
    with pytest.raises(ConfigError, match=told):
        compare([tmp_path], allow_difference=[key])


def test_two_variants_of_an_arm_are_told_apart_by_what_parts_them(tmp_path: Path) -> None:
    for init in ("calibrated", "paper"):
        write_run(tmp_path, "arelu", FAST, init=init, name=init)
    write_run(tmp_path, "relu", SLOW, init="paper")
    comparison = compare([tmp_path])
    assert comparison.arms == ["relu", "arelu (init calibrated)", "arelu (init paper)"]
    assert [each.arm for each in comparison.rates] == comparison.arms[1:]


def test_a_cell_counts_once_and_its_finished_run_counts(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "relu", SLOW, status="interrupted")
    whole = write_run(tmp_path / "b", "relu", SLOW)
    write_run(tmp_path / "c", "arelu", FAST)
    comparison = compare([tmp_path])
    assert only_rate(comparison).seeds == [0]
    assert only_rate(comparison).pairs[0].reference_run == str(whole)
    assert comparison.repeated == [str(tmp_path / "a" / "relu-lr0.0001-s0")]


def test_of_several_candidates_the_nearest_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, lr=0.01)
    write_run(tmp_path, "relu", SLOW, lr=0.1, seed=5)
    write_run(tmp_path, "relu", SLOW, seed=0, name="near")
    with pytest.raises(
        ComparisonError, match=r"arelu-lr0\.01-s0 and near differ .* lr 0\.01 and 0\.0001$"
    ):
        compare([tmp_path])


def test_a_running_run_on_other_pictures_is_not_compared(tmp_path: Path) -> None:
    """It has no summary yet, but its study's dataset.json tells that the pictures are others."""
    for study, arm, status in (("herbs", "arelu", None), ("mushrooms", "relu", "finished")):
        pairing = {**PAIRING, "dataset": study}
        write_run(
            tmp_path / study, arm, FAST, status=status, pairing=pairing, data=f"pictures/{study}"
        )
        (tmp_path / study / "study.yaml").write_text(
            dump_yaml(check_config({"data": f"pictures/{study}"})), encoding="utf-8"
        )
        (tmp_path / study / "dataset.json").write_text(
            json.dumps({"fingerprint": study}), encoding="utf-8"
        )
    with pytest.raises(ComparisonError, match=r"pictures or split \(mushrooms and herbs\)"):
        compare([tmp_path])


@pytest.mark.parametrize(
    ("arm", "missing"), [("arelu", "baseline"), ("relu", "an arm beside the baseline")]
)
def test_one_arm_alone_cannot_be_compared(arm: str, missing: str, tmp_path: Path) -> None:
    write_run(tmp_path, arm, FAST)
    with pytest.raises(ComparisonError, match=missing):
        compare([tmp_path])


def test_nothing_at_all_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="0 runs"):
        compare_runs([])


def test_a_path_without_runs_is_a_data_error(tmp_path: Path) -> None:
    write_run(tmp_path / "study", "arelu", FAST)
    with pytest.raises(DataError, match="nowhere"):
        compare([tmp_path / "study", tmp_path / "nowhere"])


def test_two_runs_given_one_by_one_are_compared_and_counted_once(tmp_path: Path) -> None:
    arm = write_run(tmp_path / "a", "arelu", FAST)
    baseline = write_run(tmp_path / "b", "relu", SLOW)
    comparison = compare([arm, str(baseline), tmp_path, arm])
    assert only_rate(comparison).seeds == [0]
    assert comparison.unpaired == comparison.repeated == []


def test_random_weights_come_from_the_seed_and_do_not_part_a_grid(tmp_path: Path) -> None:
    for seed in (0, 1):
        pairing = {**PAIRING, "weights": f"random (seed {seed})", "head_init": f"{seed}" * 64}
        for arm, curve in (("arelu", FAST), ("relu", SLOW)):
            write_run(tmp_path, arm, curve, seed=seed, pretrained=False, pairing=pairing)
    assert only_rate(compare([tmp_path])).seeds == [0, 1]
