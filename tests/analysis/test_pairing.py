"""Runs as they lie on the disk become pairs and verdicts by the documented rule, or a refusal that names the difference."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from arelu_tl.analysis.pairing import Comparison, PairComparison, compare, compare_runs, differences
from arelu_tl.errors import ArtefactError, ComparisonError, DataError
from arelu_tl.records.config import check_config, dump_yaml
from arelu_tl.records.runs import load_run, run_name

STEPS = (0, 10, 20, 30)
SLOW = (0.1, 0.3, 0.5, 0.7)
FAST = (0.1, 0.7, 0.8, 0.85)
PAIRING = {
    "dataset": "d" * 64,
    "head_init": "h" * 64,
    "weights": "w" * 64,
    "epochs": [{"order": f"order {n}", "first_batch": f"batch {n}"} for n in range(3)],
}


def write_run(
    parent: Path,
    arm: str,
    top1: Sequence[float],
    *,
    steps: Sequence[int] = STEPS,
    right: Sequence[bool] | int | None = 1000,
    status: str | None = "finished",
    pairing: dict[str, Any] | None = PAIRING,
    seconds_a_step: float = 0.5,
    losses: Sequence[float] | None = None,
    drift: float | None = None,
    name: str | None = None,
    **settings: Any,
) -> Path:
    """A run folder as training leaves it; ``right`` says which validation pictures the best checkpoint gets right.

    ``status=None`` is a run that is still at it: no summary.
    """
    config = check_config({"arm": arm, **settings})
    path = parent / (name or run_name(arm, config.lr, config.seed))
    path.mkdir(parents=True)
    (path / "run.yaml").write_text(dump_yaml(config), encoding="utf-8")
    losses = losses or [1 - value for value in top1]
    rows = [
        {"step": step, "epoch": 0, "split": "val", "loss": loss, "top1": value, "lr": config.lr, "seconds": seconds_a_step * step}
        for step, value, loss in zip(steps, top1, losses, strict=False)
    ]
    rows.insert(1, {"step": 10, "epoch": 1, "split": "train", "loss": 9.0, "top1": 0.99, "lr": config.lr, "seconds": 1.0})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if status is not None:
        summary = {"arm": arm, "status": status, "images_per_second": 80.0, "peak_memory_bytes": 10**6, "pairing": pairing or {}}
        (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if drift is not None:
        (path / "surgery.json").write_text(json.dumps({"sites": [], "drift": {"relative": drift}}), encoding="utf-8")
    if right is not None:
        right = [True] * right if isinstance(right, int) else right
        with open(path / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "label", "predicted", "probability"])
            writer.writerows([f"val/cat/{n}.png", "cat", "cat" if ok else "dog", "0.9"] for n, ok in enumerate(right))
    return path


def only_pair(comparison: Comparison) -> PairComparison:
    (pair,) = comparison.pairs
    return pair


def compare_two(parent: Path, arm: Sequence[float], baseline: Sequence[float], **options: Any) -> PairComparison:
    write_run(parent, "arelu", arm, **options)
    write_run(parent, "relu", baseline, **options)
    return only_pair(compare([parent]))


# The verdict


@pytest.mark.parametrize(
    ("arm", "baseline", "verdict"),
    [(FAST, SLOW, "faster"), (SLOW, FAST, "slower"), (SLOW, SLOW, "no detectable difference")],
)
def test_the_verdict_follows_the_curves(arm: Sequence[float], baseline: Sequence[float], verdict: str, tmp_path: Path) -> None:
    pair = compare_two(tmp_path, arm, baseline)
    assert pair.verdict == verdict
    assert (f"converged {verdict} than" in pair.sentence) == (verdict != "no detectable difference")


def test_the_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    pair = compare_two(tmp_path, FAST, SLOW, right=400)
    area, base_area = (0.4 + 0.75 + 0.825) / 3, (0.2 + 0.4 + 0.6) / 3
    assert pair.arm.aulc == pytest.approx(area)
    assert pair.baseline.aulc == pytest.approx(base_area)
    assert pair.aulc_difference == pytest.approx(area - base_area)
    assert pair.noise == pytest.approx(1.96 * math.sqrt((area * (1 - area) + base_area * (1 - base_area)) / 400))
    assert pair.validation_images == 400
    assert (pair.steps, pair.lr, pair.seed) == (30, 1e-4, 0)


def test_the_same_effect_is_no_difference_on_few_pictures(tmp_path: Path) -> None:
    few = compare_two(tmp_path / "few", FAST, SLOW, right=10)
    many = compare_two(tmp_path / "many", FAST, SLOW, right=1000)
    assert few.aulc_difference == many.aulc_difference
    assert (few.verdict, many.verdict) == ("no detectable difference", "faster")
    assert "within" in few.sentence
    assert "beyond" in many.sentence


@given(p=st.integers(0, 100), q=st.integers(0, 100), images=st.integers(1, 60))
@settings(deadline=None, max_examples=40)
def test_the_verdict_is_the_documented_rule(tmp_path_factory: pytest.TempPathFactory, p: int, q: int, images: int) -> None:
    """On level curves the mean accuracies are p and q: beyond 1.96 standard errors of their difference, or not."""
    arm, baseline = p / 100, q / 100
    pair = compare_two(tmp_path_factory.mktemp("study"), [arm] * 4, [baseline] * 4, right=images)
    error = math.sqrt((arm * (1 - arm) + baseline * (1 - baseline)) / images)
    assume(not math.isclose(abs(arm - baseline), 1.96 * error))
    beyond = abs(arm - baseline) > 1.96 * error
    assert pair.verdict == ("no detectable difference" if not beyond else "faster" if arm > baseline else "slower")


def test_without_predictions_there_is_no_verdict(tmp_path: Path) -> None:
    pair = compare_two(tmp_path, FAST, SLOW, right=None)
    assert (pair.noise, pair.validation_images, pair.mcnemar_p) == (None, None, None)
    assert pair.verdict == "no detectable difference"
    assert "no predictions to judge it by" in pair.sentence


def test_the_sentence_states_the_rate_and_warns_of_the_one_seed(tmp_path: Path) -> None:
    sentence = compare_two(tmp_path, FAST, SLOW, lr=0.003).sentence
    assert "learning rate 0.003" in sentence
    assert "One seed and one rate" in sentence


# Targets


def test_the_target_is_95_percent_of_the_baselines_best(tmp_path: Path) -> None:
    pair = compare_two(tmp_path, FAST, (0.1, 0.3, 0.8, 0.7))
    assert pair.target == pytest.approx(0.76)
    assert (pair.arm.steps_to_target, pair.baseline.steps_to_target) == (20, 20)
    assert pair.arm.seconds_to_target == 10.0


def test_a_target_can_be_given_and_may_never_be_reached(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST)
    write_run(tmp_path, "relu", SLOW)
    pair = only_pair(compare([tmp_path], target=0.8))
    assert (pair.arm.steps_to_target, pair.arm.seconds_to_target) == (20, 10.0)
    assert (pair.baseline.steps_to_target, pair.baseline.seconds_to_target) == (None, None)
    assert "80.0% was reached after 20 steps against never" in pair.sentence


def test_the_best_step_is_chosen_by_accuracy_then_loss_then_time(tmp_path: Path) -> None:
    pair = compare_two(tmp_path, (0.1, 0.8, 0.8, 0.8), (0.1, 0.8, 0.8, 0.2), losses=(2.0, 1.0, 0.5, 0.5))
    assert (pair.arm.best_step, pair.arm.best_top1) == (20, 0.8)
    assert (pair.arm.final_top1, pair.baseline.final_top1, pair.baseline.final_loss) == (0.8, 0.2, 0.5)


# Runs of different length


def test_both_curves_are_cut_at_the_last_step_that_both_have(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", (0.1, 0.4), steps=(0, 10))
    write_run(tmp_path, "relu", (0.1, 0.4, 0.99, 0.99))
    pair = only_pair(compare([tmp_path]))
    assert pair.steps == pair.baseline.steps == pair.arm.steps == 10
    assert pair.baseline.aulc == pair.arm.aulc == pytest.approx(0.25)
    assert pair.baseline.best_top1 == pair.baseline.final_top1 == 0.4
    assert pair.target == pytest.approx(0.95 * 0.4)
    assert pair.baseline.seconds == 5.0
    assert pair.baseline.curve["step"] == [0, 10]
    assert pair.verdict == "no detectable difference"


def test_a_run_that_is_still_running_is_compared_up_to_where_it_is(tmp_path: Path) -> None:
    running = write_run(tmp_path, "arelu", FAST[:3], status=None, right=None)
    with open(running / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 30, "split": "val", "to')
    write_run(tmp_path, "relu", SLOW)
    pair = only_pair(compare([tmp_path]))
    assert (pair.arm.status, pair.baseline.status) == ("running", "finished")
    assert pair.steps == 20
    assert pair.verdict == "faster"
    assert pair.mcnemar_p is None
    assert set(pair.proof.values()) == {None}
    assert pair.arm.images_per_second is None


def test_a_running_run_on_other_pictures_is_not_compared(tmp_path: Path) -> None:
    """It has no summary yet, but its settings and its study's dataset.json tell that the pictures are others."""
    for study, arm, status in (("herbs", "arelu", None), ("mushrooms", "relu", "finished")):
        pairing = {**PAIRING, "dataset": study}
        write_run(tmp_path / study, arm, FAST, status=status, pairing=pairing, data=f"pictures/{study}")
        (tmp_path / study / "study.yaml").write_text(dump_yaml(check_config({"data": f"pictures/{study}"})), encoding="utf-8")
        (tmp_path / study / "dataset.json").write_text(json.dumps({"fingerprint": study}), encoding="utf-8")
    with pytest.raises(ComparisonError):
        compare([tmp_path])


