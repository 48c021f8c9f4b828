"""The verdicts in words: they never claim more than the numbers allow.

The rule is in docs/statistics.md. A difference is *detectable* if its 95% interval, over seeds and
validation pictures together, excludes 0. One seed has no interval: its verdict only describes this
run. Failed runs count against their own side: an arm that failed at a rate is not called faster
there, nor its reference slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.analysis.results import (
    AHEAD,
    BEHIND,
    NOT_DETECTABLE,
    BestRateComparison,
    Comparison,
    RateComparison,
)
from arelu_tl.analysis.statistics import CONFIDENCE, PairedDifference

# What an arm is that the full swap is compared with, to see what is left of its gain.
_AGAINST = {
    "prelu": "a learnt leaky slope",
    "gain-only": "a learnt gain without a slope",
    "head-matched": "relu with the same head rate",
    "stats-frozen": "relu with frozen BatchNorm statistics",
    "norm-rate": "relu whose normalisation weights have a rate of their own",
}
# Longer lists are given as a number.
_MOST_NAMED = 3


def verdict_of(
    difference: PairedDifference, failures: Sequence[int], words: tuple[str, str]
) -> str:
    """Return ``words[0]`` if the arm has detectably more, ``words[1]`` if less.

    Otherwise ``NOT_DETECTABLE``. For one seed: ``AHEAD`` or ``BEHIND`` if the difference exceeds
    the uncertainty due to the pictures.

    Args:
        difference: arm minus reference.
        failures: failed runs of the arm and of its reference; () if they do not count.
        words: the verdicts for more and for less.
    """
    if not _apart(difference):
        return NOT_DETECTABLE
    if difference.seeds == 1:
        words = AHEAD, BEHIND
    more = difference.mean > 0
    if failures and failures[0 if more else 1]:
        return NOT_DETECTABLE
    return words[0] if more else words[1]


def _apart(difference: PairedDifference) -> bool:
    return difference.beyond_pictures if difference.seeds == 1 else difference.detectable


def rate_sentence(found: RateComparison, *, questions: int = 1) -> str:
    """Put one rate's verdict into words.

    ``questions`` is the number of such verdicts made at once.
    """
    d = found.aulc
    arm, reference = found.arm, found.reference
    claim = {
        "faster": f"{arm} converged faster than {reference}",
        "slower": f"{arm} converged slower than {reference}",
        **_of_one_seed(arm, reference),
        NOT_DETECTABLE: f"no detectable difference in convergence between {arm} and {reference}",
    }[found.verdict]
    if found.verdict == NOT_DETECTABLE and _apart(d):
        claim = f"{arm} and {reference} are not judged"
    sides = [sum(pair.aulc[side] for pair in found.pairs) / len(found.pairs) for side in (0, 1)]
    text = (
        f"At learning rate {found.lr:g},{_alone(found)} {claim}: mean accuracy on the way "
        f"{sides[0]:.3f} against {sides[1]:.3f}"
    )
    upto = f" up to step {found.steps}" if found.cut else ""
    reached = [_when(time) for time in found.steps_to_target]
    text += (
        f"{upto} ({_blur(d)}); {found.target:.1%} was reached {reached[0]} against {reached[1]}."
    )
    for name, failed in zip((arm, reference), found.failures, strict=True):
        if failed:
            text += f" {name} failed here in {failed} more {'run' if failed == 1 else 'runs'}."
    if (
        found.verdict != NOT_DETECTABLE
        and found.p_corrected is not None
        and found.p_corrected > 1 - CONFIDENCE
    ):
        text += _does_not_hold(questions, found.p_corrected)
    if d.seeds == 1:
        text += " Another seed may say otherwise."
    return text


def best_sentence(found: BestRateComparison, *, questions: int = 1) -> str:
    """Put the verdict of best rate against best rate into words.

    ``questions`` as in ``rate_sentence``.
    """
    d = found.accuracy
    arm, reference = found.arm, found.reference
    claim = {
        "better": f"{arm} is better than {reference}",
        "worse": f"{arm} is worse than {reference}",
        **_of_one_seed(arm, reference),
        NOT_DETECTABLE: f"no detectable difference between {arm} and {reference}",
    }[found.verdict]
    if max(found.rates_begun) == 1 and found.lr == found.reference_lr:
        where = f"At the only learning rate tried ({found.lr:g})"
    else:
        where = (
            f"Each at its best learning rate ({arm} {found.lr:g}, {reference} "
            f"{found.reference_lr:g})"
        )
    text = (
        f"{where},{_alone(found)} {claim}: accuracy {found.arm_accuracy:.3f} against "
        f"{found.reference_accuracy:.3f} ({_blur(d)})."
    )
    if found.rates_tried[0] != found.rates_tried[1]:
        text += (
            f" {arm} had {_rates(found.rates_tried[0])} to choose from, {reference} "
            f"{_rates(found.rates_tried[1])}."
        )
    elif found.rates_tried != found.rates_begun:
        text += (
            f" {_rates(found.rates_tried[0])} of {max(found.rates_begun)} could be chosen from "
            "so far."
        )
    if (
        found.verdict != NOT_DETECTABLE
        and found.p_corrected is not None
        and found.p_corrected > 1 - CONFIDENCE
    ):
        text += _does_not_hold(questions, found.p_corrected)
    if found.one_seed and max(found.rates_tried) > 1:
        text += " One seed: the rates were chosen by it, too."
    for name, edge in found.at_edge.items():
        text += f" {name}'s best is the {edge} rate tried; a better one may lie beyond."
    return text


def _of_one_seed(arm: str, reference: str) -> dict[str, str]:
    return {
        AHEAD: f"{arm} is ahead of {reference} in this one run",
        BEHIND: f"{arm} is behind {reference} in this one run",
    }


def _alone(found: RateComparison | BestRateComparison) -> str:
    """Introduce a claim about one seed that does not mention this itself."""
    return " in this one run," if found.one_seed and found.verdict == NOT_DETECTABLE else ""


def _does_not_hold(questions: int, p: float) -> str:
    return f" Corrected for {questions} such comparisons it would not hold (p = {p:.2g})."


def _rates(count: int) -> str:
    return f"{count} {'rate' if count == 1 else 'rates'}"


def _blur(d: PairedDifference) -> str:
    """Describe the difference and its known uncertainty."""
    pictures = f"{d.pictures} validation pictures" if d.pictures else "unknown pictures"
    if d.picture_error is None:
        return f"difference {d.mean:+.3f}; nothing recorded to judge it by"
    if d.low is None or d.high is None:
        if d.beyond_pictures:
            return f"difference {d.mean:+.3f}; one seed, {pictures}"
        return (
            f"difference {d.mean:+.3f}, within the ±{d.picture_blur:.3f} that {pictures} alone "
            "can blur; one seed"
        )
    return (
        f"difference {d.mean:+.3f}, {CONFIDENCE:.0%} interval {d.low:+.3f} to {d.high:+.3f}; "
        f"{d.seeds} seeds, {pictures}"
    )


def _when(time: TimeToTarget) -> str:
    if time.of == 1:
        return f"after {time.values[0]:.0f} steps" if time.values[0] is not None else "never"
    if time.reached == 0:
        return f"never (0 of {time.of} runs)"
    of = "" if time.reached == time.of else f" ({time.reached} of {time.of} runs)"
    return (
        f"after {time.median:.0f} steps{of}"
        if time.median is not None
        else f"by {time.reached} of {time.of} runs"
    )


def gain_sentences(
    rates: Sequence[RateComparison],
    controls: Sequence[RateComparison],
    arm: str,
    kinds: Mapping[str, str],
    batchnorm: str | None,
) -> list[str]:
    """Attribute the gain of the full swap ``arm``, in sentences.

    It is attributed to a fixed slope, to learning, and to what the controls without a leak do.

    Args:
        rates: the comparisons with the baseline.
        controls: the comparisons with the controls.
        arm: name of the full swap.
        kinds: for each arm's name, the arm that it is a variant of.
        batchnorm: what surgery did to BatchNorm; None if unknown.
    """
    sentences = []
    gains = {each.lr: each for each in rates if each.arm == arm}
    by_control = {(kinds[each.reference], each.lr): each for each in controls if each.arm == arm}
    alone = {(kinds[each.arm], each.lr): each for each in rates}
    for lr, gain in gains.items():
        parts = []
        if leaky := alone.get(("leaky", lr)):
            share = (
                f", {leaky.aulc.mean / gain.aulc.mean:.0%} of it"
                if gain.verdict == "faster" and leaky.seeds == gain.seeds
                else ""
            )
            parts.append(f"a fixed leaky slope alone gives {_short(leaky.aulc)}{share}")
        if frozen := by_control.get(("arelu-frozen", lr)):
            parts.append(f"learning alpha and beta adds {_short(frozen.aulc)}")
        elif leaky_control := by_control.get(("leaky", lr)):
            parts.append(f"alpha and beta, learnt, add {_short(leaky_control.aulc)} to that")
        for control, what in _AGAINST.items():
            if found := by_control.get((control, lr)):
                parts.append(f"against {what} it has {_short(found.aulc)}")
        if recalibrated := alone.get(("recalibrated", lr)):
            parts.append(f"recalibration alone gives {_short(recalibrated.aulc)}")
        if other_head := alone.get(("head-of-relu", lr)):
            parts.append(f"with the head rate of relu it has {_short(other_head.aulc)}")
        if parts:
            sentences.append(
                f"At learning rate {lr:g} {arm} has {_short(gain.aulc)} over relu; "
                f"{'; '.join(parts)}."
            )
    if gains and not any(name == "recalibrated" for name, _ in alone):
        if batchnorm == "reestimated":
            sentences.append(
                "BatchNorm was estimated anew for the swap but not for relu; what that alone does "
                "is not known here: add the arm recalibrated."
            )
        elif batchnorm == "corrected" and sentences:
            sentences.append(
                "BatchNorm was moved only by what the swap did to it: on the unmodified net that "
                "is nothing."
            )
    return sentences


def _short(d: PairedDifference) -> str:
    if d.seeds == 1:
        return f"{d.mean:+.3f} in one run"
    blur = "" if d.half_width is None else f" ± {d.half_width:.3f}"
    return f"{d.mean:+.3f}{blur}"


def warning_sentences(found: Comparison) -> list[str]:
    """List what a reader must know to interpret the rest."""
    sentences = [f"Compared although they differ: {text}." for text in found.allowed] + found.uneven
    once = [f"{e.arm} at {e.lr:g}" for e in found.rates if e.one_seed]
    once += [f"{e.arm} at its best rate" for e in found.best if e.one_seed]
    if len(once) == len(found.judged):
        sentences.append(
            "One seed: what happened in these runs, not what another seed would give. No "
            "interval, no test."
        )
    elif once:
        where = (
            " and ".join(once)
            if len(once) <= _MOST_NAMED
            else f"{len(once)} of {len(found.judged)} comparisons"
        )
        sentences.append(
            f"One seed in {where}: what happened in one run, not what another seed would give."
        )
    if min((each.aulc.seeds for each in found.rates if not each.one_seed), default=0) == 2:
        sentences.append("Two seeds: intervals are wide; three or more say far more.")
    if len({cell.lr for cell in found.cells if cell.arm == BASELINE}) == 1:
        sentences.append("One learning rate: a larger one may do for relu what the swap does here.")
    if any(each.aulc.pictures is not None and each.aulc.pictures < 100 for each in found.rates):
        sentences.append(
            "Fewer than 100 validation pictures: only large differences can be detected."
        )
    for failure in found.failed:
        sentences.append(
            f"Failed: {failure.arm} at learning rate {failure.lr:g}, seed {failure.seed}: "
            f"{failure.reason}"
        )
    if running := sum(
        set(pair.statuses) != {"finished"} for each in found.rates for pair in each.pairs
    ):
        sentences.append(
            f"{running} {'pair is' if running == 1 else 'pairs are'} still being trained and "
            "counted up to where both are."
        )
    if found.unfinished or found.waiting:
        behind = len(found.unfinished) + len(found.waiting)
        sentences.append(
            f"{behind} {'run is' if behind == 1 else 'runs are'} still behind and not counted."
        )
    return sentences
