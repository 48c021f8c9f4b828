"""Compare arms with the baseline, rate by rate and best rate against best rate.

The rule behind the verdicts is in docs/statistics.md, their wording in ``verdict``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arelu_tl.analysis.cells import make_cells, seconds_per_step, to_target
from arelu_tl.analysis.curves import Curve, read_predictions
from arelu_tl.analysis.pairing import (
    BASELINE,
    Entrant,
    Failure,
    Field,
    Pair,
    differences,
    gather,
    match,
    recorded,
)
from arelu_tl.analysis.rates import best_rate
from arelu_tl.analysis.results import (
    BestRateComparison,
    Comparison,
    Cost,
    PairResult,
    RateComparison,
)
from arelu_tl.analysis.statistics import (
    PairedDifference,
    difference_of_shares,
    holm,
    mcnemar,
    paired_difference,
    unpaired_picture_error,
)
from arelu_tl.analysis.verdict import (
    best_sentence,
    gain_sentences,
    rate_sentence,
    verdict_of,
    warning_sentences,
)
from arelu_tl.errors import ComparisonError
from arelu_tl.records.runs import RunRecord, find_runs

TARGET_SHARE = 0.95
# Arms that the full swap is compared with, to find out where its gain comes from.
FULL_SWAP = "arelu"
CONTROLS = (
    "leaky", "prelu", "arelu-frozen", "gain-only", "head-matched", "stats-frozen", "norm-rate",
)  # fmt: skip


def compare(
    paths: Sequence[Path | str],
    *,
    target: float | None = None,
    allow_difference: Collection[str] = (),
) -> Comparison:
    """Compare every arm with the baseline among the runs at ``paths``.

    Args:
        paths: runs, studies, or folders of studies.
        target: validation accuracy for steps-to-target; if None, 95% of the baseline's best at each
            rate.
        allow_difference: settings (or dataset, head_init, weights, order) in which runs may differ.

    Raises:
        DataError: a path holds no run, or none has been evaluated.
        ComparisonError: the runs differ in more than arm, rate and seed, or there is no pair; the
            message names the differences.
        ConfigError: ``allow_difference`` contains something that is not a setting.
    """
    return compare_runs(find_runs(*paths), target=target, allow_difference=allow_difference)


def compare_runs(
    runs: Sequence[RunRecord],
    *,
    target: float | None = None,
    allow_difference: Collection[str] = (),
) -> Comparison:
    """Do as ``compare`` does, for runs that have already been read."""
    given = gather(runs, allow_difference)
    entrants, unfinished = _far_enough(given.entrants)
    arms = sorted({each.arm for each in entrants} - {BASELINE})
    pairs = {arm: match(entrants, arm, BASELINE, allow_difference, given.spare) for arm in arms}
    if not any(pairs.values()):
        raise ComparisonError(_why_no_pair(entrants, given))
    targets = _targets(entrants, target)

    def at_each_rate(arm: str, reference: str, matched: Sequence[Pair]) -> list[RateComparison]:
        by_rate: dict[float, list[Pair]] = defaultdict(list)
        for pair in matched:
            by_rate[pair.lr].append(pair)
        return [
            _compare_rate(arm, reference, by_rate[lr], targets[lr], given.failed)
            for lr in sorted(by_rate)
        ]

    kinds = {each.arm: each.run.config.arm for each in entrants}
    swaps = [arm for arm in arms if kinds[arm] == FULL_SWAP]
    controls = [
        found
        for swap in swaps
        for control in arms
        if kinds[control] in CONTROLS
        for found in at_each_rate(
            swap, control, match(entrants, swap, control, allow_difference, given.spare)
        )
    ]
    rates, best = _corrected(
        [found for arm in arms for found in at_each_rate(arm, BASELINE, pairs[arm])],
        [
            each
            for arm in arms
            if (each := _compare_best(arm, entrants, target, given.failed)) is not None
        ],
    )
    matched = [pair for of_arm in pairs.values() for pair in of_arm]
    paired = {each.run.path for pair in matched for each in (pair.arm, pair.reference)}
    used = {pair.reference.run.path for pair in matched}
    apart = (
        {text for pair in matched for text in differences(pair.arm.run, pair.reference.run)}
        if allow_difference
        else set()
    )
    # One line per key, in whichever order the two values were found.
    allowed = {text.split(" ")[0]: text for text in sorted({*given.allowed, *apart})}
    found = Comparison(
        cells=make_cells(entrants, targets),
        rates=rates,
        best=best,
        controls=controls,
        gain=[
            text
            for swap in swaps
            for text in gain_sentences(rates, controls, swap, kinds, _batchnorm(entrants))
        ],
        unpaired=[str(each.run.path) for each in entrants if each.run.path not in paired],
        unfinished=unfinished,
        failed=given.failed,
        waiting=given.waiting,
        repeated=[
            *(str(each.run.path) for each in given.spare if each.run.path not in used),
            *given.left_out,
        ],
        allowed=sorted(allowed.values()),
        uneven=sorted({text for pair in matched for text in pair.uneven}),
        warnings=[],
    )
    return replace(found, warnings=warning_sentences(found))


def _far_enough(entrants: Sequence[Entrant]) -> tuple[list[Entrant], list[str]]:
    """Return the entrants that count, and the paths of runs that are too far behind.

    Those are still behind the finished runs of their rate. A run that has just begun would cut all
    others back to its first steps. If none of a rate has finished, all count.
    """
    ends: dict[float, int] = defaultdict(int)
    for each in entrants:
        if each.finished:
            ends[each.lr] = max(ends[each.lr], each.curve.end)
    behind = {
        each.run.path for each in entrants if not each.finished and each.curve.end < ends[each.lr]
    }
    return [each for each in entrants if each.run.path not in behind], sorted(map(str, behind))


def _why_no_pair(entrants: Sequence[Entrant], given: Field) -> str:
    baselines = [each.run for each in entrants if each.arm == BASELINE]
    others = [each.run for each in entrants if each.arm != BASELINE]
    if not baselines or not others:
        missing = "an arm beside the baseline" if baselines else "a baseline (arm relu)"
        failed = f"; {len(given.failed)} failed" if given.failed else ""
        return f"nothing to compare: {len(entrants)} runs, without {missing}{failed}"
    candidates = [
        (differences(run, baseline), run, baseline) for run in others for baseline in baselines
    ]
    apart, run, baseline = min(candidates, key=lambda found: len(found[0]))
    return (
        f"{run.path.name} and {baseline.path.name} differ in more than the arm: {'; '.join(apart)}"
    )


def _targets(entrants: Sequence[Entrant], target: float | None) -> dict[float, float]:
    """Return the target of each rate: 95% of the baseline's best there, averaged over its seeds."""
    rates = {each.lr for each in entrants}
    if target is not None:
        return dict.fromkeys(rates, target)
    best: dict[float, list[float]] = defaultdict(list)
    for each in entrants:
        if each.arm == BASELINE:
            best[each.lr].append(float(each.curve.top1.max()))
    # Without a run of the baseline there is no verdict either, only figures.
    anywhere = max(float(np.mean(values)) for values in best.values())
    return {lr: TARGET_SHARE * (float(np.mean(best[lr])) if best[lr] else anywhere) for lr in rates}


