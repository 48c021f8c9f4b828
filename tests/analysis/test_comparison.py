"""What compare finds in folders of runs: the figures, the verdicts, and their words."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from run_folders import PAIRING, draw_correct, write_run
from scipy import stats

from arelu_tl.analysis.comparison import compare
from arelu_tl.analysis.results import Comparison, RateComparison
from arelu_tl.errors import DataError

SLOW = (0.1, 0.3, 0.5, 0.7)
FAST = (0.1, 0.7, 0.8, 0.85)
SAME = "no detectable difference"
AHEAD, BEHIND = "ahead in this run", "behind in this run"


def only_rate(comparison: Comparison) -> RateComparison:
    (found,) = comparison.rates
    return found


def compare_two(
    parent: Path, arm: Sequence[float], baseline: Sequence[float], **options: Any
) -> RateComparison:
    options.setdefault("right", 1000)
    write_run(parent, "arelu", arm, **options)
    write_run(parent, "relu", baseline, **options)
    return only_rate(compare([parent]))


def write_study(
    parent: Path,
    curves: dict[str, dict[float, Sequence[float]]],
    *,
    seeds: int = 3,
    pictures: int = 200,
    jitter: float = 0.0,
    **options: Any,
) -> Path:
    """Runs of every arm, rate and seed whose pictures are drawn from the given curves; the same pictures are hard for all."""
    stream = np.random.default_rng(0)
    difficulty = stream.normal(0, 1.5, pictures)
    for arm, of_arm in curves.items():
        for lr, curve in of_arm.items():
            for seed in range(seeds):
                shifted = np.clip(np.asarray(curve) + jitter * stream.normal(), 0.02, 0.98)
                correct = draw_correct(stream, shifted, pictures, difficulty=difficulty)
                write_run(parent, arm, correct=correct, lr=lr, seed=seed, **options)
    return parent


# One seed


@pytest.mark.parametrize(
    ("arm", "baseline", "one", "several"),
    [(FAST, SLOW, AHEAD, "faster"), (SLOW, FAST, BEHIND, "slower"), (SLOW, SLOW, SAME, SAME)],
)
def test_the_verdict_follows_the_curves_and_one_seed_has_words_of_its_own(
    arm: Sequence[float], baseline: Sequence[float], one: str, several: str, tmp_path: Path
) -> None:
    write_study(tmp_path, {"arelu": {1e-4: arm}, "relu": {1e-4: baseline}})
    found = only_rate(compare([tmp_path]))
    assert (found.verdict, found.one_seed) == (several, False)
    assert (f"converged {several} than" in found.sentence) == (several != SAME)
    (best,) = compare([tmp_path]).best
    assert (best.verdict, best.one_seed) == (
        {"faster": "better", "slower": "worse", SAME: SAME}[several],
        False,
    )
    for seed in (1, 2):
        for name in ("arelu", "relu"):
            shutil.rmtree(tmp_path / f"{name}-lr0.0001-s{seed}")
    found = only_rate(compare([tmp_path]))
    (best,) = compare([tmp_path]).best
    assert (found.verdict, found.one_seed, best.verdict, best.one_seed) == (one, True, one, True)
    claim = {
        AHEAD: "arelu is ahead of relu in this one run",
        BEHIND: "arelu is behind relu in this one run",
    }.get(one)
    assert all(
        (claim or "in this one run, no detectable difference") in told
        for told in (found.sentence, best.sentence)
    )


def test_one_seed_has_nothing_that_speaks_of_others(tmp_path: Path) -> None:
    """No interval, no p, no share of the seeds: of one nothing of the kind is known."""
    write_study(
        tmp_path, {"arelu": {1e-4: FAST, 1e-3: FAST}, "relu": {1e-4: SLOW, 1e-3: SLOW}}, seeds=1
    )
    comparison = compare([tmp_path])
    differences = [
        d
        for each in comparison.rates
        for d in (each.aulc, each.final_top1, each.best_top1, each.final_loss)
    ]
    for d in [*differences, comparison.best[0].accuracy]:
        assert (d.low, d.high, d.half_width, d.p, d.probability_of_improvement, d.detectable) == (
            None,
        ) * 5 + (False,)
    assert {each.p_corrected for each in [*comparison.rates, *comparison.best]} == {None}
    told = " ".join([each.sentence for each in [*comparison.rates, *comparison.best]])
    for sign in ("interval", "±", "beyond the", "p =", "faster", "better", "detect"):
        assert sign not in told.replace("a better one may lie beyond", "")
    assert "Another seed may say otherwise." in told
    assert "the rates were chosen by it, too" in comparison.best[0].sentence


def test_rates_of_one_seed_are_named_beside_those_of_several_and_not_corrected_for(
    tmp_path: Path,
) -> None:
    write_study(tmp_path, {"arelu": {1e-4: FAST, 1e-3: FAST}, "relu": {1e-4: SLOW, 1e-3: SLOW}})
    for seed in (1, 2):
        shutil.rmtree(tmp_path / f"arelu-lr0.001-s{seed}")
    comparison = compare([tmp_path])
    assert [(each.verdict, each.one_seed) for each in comparison.rates] == [
        ("faster", False),
        (AHEAD, True),
    ]
    (found, _), (best,) = comparison.rates, comparison.best
    assert best.one_seed
    assert found.p_corrected == found.aulc.p  # the only verdict that has one
    assert [text for text in comparison.warnings if text.startswith("One seed")] == [
        "One seed in arelu at 0.001 and arelu at its best rate: what happened in one run, not what another seed would give."
    ]


def test_the_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    found = compare_two(tmp_path, FAST, SLOW, right=400)
    area, base_area = (0.4 + 0.75 + 0.825) / 3, (0.2 + 0.4 + 0.6) / 3
    (pair,) = found.pairs
    assert pair.aulc == pytest.approx((area, base_area))
    assert found.aulc.mean == pytest.approx(area - base_area)
    error = np.sqrt((area * (1 - area) + base_area * (1 - base_area)) / 400)
    assert found.aulc.picture_blur == pytest.approx(stats.t.isf(0.025, 399) * error)
    assert (found.aulc.pictures, found.steps, found.lr, found.seeds) == (400, 30, 1e-4, [0])
    assert found.final_top1.mean == pytest.approx(0.15)
    assert found.final_loss.mean == pytest.approx(-0.15)


@given(p=st.integers(0, 100), q=st.integers(0, 100), images=st.integers(2, 60))
@settings(deadline=None, max_examples=30)
def test_one_seeds_verdict_is_the_documented_rule(
    tmp_path_factory: pytest.TempPathFactory, p: int, q: int, images: int
) -> None:
    """On level curves the mean accuracies are p and q: beyond Student's quantile of their difference's error, or not."""
    arm, baseline = p / 100, q / 100
    found = compare_two(tmp_path_factory.mktemp("study"), [arm] * 4, [baseline] * 4, right=images)
    reach = stats.t.isf(0.025, images - 1) * np.sqrt(
        (arm * (1 - arm) + baseline * (1 - baseline)) / images
    )
    assume(not np.isclose(abs(arm - baseline), reach))
    # Pictures that all tell the same tell nothing of others.
    assert found.verdict == (
        SAME if abs(arm - baseline) <= reach or reach == 0 else AHEAD if arm > baseline else BEHIND
    )


def test_one_seed_is_said_to_say_little(tmp_path: Path) -> None:
    found = compare_two(tmp_path / "ahead", FAST, SLOW, lr=0.003)
    assert found.sentence.startswith(
        "At learning rate 0.003, arelu is ahead of relu in this one run: mean accuracy"
    )
    assert "difference +0.258; one seed, 1000 validation pictures" in found.sentence
    level = compare_two(tmp_path / "level", SLOW, SLOW)
    assert level.sentence.startswith(
        "At learning rate 0.0001, in this one run, no detectable difference in convergence"
    )
    assert (
        "difference +0.000, within the ±0.043 that 1000 validation pictures alone can blur; one seed"
        in level.sentence
    )
    warnings = compare([tmp_path / "ahead"]).warnings
    assert any(text.startswith("One seed: what happened in these runs") for text in warnings)
    assert any(text.startswith("One learning rate:") for text in warnings)


def test_without_anything_recorded_there_is_no_verdict(tmp_path: Path) -> None:
    found = compare_two(tmp_path, FAST, SLOW, right=None)
    assert (found.aulc.low, found.aulc.p, found.pairs[0].mcnemar_p) == (None, None, None)
    assert found.verdict == SAME
    assert "nothing recorded to judge it by" in found.sentence


def test_mcnemar_is_of_the_best_checkpoints_on_the_same_pictures(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, right=[True] * 9 + [False] * 1 + [True] * 30)
    write_run(tmp_path, "relu", SLOW, right=[False] * 9 + [True] * 1 + [True] * 30)
    assert only_rate(compare([tmp_path])).pairs[0].mcnemar_p == pytest.approx(
        2 * stats.binom.cdf(1, 10, 0.5)
    )
    write_run(tmp_path / "b", "arelu", FAST, right=5)
    write_run(tmp_path / "b", "relu", SLOW, right=6)
    assert only_rate(compare([tmp_path / "b"])).pairs[0].mcnemar_p is None


# Several seeds


def test_seeds_are_aggregated_as_paired_differences(tmp_path: Path) -> None:
    write_study(tmp_path, {"arelu": {1e-4: FAST}, "relu": {1e-4: SLOW}}, seeds=4, jitter=0.03)
    found = only_rate(compare([tmp_path]))
    by_hand = [pair.aulc[0] - pair.aulc[1] for pair in found.pairs]
    assert found.seeds == [0, 1, 2, 3]
    assert found.aulc.values == pytest.approx(by_hand)
    assert found.aulc.t_test_p == pytest.approx(stats.ttest_1samp(by_hand, 0).pvalue)
    seeds, pictures = (
        stats.t.isf(0.025, 3) * stats.sem(by_hand),
        stats.t.isf(0.025, 199) * (found.aulc.picture_error or 0),
    )
    assert found.aulc.half_width == pytest.approx(np.hypot(seeds, pictures))
    assert found.verdict == "faster"
    assert "4 seeds, 200 validation pictures" in found.sentence
    assert found.aulc.probability_of_improvement == 1.0


def test_many_rates_are_corrected_for_and_said_so(tmp_path: Path) -> None:
    rates = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    slightly = [p + 0.07 * (p > 0.1) for p in SLOW]
    arms = {
        "arelu": {lr: slightly if lr == 1e-4 else SLOW for lr in rates},
        "relu": dict.fromkeys(rates, SLOW),
    }
    write_study(tmp_path, arms, seeds=3, pictures=1500)
    comparison = compare([tmp_path])
    found = next(each for each in comparison.rates if each.lr == 1e-4)
    assert found.verdict == "faster"
    assert found.p_corrected == pytest.approx(min(1.0, 6 * (found.aulc.p or 0)))
    assert found.p_corrected > 0.05
    assert "Corrected for 7 such comparisons it would not hold" in found.sentence


def test_censored_runs_are_counted_not_dropped(tmp_path: Path) -> None:
    for seed, arm in enumerate((FAST, FAST, SLOW)):
        write_run(tmp_path, "arelu", arm, seed=seed)
        write_run(tmp_path, "relu", SLOW, seed=seed)
    found = only_rate(compare([tmp_path], target=0.8))
    arm, reference = found.steps_to_target
    assert (arm.reached, arm.of, arm.values, arm.median) == (2, 3, [20.0, 20.0, None], 20.0)
    assert arm.restricted_mean == pytest.approx((20 + 20 + 30) / 3)
    assert (reference.reached, reference.median, reference.restricted_mean) == (0, None, 30.0)
    assert (
        "80.0% was reached after 20 steps (2 of 3 runs) against never (0 of 3 runs)"
        in found.sentence
    )
    assert found.seconds_to_target[0].values == [10.0, 10.0, None]


def test_the_target_is_95_percent_of_the_baselines_best_over_its_seeds(tmp_path: Path) -> None:
    for seed, best in enumerate((0.8, 0.6)):
        write_run(tmp_path, "arelu", FAST, seed=seed)
        write_run(tmp_path, "relu", (0.1, 0.3, best, 0.2), seed=seed)
    assert only_rate(compare([tmp_path])).target == pytest.approx(0.95 * 0.7)


# Runs that are not whole


def test_both_curves_are_cut_at_the_last_step_that_both_have(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", (0.1, 0.4))
    write_run(tmp_path, "relu", (0.1, 0.4, 0.99, 0.99))
    (pair,) = only_rate(compare([tmp_path])).pairs
    assert pair.steps == 10
    assert pair.aulc == pytest.approx((0.25, 0.25))
    assert pair.best_top1 == pair.final_top1 == (0.4, 0.4)


def test_a_run_still_at_it_is_compared_where_there_is_nothing_further(tmp_path: Path) -> None:
    for arm, curve in (("arelu", FAST), ("relu", SLOW)):
        running = write_run(tmp_path, arm, curve[:3], status=None, right=400)
    with open(running / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 30, "split": "val", "to')
    found = only_rate(compare([tmp_path]))
    assert (found.steps, found.verdict, found.pairs[0].statuses) == (
        20,
        AHEAD,
        ("running", "running"),
    )
    comparison = compare([tmp_path])
    assert comparison.best == []  # either may yet get better
    assert any("still being trained" in text for text in comparison.warnings)


def test_a_seed_that_is_still_behind_does_not_cut_the_others_back(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "arelu", FAST, seed=seed)
        write_run(tmp_path, "relu", SLOW, seed=seed)
    behind = [
        write_run(tmp_path, arm, (0.1, 0.2), seed=2, status=None) for arm in ("arelu", "relu")
    ]
    waiting = write_run(tmp_path, "arelu", (), seed=3, status=None)
    comparison = compare([tmp_path])
    assert only_rate(comparison).seeds == [0, 1]
    assert only_rate(comparison).steps == 30
    assert comparison.unfinished == sorted(map(str, behind))
    assert comparison.waiting == [str(waiting)]
    assert any("3 runs are still behind" in text for text in comparison.warnings)


def test_evaluations_at_other_steps_are_cut_where_both_were_evaluated(tmp_path: Path) -> None:
    """The same straight line seen at other steps is the same line."""
    write_run(
        tmp_path, "arelu", (0.1, 0.2, 0.3, 0.4), steps=(0, 10, 20, 30), right=1000, eval_every=10
    )
    write_run(
        tmp_path,
        "relu",
        (0.1, 0.15, 0.2, 0.25, 0.3, 0.35),
        steps=(0, 5, 10, 15, 20, 25),
        right=1000,
    )
    found = only_rate(compare([tmp_path], allow_difference=["eval_every"]))
    assert (found.steps, found.cut) == (20, True)
    assert found.aulc.mean == pytest.approx(0)
    assert "up to step 20" in found.sentence


def test_a_run_that_stopped_early_reached_what_it_reached_later_than_the_other_ended(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, "arelu", (0.1, 0.5, 0.6))
    write_run(tmp_path, "relu", (0.1, 0.3, 0.4, 0.5, 0.8))
    found = only_rate(compare([tmp_path]))
    assert found.steps == 20
    assert [time.values for time in found.steps_to_target] == [[None], [40.0]]


def test_a_failed_try_under_other_settings_says_nothing_of_the_arm(tmp_path: Path) -> None:
    write_study(tmp_path / "good", {"arelu": {1e-4: FAST}, "relu": {1e-4: SLOW}}, seeds=3)
    tried = write_run(tmp_path / "tried", "arelu", (), seed=7, batch_size=512, status="failed")
    made_good = write_run(tmp_path / "tried", "arelu", (), seed=1, status="failed")
    comparison = compare([tmp_path])
    assert only_rate(comparison).verdict == "faster"
    assert comparison.failed == []
    assert comparison.repeated == sorted(map(str, (made_good, tried)))


def test_an_arm_that_never_gets_through_a_rate_fails_the_gate(tmp_path: Path) -> None:
    write_study(tmp_path, {"arelu": {1e-4: FAST}, "relu": {1e-4: SLOW, 1e-2: SLOW}}, seeds=2)
    for seed in (0, 1):
        write_run(tmp_path, "arelu", (), lr=1e-2, seed=seed, status="failed")
    comparison = compare([tmp_path])
    assert comparison.failing(["slower"]) == ["arelu failed in every run at learning rate 0.01"]
    assert comparison.failing(["worse"]) == []
    assert comparison.of_one_seed(["slower"]) == []
    shutil.rmtree(tmp_path / "arelu-lr0.01-s1")
    comparison = compare([tmp_path])
    assert comparison.failing(["slower"]) == []
    assert comparison.of_one_seed(["slower"]) == ["arelu at learning rate 0.01"]
    assert comparison.failing(["slower"], one_seed=True) == [
        "arelu failed in every run at learning rate 0.01"
    ]


@pytest.mark.parametrize("pictures", [1, 2])
def test_one_or_two_pictures_prove_nothing(pictures: int, tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "arelu", correct=np.ones((4, pictures), dtype=bool), seed=seed)
        write_run(tmp_path, "relu", correct=np.zeros((4, pictures), dtype=bool), seed=seed)
    assert only_rate(compare([tmp_path])).verdict == SAME


def test_nothing_evaluated_yet_is_told_so(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", (), status=None)
    with pytest.raises(DataError, match="none of 1 runs has been evaluated"):
        compare([tmp_path])


def test_an_arm_that_failed_is_not_called_faster_there(tmp_path: Path) -> None:
    write_study(tmp_path, {"arelu": {1e-4: FAST}, "relu": {1e-4: SLOW}}, seeds=3)
    assert only_rate(compare([tmp_path])).verdict == "faster"
    failed = write_run(tmp_path, "arelu", FAST, seed=3, status="failed")
    write_run(tmp_path, "relu", SLOW, seed=3)
    comparison = compare([tmp_path])
    found = only_rate(comparison)
    assert (found.verdict, found.failures) == (SAME, (1, 0))
    assert "arelu and relu are not judged" in found.sentence
    assert "arelu failed here in 1 more run" in found.sentence
    assert comparison.failed[0].path == str(failed)
    assert any("the training loss became nan" in text for text in comparison.warnings)


# Best rate against best rate


def test_what_a_larger_rate_would_have_done_is_not_credited_to_the_swap(tmp_path: Path) -> None:
    """At 1e-4 the arm is far ahead; tuned, both reach the same: fact 4 of the design."""
    curves = {
        "arelu": {1e-4: FAST, 1e-3: FAST, 1e-2: SLOW},
        "relu": {1e-4: SLOW, 1e-3: FAST, 1e-2: SLOW},
    }
    comparison = compare([write_study(tmp_path, curves)])
    assert [each.verdict for each in comparison.rates] == ["faster", SAME, SAME]
    (best,) = comparison.best
    assert best.verdict == SAME
    assert (best.reference_lr, best.at_edge.get("relu")) == (1e-3, None)
    assert "Each at its best learning rate" in best.sentence
    assert best.accuracy.mean == pytest.approx(best.arm_accuracy - best.reference_accuracy)


@pytest.mark.parametrize(
    ("arm", "verdict"), [((0.1, 0.9, 0.95, 0.96), "better"), ((0.1, 0.2, 0.3, 0.35), "worse")]
)
def test_a_better_or_worse_best_is_said(arm: Sequence[float], verdict: str, tmp_path: Path) -> None:
    curves = {"arelu": {1e-4: SLOW[:1] * 4, 1e-3: arm}, "relu": {1e-4: SLOW[:1] * 4, 1e-3: SLOW}}
    comparison = compare([write_study(tmp_path, curves)])
    (best,) = comparison.best
    assert best.verdict == verdict
    assert best.at_edge == {"arelu": "largest", "relu": "largest"}
    assert best.cross_fitted
    assert "relu's best is the largest rate tried" in best.sentence
    assert comparison.failing(["worse"]) == (
        ["arelu is worse than relu at their best rates"] if verdict == "worse" else []
    )
    assert len(comparison.failing(["slower"])) == (verdict == "worse")


def test_a_rate_at_which_a_seed_failed_is_no_candidate_for_the_best(tmp_path: Path) -> None:
    curves = {"arelu": {1e-4: SLOW, 1e-3: SLOW}, "relu": {1e-4: SLOW, 1e-3: SLOW}}
    write_study(tmp_path, curves, seeds=2)
    (tmp_path / "arelu-lr0.001-s1" / "summary.json").write_text('{"status": "failed"}')
    (best,) = compare([tmp_path]).best
    assert (best.lr, best.seeds, best.rates_tried) == (1e-4, [0, 1], (1, 2))
    assert "arelu had 1 rate to choose from, relu 2 rates" in best.sentence


def test_a_sweep_cut_short_is_judged_by_its_whole_seeds_at_all_its_rates(tmp_path: Path) -> None:
    curves = {"arelu": {1e-5: FAST, 1e-3: SLOW}, "relu": {1e-5: SLOW[:1] * 4, 1e-3: FAST}}
    write_study(tmp_path, curves, seeds=3)
    for arm in curves:
        shutil.rmtree(tmp_path / f"{arm}-lr0.001-s2")
    (best,) = compare([tmp_path]).best
    assert (best.seeds, best.rates_tried, best.reference_lr) == ([0, 1], (2, 2), 1e-3)


def test_a_rate_that_one_side_is_still_at_is_no_candidate_for_the_other(tmp_path: Path) -> None:
    curves = {"arelu": {1e-4: SLOW, 1e-3: FAST}, "relu": {1e-4: SLOW, 1e-3: FAST}}
    write_study(tmp_path, curves, seeds=2)
    shutil.rmtree(tmp_path / "arelu-lr0.001-s1")
    (best,) = compare([tmp_path]).best
    assert (best.seeds, best.rates_tried, best.rates_begun) == ([0], (2, 2), (2, 2))


# Controls and cost


def test_whose_the_gain_is(tmp_path: Path) -> None:
    curves = {
        "arelu": {1e-4: FAST},
        "leaky": {1e-4: FAST},
        "arelu-frozen": {1e-4: FAST},
        "relu": {1e-4: SLOW},
    }
    comparison = compare([write_study(tmp_path, curves)])
    assert {(each.arm, each.reference) for each in comparison.controls} == {
        ("arelu", "leaky"),
        ("arelu", "arelu-frozen"),
    }
    assert {each.verdict for each in comparison.controls} == {SAME}
    told = " ".join(comparison.gain)
    assert "a fixed leaky slope alone gives +0." in told
    assert "% of it" in told
    assert "learning alpha and beta adds" in told
    assert "on the unmodified net that is nothing" in told


def test_of_one_seed_the_gain_is_that_of_this_run(tmp_path: Path) -> None:
    curves = {"arelu": {1e-4: FAST}, "leaky": {1e-4: FAST}, "relu": {1e-4: SLOW}}
    write_study(tmp_path, curves, seeds=2)
    shutil.rmtree(tmp_path / "leaky-lr0.0001-s1")
    told = " ".join(compare([tmp_path]).gain)
    assert re.search(
        r"arelu has \+0\.\d{3} ± 0\.\d{3} over relu; a fixed leaky slope alone gives \+0\.\d{3} in one run; alpha",
        told,
    )
    assert "% of it" not in told
    shutil.rmtree(tmp_path / "arelu-lr0.0001-s1")
    told = " ".join(compare([tmp_path]).gain)
    assert re.search(
        r"arelu has \+0\.\d{3} in one run over relu; a fixed leaky slope alone gives \+0\.\d{3} in one run; ",
        told,
    )
    assert "±" not in told


def test_each_variant_of_the_swap_is_held_to_the_controls(tmp_path: Path) -> None:
    for seed in range(2):
        for arm, init, curve in (
            ("arelu", "calibrated", FAST),
            ("arelu", "paper", SLOW),
            ("leaky", "calibrated", FAST),
        ):
            write_run(
                tmp_path, arm, curve, init=init, seed=seed, name=f"{arm}-{init}-{seed}", right=300
            )
        write_run(tmp_path, "relu", SLOW, seed=seed, right=300)
    comparison = compare([tmp_path])
    assert {(each.arm, each.reference) for each in comparison.controls} == {
        ("arelu (init calibrated)", "leaky"),
        ("arelu (init paper)", "leaky"),
    }
    assert len([text for text in comparison.gain if "a fixed leaky slope alone gives" in text]) == 2


def test_recalibration_is_measured_where_its_arm_was_run_and_asked_for_where_it_matters(
    tmp_path: Path,
) -> None:
    write_study(tmp_path, {"arelu": {1e-4: FAST}, "relu": {1e-4: SLOW}}, batchnorm="reestimated")
    assert any("add the arm recalibrated" in text for text in compare([tmp_path]).gain)
    write_study(tmp_path, {"recalibrated": {1e-4: SLOW}})
    assert any("recalibration alone gives" in text for text in compare([tmp_path]).gain)


def test_cost_is_a_ratio_to_the_reference(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, seconds_a_step=0.6)
    write_run(tmp_path, "relu", SLOW, seconds_a_step=0.4)
    cost = only_rate(compare([tmp_path])).cost
    assert cost.seconds_per_step == pytest.approx(1.5)
    assert (cost.images_per_second, cost.peak_memory) == (1.0, 1.0)


def test_cells_have_means_and_spreads_and_the_mean_curve(tmp_path: Path) -> None:
    for seed, arm in enumerate((FAST, SLOW)):
        write_run(tmp_path, "arelu", arm, seed=seed, drift=0.5)
        write_run(tmp_path, "relu", SLOW, seed=seed)
    comparison = compare([tmp_path])
    cell = comparison.cell("arelu", 1e-4)
    assert cell is not None
    assert cell.final_top1.values == [0.85, 0.7]
    assert (cell.final_top1.mean, cell.final_top1.sd) == pytest.approx(
        (0.775, np.std([0.85, 0.7], ddof=1))
    )
    assert cell.drift == 0.5
    assert cell.curve["step"] == [0, 10, 20, 30]
    assert cell.curve["top1"] == pytest.approx(np.mean([FAST, SLOW], axis=0).tolist())
    assert (cell.curve["top1_low"], cell.curve["top1_high"]) == (list(SLOW), list(FAST))


def test_a_comparison_can_be_written_as_strict_json(tmp_path: Path) -> None:
    write_run(tmp_path, "arelu", FAST, right=None)
    write_run(tmp_path, "relu", SLOW, pairing={**PAIRING, "epochs": []})
    told = json.loads(json.dumps(compare([tmp_path], target=2.0).to_json(), allow_nan=False))
    assert told["rates"][0]["steps_to_target"][0]["median"] is None
    assert told["rates"][0]["verdict"] == SAME
    assert told["best"][0]["choices"] == {"0.0001": 1.0}