def test_a_run_not_yet_evaluated_is_told_so(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", (), status=None, right=None)
    write_run(tmp_path, "relu", SLOW)
    with pytest.raises(DataError, match=r"arelu-lr0\.0001-s0 has not been evaluated yet"):
        compare([tmp_path])


# McNemar


@pytest.mark.parametrize(("only_arm", "only_base", "both"), [(9, 1, 30), (1, 9, 0), (6, 6, 3), (5, 0, 2), (40, 20, 100)])
def test_mcnemars_p_is_the_exact_one(only_arm: int, only_base: int, both: int, tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, right=[True] * only_arm + [False] * only_base + [True] * both + [False] * 4)
    write_run(tmp_path, "relu", SLOW, right=[False] * only_arm + [True] * only_base + [True] * both + [False] * 4)
    discordant = only_arm + only_base
    expected = min(1.0, 2 * binom.cdf(min(only_arm, only_base), discordant, 0.5))
    assert only_pair(compare([tmp_path])).mcnemar_p == pytest.approx(expected)


def test_arms_that_err_on_the_same_pictures_have_p_of_one(tmp_path: Path) -> None:
    assert compare_two(tmp_path, FAST, SLOW, right=[True, False, True]).mcnemar_p == 1.0


def test_predictions_of_different_pictures_give_no_p(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, right=5)
    write_run(tmp_path, "relu", SLOW, right=6)
    assert only_pair(compare([tmp_path])).mcnemar_p is None


@pytest.mark.parametrize("content", [b"path,predicted\na,b\n", b"path,label,predicted\n\xff,a,b\n"])
def test_damaged_predictions_are_an_artefact_error_that_names_them(content: bytes, tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST)
    (write_run(tmp_path, "relu", SLOW) / "predictions.csv").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"predictions\.csv"):
        compare([tmp_path])