def _compare_rate(
    arm: str, reference: str, pairs: Sequence[Pair], target: float, failed: Sequence[Failure]
) -> RateComparison:
    lr = pairs[0].lr
    sides = [pair.curve for pair in pairs], [pair.reference_curve for pair in pairs]
    aulc = _difference(pairs, lambda curve: curve.aulc, lambda curve: curve.picture_aulc)
    failures = [sum(f.lr == lr and f.arm == name for f in failed) for name in (arm, reference)]
    # Each run up to its own end: what it did beyond the other's end is just as valid.
    whole = [pair.arm.curve for pair in pairs], [pair.reference.curve for pair in pairs]
    (steps, seconds), (reference_steps, reference_seconds) = (
        to_target(side, target) for side in whole
    )
    found = RateComparison(
        arm=arm,
        reference=reference,
        lr=lr,
        seeds=[pair.seed for pair in pairs],
        steps=max(pair.end for pair in pairs),
        cut=any(max(pair.arm.curve.end, pair.reference.curve.end) > pair.end for pair in pairs),
        target=target,
        aulc=aulc,
        final_top1=_difference(
            pairs, lambda c: float(c.top1[-1]), lambda c: c.right(-1) if c.flags else None
        ),
        best_top1=_difference(
            pairs, lambda c: float(c.top1[c.best]), lambda c: c.right(c.best) if c.flags else None
        ),
        final_loss=paired_difference(
            [float(a.loss[-1] - b.loss[-1]) for a, b in zip(*sides, strict=True)]
        ),
        steps_to_target=(steps, reference_steps),
        seconds_to_target=(seconds, reference_seconds),
        cost=_cost(pairs),
        failures=(failures[0], failures[1]),
        p_corrected=None,
        one_seed=aulc.seeds == 1,
        verdict=verdict_of(aulc, failures, ("faster", "slower")),
        sentence="",
        pairs=[_pair_result(pair, target) for pair in pairs],
    )
    return replace(found, sentence=rate_sentence(found))


