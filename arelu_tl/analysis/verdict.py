"""The verdicts in words: never more than the numbers allow. The rule is stated in docs/statistics.md.

A difference is *detectable* where its 95% interval, over seeds and validation pictures together, leaves out 0. One seed has no
interval: its words speak of this run and of nothing else. Failed runs speak against whoever they belong to: an arm that failed
at a rate is not called faster there, nor its reference slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.analysis.results import AHEAD, BEHIND, NOT_DETECTABLE, BestRateComparison, Comparison, RateComparison
from arelu_tl.analysis.statistics import CONFIDENCE, PairedDifference

# Of longer lists the number is said.
_MOST_NAMED = 3


def verdict_of(difference: PairedDifference, failures: Sequence[int], words: tuple[str, str]) -> str:
    """``words[0]`` where the arm has detectably more, ``words[1]`` where it has less, else ``NOT_DETECTABLE``.

    Of one seed: ``AHEAD`` or ``BEHIND`` where the difference is more than the pictures can blur.

    Args:
        failures: failed runs of the arm and of its reference; () where they do not enter.
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
    """One rate's verdict; ``questions`` is how many such verdicts are asked for at once."""
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
    told = (
        f"At learning rate {found.lr:g},{_alone(found)} {claim}: mean accuracy on the way {sides[0]:.3f} against {sides[1]:.3f}"
    )
    upto = f" up to step {found.steps}" if found.cut else ""
    reached = [_when(time) for time in found.steps_to_target]
    told += f"{upto} ({_blur(d)}); {found.target:.1%} was reached {reached[0]} against {reached[1]}."
    for name, failed in zip((arm, reference), found.failures, strict=True):
        if failed:
            told += f" {name} failed here in {failed} more {'run' if failed == 1 else 'runs'}."
    if found.verdict != NOT_DETECTABLE and found.p_corrected is not None and found.p_corrected > 1 - CONFIDENCE:
        told += _does_not_hold(questions, found.p_corrected)
    if d.seeds == 1:
        told += " Another seed may say otherwise."
    return told


def best_sentence(found: BestRateComparison, *, questions: int = 1) -> str:
    """The verdict of best rate against best rate; ``questions`` as in ``rate_sentence``."""
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
        where = f"Each at its best learning rate ({arm} {found.lr:g}, {reference} {found.reference_lr:g})"
    told = (
        f"{where},{_alone(found)} {claim}: accuracy {found.arm_accuracy:.3f} against {found.reference_accuracy:.3f} ({_blur(d)})."
    )
    if found.rates_tried[0] != found.rates_tried[1]:
        told += f" {arm} had {_rates(found.rates_tried[0])} to choose from, {reference} {_rates(found.rates_tried[1])}."
    elif found.rates_tried != found.rates_begun:
        told += f" {_rates(found.rates_tried[0])} of {max(found.rates_begun)} could be chosen from so far."
    if found.verdict != NOT_DETECTABLE and found.p_corrected is not None and found.p_corrected > 1 - CONFIDENCE:
        told += _does_not_hold(questions, found.p_corrected)
    if found.one_seed and max(found.rates_tried) > 1:
        told += " One seed: the rates were chosen by it, too."
    for name, edge in found.at_edge.items():
        told += f" {name}'s best is the {edge} rate tried; a better one may lie beyond."
    return told


def _of_one_seed(arm: str, reference: str) -> dict[str, str]:
    return {
        AHEAD: f"{arm} is ahead of {reference} in this one run",
        BEHIND: f"{arm} is behind {reference} in this one run",
    }


def _alone(found: RateComparison | BestRateComparison) -> str:
    """Before a claim of one seed that does not say so itself."""
    return " in this one run," if found.one_seed and found.verdict == NOT_DETECTABLE else ""


def _does_not_hold(questions: int, p: float) -> str:
    return f" Corrected for {questions} such comparisons it would not hold (p = {p:.2g})."


def _rates(count: int) -> str:
    return f"{count} {'rate' if count == 1 else 'rates'}"