# Which runs are a pair


def test_a_pair_shows_what_both_runs_share(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, drift=0.25)
    write_run(tmp_path, "relu", SLOW)
    pair = only_pair(compare([tmp_path]))
    assert pair.proof == {
        "dataset": "d" * 64,
        "head_init": "h" * 64,
        "weights": "w" * 64,
        "order": "order 0",
        "augmentation": "batch 0",
    }
    assert (pair.arm.drift, pair.baseline.drift) == (0.25, None)
    assert (pair.arm.arm, pair.baseline.arm) == ("arelu", "relu")


def test_what_only_one_run_has_recorded_is_not_shown_as_shared(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST)
    write_run(tmp_path, "relu", SLOW, status=None)
    assert set(only_pair(compare([tmp_path])).proof.values()) == {None}


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
        ({"lr": 0.01, "opt": "sgd"}, "lr 0.01 and 0.0001; opt sgd and adamw"),
    ],
)
def test_runs_with_other_settings_are_refused_by_naming_them(settings: dict[str, Any], named: str, tmp_path: Path) -> None:
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
        ({"epochs": [PAIRING["epochs"][0], {"order": "other", "first_batch": "batch 1"}]}, "order or augmentation in epoch 2"),
        ({"epochs": [{"order": "order 0", "first_batch": "other"}]}, "order or augmentation in epoch 1"),
    ],
)
def test_runs_that_did_not_see_the_same_are_refused_by_naming_it(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, pairing={**PAIRING, **changed})
    write_run(tmp_path, "relu", SLOW)
    with pytest.raises(ComparisonError, match=named):
        compare([tmp_path])


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.5, "beta": 1.0, "init": "paper"},
        {"include": ["blocks.*"], "exclude": ["head"], "arelu_lr": 0.1, "calibration_images": 8},
        {"data": "elsewhere", "output": "elsewhere", "workers": 7, "name": "x", "pretrained_path": "copy.safetensors"},
    ],
)
def test_what_belongs_to_the_arm_or_the_place_does_not_part_a_pair(settings: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, **settings)
    write_run(tmp_path, "relu", SLOW)
    assert only_pair(compare([tmp_path])).verdict == "faster"