def _difference(
    pairs: Sequence[Pair],
    measure: Callable[[Curve], float],
    by_picture: Callable[[Curve], NDArray[np.bool_] | NDArray[np.float64] | None],
) -> PairedDifference:
    """Compute the difference of a mean accuracy between the two sides of ``pairs``.

    ``by_picture`` gives each picture's share in it.
    """
    sides = [pair.arm for pair in pairs], [pair.reference for pair in pairs]
    shares = [
        [by_picture(pair.curve) for pair in pairs],
        [by_picture(pair.reference_curve) for pair in pairs],
    ]
    if _same_pictures([*sides[0], *sides[1]]):
        arm, reference = (np.stack([each for each in side if each is not None]) for side in shares)
        return difference_of_shares(arm, reference)
    values = np.array([[measure(pair.curve), measure(pair.reference_curve)] for pair in pairs])
    return _unpaired(values[:, 0], values[:, 1], [*sides[0], *sides[1]])


def _same_pictures(entrants: Sequence[Entrant]) -> bool:
    """Whether all were evaluated on the same pictures, and recorded the result per picture."""
    counts = {each.curve.pictures for each in entrants}
    return (
        len(counts) == 1
        and None not in counts
        and len({recorded(each.run, "dataset") for each in entrants}) == 1
    )


def _unpaired(
    arm: NDArray[np.float64], reference: NDArray[np.float64], entrants: Sequence[Entrant]
) -> PairedDifference:
    """Compute the difference of accuracies (S,) without results per picture.

    At most, the number of pictures is known.
    """
    pictures = min(
        (count for each in entrants if (count := each.curve.pictures or _predicted(each))),
        default=None,
    )
    error = (
        unpaired_picture_error(float(arm.mean()), float(reference.mean()), pictures)
        if pictures
        else None
    )
    return paired_difference((arm - reference).tolist(), picture_error=error, pictures=pictures)


def _predicted(entrant: Entrant) -> int | None:
    """Return the number of pictures in predictions.csv, if the evaluations do not record it."""
    predictions = read_predictions(entrant.run)
    return len(predictions.paths) if predictions is not None else None


