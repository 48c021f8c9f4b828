"""Compare an arm with the baseline it differs from in nothing else, and say what the numbers allow.

The rule behind the words, for one pair (one learning rate, one seed):

* Both curves are cut at the last step that both have. The arm's AULC minus the baseline's is the effect.
* The validation set is a sample: the standard error of a difference between two mean accuracies p and q on n pictures is
  at most sqrt((p (1 - p) + q (1 - q)) / n), as if the two arms had seen different pictures. Within 1.96 of those the
  verdict is "no detectable difference"; beyond, "faster" or "slower".
* That bound speaks of the validation pictures, not of other seeds or learning rates, and the sentence says so.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from arelu_tl.analysis.convergence import aulc, common_steps, steps_to_target
from arelu_tl.errors import ArtefactError, ComparisonError, DataError
from arelu_tl.records.config import ARM_KEYS, PLACE_KEYS
from arelu_tl.records.runs import PREDICTIONS, RunRecord, find_runs

TARGET_SHARE = 0.95
_NORMAL_QUANTILE = 1.96


@dataclass(frozen=True)
class ArmResult:
    """One run's side of a comparison; accuracies 0..1, times in seconds of training."""

    arm: str
    run: str
    status: str
    steps: int
    final_top1: float
    best_top1: float
    best_step: int
    final_loss: float
    aulc: float
    steps_to_target: int | None
    seconds_to_target: float | None
    seconds: float
    images_per_second: float | None
    peak_memory_bytes: int | None
    drift: float | None
    curve: dict[str, list[float]] = field(repr=False)


@dataclass(frozen=True)
class PairComparison:
    """An arm beside its baseline.

    Attributes:
        target: validation accuracy that steps_to_target asks for.
        steps: last step that both runs reached; all figures are over 0..steps.
        validation_images: size of the validation split.
        aulc_difference: arm minus baseline.
        noise: what the size of the validation split alone can do to that difference (95%).
        mcnemar_p: exact McNemar test on the two best checkpoints' predictions; None without predictions.
        verdict: "faster", "slower" or "no detectable difference".
        sentence: the verdict in words.
        proof: hashes of what both runs share; an entry is None where a run has not recorded it.
    """

    arm: ArmResult
    baseline: ArmResult
    lr: float
    seed: int
    target: float
    steps: int
    validation_images: int | None
    aulc_difference: float
    noise: float | None
    mcnemar_p: float | None
    verdict: str
    sentence: str
    proof: dict[str, str | None]


@dataclass(frozen=True)
class Comparison:
    """All pairs found, and the runs without a partner."""

    pairs: list[PairComparison]
    unpaired: list[str]

    def to_json(self) -> dict[str, Any]:
        """Content of comparison.json."""
        return asdict(self)


def compare(paths: Sequence[Path | str], *, target: float | None = None) -> Comparison:
    """Compare every arm with its baseline among the runs at ``paths`` (runs, studies or folders of studies).

    Args:
        target: validation accuracy for steps-to-target; 95% of the baseline's best when None.

    Raises:
        DataError: a path holds no run.
        ComparisonError: there is no pair; what stands between the nearest candidates is named.
    """
    records = {run.path.resolve(): run for path in paths for run in find_runs(path)}
    return compare_runs(list(records.values()), target=target)


def compare_runs(runs: Sequence[RunRecord], *, target: float | None = None) -> Comparison:
    """``compare`` on runs already read; those that failed before their first evaluation have nothing to compare."""
    runs = [run for run in runs if run.status != "failed" or run.curve("val")]
    baselines = [run for run in runs if run.config.arm == "relu"]
    others = [run for run in runs if run.config.arm != "relu"]
    pairs, paired = [], set()
    closest: tuple[list[str], RunRecord, RunRecord] | None = None
    for run in others:
        own_study = [each for each in baselines if each.path.parent.resolve() == run.path.parent.resolve()]
        for baseline in own_study or baselines:
            apart = differences(run, baseline)
            if not apart:
                pairs.append(_compare_pair(run, baseline, target))
                paired |= {run.path, baseline.path}
            elif closest is None or len(apart) < len(closest[0]):
                closest = apart, run, baseline
    if not pairs:
        if closest is None:
            missing = "a baseline (arm relu)" if others else "an arm beside the baseline"
            raise ComparisonError(f"nothing to compare: {len(runs)} runs, without {missing}")
        raise ComparisonError(
            f"{closest[1].path.name} and {closest[2].path.name} differ in more than the arm: {'; '.join(closest[0])}"
        )
    return Comparison(pairs, [str(run.path) for run in runs if run.path not in paired])


def differences(a: RunRecord, b: RunRecord) -> list[str]:
    """Everything but the arm in which two runs differ, in words; empty for a pair."""
    ours, theirs = a.config.model_dump(mode="json"), b.config.model_dump(mode="json")
    apart = [
        f"{key} {ours[key]} and {theirs[key]}" for key in ours if key not in ARM_KEYS | PLACE_KEYS and ours[key] != theirs[key]
    ]
    for key, what in _SHARED.items():
        one, other = _recorded(a, key), _recorded(b, key)
        if one is not None and other is not None and one != other:
            apart.append(f"{what} ({one[:12]} and {other[:12]})")
    epochs = [run.summary.get("pairing", {}).get("epochs", []) for run in (a, b)]
    for number, (one, other) in enumerate(zip(*epochs, strict=False), start=1):
        if one != other:
            apart.append(f"order or augmentation in epoch {number}")
            break
    return apart


_SHARED = {"dataset": "pictures or split", "head_init": "head initialisation", "weights": "pretrained weights"}