def _blur(d: PairedDifference) -> str:
    """The difference with what is known of its blur."""
    pictures = f"{d.pictures} validation pictures" if d.pictures else "unknown pictures"
    if d.picture_error is None:
        return f"difference {d.mean:+.3f}; nothing recorded to judge it by"
    if d.low is None or d.high is None:
        if d.beyond_pictures:
            return f"difference {d.mean:+.3f}; one seed, {pictures}"
        return f"difference {d.mean:+.3f}, within the ±{d.picture_blur:.3f} that {pictures} alone can blur; one seed"
    return f"difference {d.mean:+.3f}, {CONFIDENCE:.0%} interval {d.low:+.3f} to {d.high:+.3f}; {d.seeds} seeds, {pictures}"


def _when(time: TimeToTarget) -> str:
    if time.of == 1:
        return f"after {time.values[0]:.0f} steps" if time.values[0] is not None else "never"
    if time.reached == 0:
        return f"never (0 of {time.of} runs)"
    of = "" if time.reached == time.of else f" ({time.reached} of {time.of} runs)"
    return f"after {time.median:.0f} steps{of}" if time.median is not None else f"by {time.reached} of {time.of} runs"


def gain_sentences(
    rates: Sequence[RateComparison],
    controls: Sequence[RateComparison],
    arm: str,
    kinds: Mapping[str, str],
    batchnorm: str | None,
) -> list[str]:
    """Whose the gain of the full swap ``arm`` is: what a fixed slope gives, what learning adds, what recalibration alone does.

    Args:
        kinds: of each arm's name, what it is a variant of.
        batchnorm: what surgery did to BatchNorm; None where it is unknown.
    """
    told = []
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
        if prelu := by_control.get(("prelu", lr)):
            parts.append(f"against a learnt leaky slope it has {_short(prelu.aulc)}")
        if recalibrated := alone.get(("recalibrated", lr)):
            parts.append(f"recalibration alone gives {_short(recalibrated.aulc)}")
        if parts:
            told.append(f"At learning rate {lr:g} {arm} has {_short(gain.aulc)} over relu; {'; '.join(parts)}.")
    if gains and not any(name == "recalibrated" for name, _ in alone):
        if batchnorm == "reestimated":
            told.append(
                "BatchNorm was estimated anew for the swap but not for relu; what that alone does is not known here: "
                "add the arm recalibrated."
            )
        elif batchnorm == "corrected" and told:
            told.append("BatchNorm was moved only by what the swap did to it: on the unmodified net that is nothing.")
    return told


def _short(d: PairedDifference) -> str:
    if d.seeds == 1:
        return f"{d.mean:+.3f} in one run"
    blur = "" if d.half_width is None else f" ± {d.half_width:.3f}"
    return f"{d.mean:+.3f}{blur}"


def warning_sentences(found: Comparison) -> list[str]:
    """What a reader must know to read the rest."""
    told = [f"Compared although they differ: {text}." for text in found.allowed] + found.uneven
    once = [f"{e.arm} at {e.lr:g}" for e in found.rates if e.one_seed]
    once += [f"{e.arm} at its best rate" for e in found.best if e.one_seed]
    if len(once) == len(found.judged):
        told.append("One seed: what happened in these runs, not what another seed would give. No interval, no test.")
    elif once:
        where = " and ".join(once) if len(once) <= _MOST_NAMED else f"{len(once)} of {len(found.judged)} comparisons"
        told.append(f"One seed in {where}: what happened in one run, not what another seed would give.")
    if min((each.aulc.seeds for each in found.rates if not each.one_seed), default=0) == 2:
        told.append("Two seeds: intervals are wide; three or more say far more.")
    if len({cell.lr for cell in found.cells if cell.arm == BASELINE}) == 1:
        told.append("One learning rate: a larger one may do for relu what the swap does here.")
    if any(each.aulc.pictures is not None and each.aulc.pictures < 100 for each in found.rates):
        told.append("Fewer than 100 validation pictures: only large differences can be detected.")
    for failure in found.failed:
        told.append(f"Failed: {failure.arm} at learning rate {failure.lr:g}, seed {failure.seed}: {failure.reason}")
    if running := sum(set(pair.statuses) != {"finished"} for each in found.rates for pair in each.pairs):
        told.append(
            f"{running} {'pair is' if running == 1 else 'pairs are'} still being trained and counted up to where both are."
        )
    if found.unfinished or found.waiting:
        behind = len(found.unfinished) + len(found.waiting)
        told.append(f"{behind} {'run is' if behind == 1 else 'runs are'} still behind and not counted.")
    return told