def _pair_result(pair: Pair, target: float) -> PairResult:
    curves = pair.curve, pair.reference_curve
    whole = pair.arm.curve, pair.reference.curve
    steps = [
        None if (at := curve.reached(target)) is None else int(curve.steps[at]) for curve in whole
    ]
    return PairResult(
        seed=pair.seed,
        run=str(pair.arm.run.path),
        reference_run=str(pair.reference.run.path),
        steps=pair.end,
        statuses=(pair.arm.run.status, pair.reference.run.status),
        aulc=(curves[0].aulc, curves[1].aulc),
        final_top1=(float(curves[0].top1[-1]), float(curves[1].top1[-1])),
        best_top1=(float(curves[0].top1.max()), float(curves[1].top1.max())),
        final_loss=(float(curves[0].loss[-1]), float(curves[1].loss[-1])),
        steps_to_target=(steps[0], steps[1]),
        mcnemar_p=_best_mcnemar(pair),
        proof=pair.proof(),
    )


def _best_mcnemar(pair: Pair) -> float | None:
    """Apply McNemar's test to the best checkpoints of the two runs.

    None unless both were evaluated on the same pictures, with results per picture.
    """
    entrants = pair.arm, pair.reference
    if _same_pictures(entrants):
        arm, reference = (curve.right(curve.best) for curve in (pair.curve, pair.reference_curve))
        return mcnemar(arm, reference)
    predictions = [read_predictions(each.run) for each in entrants]
    if (
        predictions[0] is None
        or predictions[1] is None
        or predictions[0].paths != predictions[1].paths
        or not pair.same_pictures
    ):
        return None
    return mcnemar(predictions[0].correct, predictions[1].correct)


def _cost(pairs: Sequence[Pair]) -> Cost:
    def ratio(measure: Callable[[Entrant], float | None]) -> float | None:
        # Seconds on another device or with another number of threads do not measure the arm.
        measured = [
            (measure(pair.arm), measure(pair.reference)) for pair in pairs if pair.same_machine
        ]
        # The geometric mean, so that a ratio and its inverse give the same result.
        logs = [np.log(a / b) for a, b in measured if a and b]
        return float(np.exp(np.mean(logs))) if logs else None

    return Cost(
        seconds_per_step=ratio(seconds_per_step),
        images_per_second=ratio(lambda each: each.run.summary.get("images_per_second")),
        peak_memory=ratio(lambda each: each.run.summary.get("peak_memory_bytes")),
    )


def _corrected(
    rates: Sequence[RateComparison], best: Sequence[BestRateComparison]
) -> tuple[list[RateComparison], list[BestRateComparison]]:
    """Apply Holm's correction, because all comparisons are made at once.

    A sentence says which verdicts no longer hold.
    """
    asked = [each.aulc.p for each in rates] + [each.accuracy.p for each in best]
    judged = [index for index, p in enumerate(asked) if p is not None]
    corrected = dict(zip(judged, holm([p for p in asked if p is not None]), strict=True))
    corrected_rates = [
        replace(each, p_corrected=corrected.get(index)) for index, each in enumerate(rates)
    ]
    corrected_best = [
        replace(each, p_corrected=corrected.get(len(rates) + index))
        for index, each in enumerate(best)
    ]
    return (
        [
            replace(each, sentence=rate_sentence(each, questions=len(judged)))
            for each in corrected_rates
        ],
        [
            replace(each, sentence=best_sentence(each, questions=len(judged)))
            for each in corrected_best
        ],
    )