def _recorded(run: RunRecord, key: str) -> str | None:
    value = run.summary.get("pairing", {}).get(key)
    # A run that still trains has no summary; what it trains on is known all the same.
    return run.dataset if value is None and key == "dataset" else value


def _compare_pair(run: RunRecord, baseline: RunRecord, target: float | None) -> PairComparison:
    curves = [_curve(each) for each in (run, baseline)]
    end = common_steps(curves[0]["step"], curves[1]["step"])
    cut = [{key: values[: sum(s <= end for s in c["step"])] for key, values in c.items()} for c in curves]
    if target is None:
        target = TARGET_SHARE * max(cut[1]["top1"])
    arm, base = (_arm_result(r, c, target) for r, c in zip((run, baseline), cut, strict=True))
    predictions = [_correct(each) for each in (run, baseline)]
    images = len(predictions[1]) if predictions[1] else None
    effect = arm.aulc - base.aulc
    noise = None
    if images:
        variance = sum(p * (1 - p) for p in (arm.aulc, base.aulc)) / images
        noise = _NORMAL_QUANTILE * math.sqrt(variance)
    verdict = "no detectable difference"
    if noise is not None and abs(effect) > noise:
        verdict = "faster" if effect > 0 else "slower"
    return PairComparison(
        arm=arm,
        baseline=base,
        lr=run.config.lr,
        seed=run.config.seed,
        target=target,
        steps=int(end),
        validation_images=images,
        aulc_difference=effect,
        noise=noise,
        mcnemar_p=_mcnemar(*predictions),
        verdict=verdict,
        sentence=_sentence(arm, base, run.config.lr, target, effect, noise, images, verdict),
        proof=_proof(run, baseline),
    )


def _proof(a: RunRecord, b: RunRecord) -> dict[str, str | None]:
    """What both runs have recorded and share; the order and the augmentation by their first epoch's digests."""

    def shared(one: str | None, other: str | None) -> str | None:
        return one if one == other else None

    proof = {key: shared(_recorded(a, key), _recorded(b, key)) for key in _SHARED}
    first = [(run.summary.get("pairing", {}).get("epochs") or [{}])[0] for run in (a, b)]
    proof["order"] = shared(*(epoch.get("order") for epoch in first))
    proof["augmentation"] = shared(*(epoch.get("first_batch") for epoch in first))
    return proof


def _curve(run: RunRecord) -> dict[str, list[Any]]:
    rows = run.curve("val")
    if not rows:
        raise DataError(f"{run.path.name} has not been evaluated yet: try again after its first evaluation")
    return {key: [row[key] for row in rows] for key in ("step", "top1", "loss", "seconds")}


def _arm_result(run: RunRecord, curve: dict[str, list[Any]], target: float) -> ArmResult:
    steps, top1 = curve["step"], curve["top1"]
    # The same order as the training's own choice of a best checkpoint: accuracy, then loss, then the earlier one.
    best = min(range(len(steps)), key=lambda i: (-top1[i], curve["loss"][i], steps[i]))
    reached = steps_to_target(steps, top1, target)
    drift = (run.surgery or {}).get("drift")
    return ArmResult(
        arm=run.config.arm,
        run=run.path.name,
        status=run.status,
        steps=steps[-1],
        final_top1=top1[-1],
        best_top1=top1[best],
        best_step=steps[best],
        final_loss=curve["loss"][-1],
        aulc=aulc(steps, top1),
        steps_to_target=reached,
        seconds_to_target=curve["seconds"][steps.index(reached)] if reached is not None else None,
        seconds=curve["seconds"][-1],
        images_per_second=run.summary.get("images_per_second"),
        peak_memory_bytes=run.summary.get("peak_memory_bytes"),
        drift=drift["relative"] if drift else None,
        curve={key: list(values) for key, values in curve.items()},
    )


def _correct(run: RunRecord) -> dict[str, bool]:
    """{path: whether the best checkpoint was right} from predictions.csv; {} where there is none yet."""
    path = run.path / PREDICTIONS
    if not path.exists():
        return {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {row["path"]: row["label"] == row["predicted"] for row in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from None


def _mcnemar(a: dict[str, bool], b: dict[str, bool]) -> float | None:
    """Exact two-sided McNemar test; 1.0 where the arms err on the same pictures, None without common predictions."""
    if not a or a.keys() != b.keys():
        return None
    counts: dict[tuple[bool, bool], int] = defaultdict(int)
    for path, right in a.items():
        counts[right, b[path]] += 1
    only_a, only_b = counts[True, False], counts[False, True]
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def _sentence(
    arm: ArmResult,
    base: ArmResult,
    lr: float,
    target: float,
    effect: float,
    noise: float | None,
    images: int | None,
    verdict: str,
) -> str:
    if noise is None or images is None:
        beyond = "no predictions to judge it by"
    elif verdict == "no detectable difference":
        beyond = f"within the ±{noise:.3f} that {images} validation pictures can blur"
    else:
        beyond = f"beyond the ±{noise:.3f} that {images} validation pictures can blur"
    claim = {
        "faster": f"{arm.arm} converged faster than {base.arm}",
        "slower": f"{arm.arm} converged slower than {base.arm}",
        "no detectable difference": f"no detectable difference in convergence between {arm.arm} and {base.arm}",
    }[verdict]

    def when(result: ArmResult) -> str:
        return f"after {result.steps_to_target} steps" if result.steps_to_target is not None else "never"

    return (
        f"At learning rate {lr:g}, {claim}: mean accuracy on the way {arm.aulc:.3f} against {base.aulc:.3f} ({beyond}); "
        f"{target:.1%} was reached {when(arm)} against {when(base)}. One seed and one rate"
        + (f": a larger rate may do for {base.arm} what the swap does here." if verdict == "faster" else ": others may differ.")
    )