def test_a_run_that_stopped_early_still_pairs_on_the_epochs_both_have(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, pairing={**PAIRING, "epochs": PAIRING["epochs"][:1]})
    write_run(tmp_path, "relu", SLOW)
    assert only_pair(compare([tmp_path])).proof["order"] == "order 0"


def test_differences_are_the_same_seen_from_either_side(tmp_path: Path) -> None:
    one = load_run(write_run(tmp_path, "arelu", FAST, lr=0.01, pairing={**PAIRING, "dataset": "x" * 64}))
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
    verdicts = {(pair.lr, pair.seed): pair.verdict for pair in comparison.pairs}
    same = "no detectable difference"
    assert verdicts == {(1e-4, 0): "faster", (1e-4, 1): "faster", (1e-3, 0): same, (1e-3, 1): same}
    assert comparison.unpaired == [str(alone)]


def test_of_several_candidates_the_nearest_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, lr=0.01)
    write_run(tmp_path, "relu", SLOW, epochs=3, seed=5)
    write_run(tmp_path, "relu", SLOW, seed=0, name="near")
    with pytest.raises(ComparisonError, match=r"arelu-lr0\.01-s0 and near differ .* lr 0\.01 and 0\.0001$"):
        compare([tmp_path])


@pytest.mark.parametrize(("arm", "missing"), [("arelu", "baseline"), ("relu", "an arm beside the baseline")])
def test_one_arm_alone_cannot_be_compared(arm: str, missing: str, tmp_path: Path) -> None:
    write_run(tmp_path, arm, FAST)
    with pytest.raises(ComparisonError, match=missing):
        compare([tmp_path])


def test_nothing_at_all_cannot_be_compared() -> None:
    with pytest.raises(ComparisonError, match="0 runs"):
        compare_runs([])


def test_a_path_without_runs_is_a_data_error(tmp_path: Path) -> None:
    write_run(tmp_path / "study", "arelu", FAST)
    with pytest.raises(DataError, match="nowhere"):
        compare([tmp_path / "study", tmp_path / "nowhere"])


def test_two_runs_given_one_by_one_are_compared_and_counted_once(tmp_path: Path) -> None:
    arm = write_run(tmp_path / "a", "arelu", FAST)
    baseline = write_run(tmp_path / "b", "relu", SLOW)
    comparison = compare([arm, str(baseline), tmp_path, arm])
    assert only_pair(comparison).arm.run == arm.name
    assert comparison.unpaired == []


def test_a_comparison_can_be_written_as_strict_json(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, right=None, status=None)
    write_run(tmp_path, "relu", SLOW)
    comparison = compare([tmp_path], target=2.0)
    told = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert told["pairs"][0]["arm"]["steps_to_target"] is None
    assert told["pairs"][0]["verdict"] == "faster"
    assert told["unpaired"] == []