def _compare_best(
    arm: str, entrants: Sequence[Entrant], target: float | None, failed: Sequence[Failure]
) -> BestRateComparison | None:
    """Compare ``arm`` at its best rate with the baseline at its own.

    None if they share no seed that both have finished.
    """
    # A run that still trains may yet improve, so it is not a candidate.
    finished = [each for each in entrants if each.finished]
    sides = [
        {(each.lr, each.seed): each for each in finished if each.arm == name}
        for name in (arm, BASELINE)
    ]
    broken = [{f.lr for f in failed if f.arm == name} for name in (arm, BASELINE)]
    seeds, rates = _complete(sides, broken)
    if not seeds:
        return None
    taking_part = [
        side[lr, seed]
        for side, tried in zip(sides, rates, strict=True)
        for lr in tried
        for seed in seeds
    ]
    paired = _same_pictures(taking_part)
    curves = [
        {lr: [side[lr, seed].curve for seed in seeds] for lr in tried}
        for side, tried in zip(sides, rates, strict=True)
    ]
    ours, theirs = (best_rate(each, cross_fit=paired) for each in curves)
    if ours.correct is not None and theirs.correct is not None:
        accuracy = difference_of_shares(ours.correct, theirs.correct)
    else:
        accuracy = _unpaired(ours.accuracy, theirs.accuracy, taking_part)
    chosen = curves[0][ours.lr], curves[1][theirs.lr]
    at = (
        TARGET_SHARE * float(np.mean([c.top1.max() for c in chosen[1]]))
        if target is None
        else target
    )
    begun = [
        sorted({e.lr for e in entrants if e.arm == name} | lost)
        for name, lost in zip((arm, BASELINE), broken, strict=True)
    ]
    edges = [
        {tried[0]: "smallest", tried[-1]: "largest"} if len(tried) > 1 else {} for tried in begun
    ]
    found = BestRateComparison(
        arm=arm,
        reference=BASELINE,
        seeds=seeds,
        lr=ours.lr,
        reference_lr=theirs.lr,
        rates_tried=(len(curves[0]), len(curves[1])),
        rates_begun=(len(begun[0]), len(begun[1])),
        cross_fitted=ours.correct is not None and theirs.correct is not None,
        choices=ours.choices,
        reference_choices=theirs.choices,
        accuracy=accuracy,
        arm_accuracy=float(ours.accuracy.mean()),
        reference_accuracy=float(theirs.accuracy.mean()),
        aulc=(
            float(np.mean([c.aulc for c in chosen[0]])),
            float(np.mean([c.aulc for c in chosen[1]])),
        ),
        target=at,
        steps_to_target=(to_target(chosen[0], at)[0], to_target(chosen[1], at)[0]),
        at_edge={
            name: edge[side.lr]
            for name, side, edge in ((arm, ours, edges[0]), (BASELINE, theirs, edges[1]))
            if side.lr in edge
        },
        p_corrected=None,
        one_seed=accuracy.seeds == 1,
        verdict=verdict_of(accuracy, (), ("better", "worse")),
        sentence="",
    )
    return replace(found, sentence=best_sentence(found))


def _complete(
    sides: Sequence[Mapping[tuple[float, int], Entrant]], failed: Sequence[Collection[float]]
) -> tuple[list[int], list[list[float]]]:
    """Return the seeds that both sides have, and for each side the rates that have all of them.

    A rate at which some seed failed is not a candidate for that side. Otherwise, seeds are dropped
    before rates: a sweep that was cut short has all rates of its first seeds, and the choice is
    among rates. A rate at which a seed is still missing then is a candidate for neither side, since
    the other side would have had more to choose from.
    """
    cells = [
        {(lr, seed) for lr, seed in side if lr not in lost}
        for side, lost in zip(sides, failed, strict=True)
    ]
    seeds = sorted(set.intersection(*({seed for _, seed in side} for side in cells)))
    have = {seed: sum(s == seed for side in cells for _, s in side) for seed in seeds}
    seeds = [seed for seed in seeds if have[seed] == max(have.values())]
    while seeds:
        begun = [{lr for lr, _ in side} for side in cells]
        whole = [
            {lr for lr in tried if all((lr, s) in side for s in seeds)}
            for side, tried in zip(cells, begun, strict=True)
        ]
        yet = set().union(*(b - w for b, w in zip(begun, whole, strict=True)))
        rates = [sorted(each - yet) for each in whole]
        if all(rates):
            return seeds, rates
        seeds = seeds[:-1]
    return [], []


def _batchnorm(entrants: Sequence[Entrant]) -> str | None:
    """Return what surgery did to the full swap's BatchNorm.

    None if there is no such run, or if runs differ.
    """
    modes = {
        (each.run.surgery or {}).get("batchnorm")
        for each in entrants
        if each.run.config.arm == FULL_SWAP
    }
    return modes.pop() if len(modes) == 1 else None
