"""The comparison's tables: each rate, best rate against best rate, cells, pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.analysis.results import (
    NOT_DETECTABLE,
    BestRateComparison,
    Cell,
    Comparison,
    PairResult,
    RateComparison,
)
from arelu_tl.analysis.statistics import CONFIDENCE, PairedDifference
from arelu_tl.render.report.table import (
    NOTHING,
    Column,
    Table,
    Value,
    difference,
    interval,
    number,
    probability,
    rate,
    ratio,
    spread,
    text,
    when,
    words,
)

# A pair's row takes some 600 bytes; more rows would make the page too large for a mail.
MOST_PAIRS = 1000
_TONES = {
    "faster": "more",
    "better": "more",
    "slower": "less",
    "worse": "less",
    NOT_DETECTABLE: "same",
}
_INTERVAL = f"{CONFIDENCE:.0%} interval"


class _Who:
    """The first columns of a row: the rate, the arm and its reference.

    If all rows share one reference, the headings name it and its column is left out.
    """

    def __init__(self, found: Sequence[RateComparison]) -> None:
        references = sorted({each.reference for each in found})
        self.single = len(references) == 1
        self.theirs = f"{references[0]}’s" if self.single else "reference’s"
        self.columns = [Column("rate"), *words("arm"), *([] if self.single else words("against"))]

    def row(self, found: RateComparison) -> list[Value]:
        return [rate(found.lr), text(found.arm), *([] if self.single else [text(found.reference)])]


def glance_table(comparison: Comparison) -> Table | None:
    """A row for each arm with the signs of all its verdicts; None if there are only a few."""
    rates = sorted({found.lr for found in comparison.rates})
    arms = list(dict.fromkeys(found.arm for found in comparison.rates))
    if len(rates) < 2 or len(rates) * len(arms) < 3:
        return None
    columns = [
        *words("arm"),
        *(Column(f"{lr:g}", hint="difference in AULC at this learning rate") for lr in rates),
        Column("best against best", hint="difference in accuracy, each at its best rate"),
    ]
    at = {(found.arm, found.lr): found for found in comparison.rates}
    best = {found.arm: found for found in comparison.best}
    rows = []
    for arm in arms:
        row = [text(arm)]
        for lr in rates:
            each = at.get((arm, lr))
            row.append(text(None) if each is None else _sign(each.aulc, each))
        row.append(_sign(best[arm].accuracy, best[arm]) if arm in best else text(None))
        rows.append(row)
    once = [found.one_seed for found in comparison.judged]
    signs = ["▲ faster or better", "▼ slower or worse", "○ no detectable difference"] * (
        not all(once)
    )
    name = "At a glance: " + ", ".join([*signs, *["no sign: one seed"] * any(once)])
    return Table(name, columns, rows)


def tone(found: RateComparison | BestRateComparison) -> str:
    """The style sheet's class for a verdict; a verdict of one seed has no colour and no sign."""
    return "alone" if found.one_seed else _TONES[found.verdict]


def _sign(difference: PairedDifference, found: RateComparison | BestRateComparison) -> Value:
    return replace(number(difference.mean, "+.3f"), tone=tone(found))


def verdict(found: RateComparison | BestRateComparison) -> Value:
    """Make a cell of a verdict."""
    return Value(found.verdict, tone=tone(found))


def convergence_table(
    found: Sequence[RateComparison], name: str, *, corrected: bool = True
) -> Table:
    """The area under the learning curve, which the verdict of each rate is based on."""
    who = _Who(found)
    columns = [
        *who.columns,
        Column("verdict", numeric=False),
        Column("AULC", hint="mean validation accuracy on the way: area under the learning curve"),
        Column(who.theirs),
        Column("difference"),
        Column(_INTERVAL, hint="over seeds and validation pictures together; one seed has none"),
        Column("p", hint="of no difference: below 0.05 the interval leaves out 0"),
    ]
    if corrected:
        columns.append(
            Column("p, Holm", hint="corrected for all comparisons with the baseline on this page")
        )
    columns += [Column("seeds"), Column("pictures", hint="validation pictures")]
    rows = [
        [
            *who.row(each),
            verdict(each),
            *(number(_mean(each.pairs, side)) for side in (0, 1)),
            number(each.aulc.mean, "+.3f"),
            interval(each.aulc.low, each.aulc.high),
            probability(each.aulc.p),
            *([probability(each.p_corrected)] if corrected else []),
            number(each.aulc.seeds, "d"),
            number(each.aulc.pictures, "d"),
        ]
        for each in found
    ]
    return Table(name, columns, rows)


def _mean(pairs: Sequence[PairResult], side: int, key: str = "aulc") -> float:
    return float(sum(getattr(pair, key)[side] for pair in pairs) / len(pairs))


def ends_table(found: Sequence[RateComparison]) -> Table:
    """Final and best accuracy, and final loss."""
    who = _Who(found)
    columns = [*who.columns]
    for heading in ("final accuracy", "best accuracy", "final loss"):
        columns += [
            Column(heading),
            Column(who.theirs),
            Column("difference", hint=f"with its {_INTERVAL}"),
        ]
    rows = []
    for each in found:
        row = who.row(each)
        for key, change in (
            ("final_top1", each.final_top1),
            ("best_top1", each.best_top1),
            ("final_loss", each.final_loss),
        ):
            row += [*(number(_mean(each.pairs, side, key)) for side in (0, 1)), difference(change)]
        rows.append(row)
    return Table("Where training ends, rate by rate", columns, rows)


def target_table(found: Sequence[RateComparison]) -> Table:
    """Steps and seconds to the target, and the arm's cost."""
    who = _Who(found)
    columns = [
        *who.columns,
        Column(
            "target",
            hint="validation accuracy: 95% of the baseline’s best at this rate unless it was given",
        ),
        Column("steps", hint="median until the target; runs that never reached it count as such"),
        Column(who.theirs),
        Column("seconds", hint="of training, median until the target"),
        Column(who.theirs),
        Column("time a\N{NO-BREAK SPACE}step", hint="as a multiple of the reference’s"),
        Column("pictures a\N{NO-BREAK SPACE}second", hint="as a multiple of the reference’s"),
        Column("peak memory", hint="as a multiple of the reference’s"),
        Column("failed", hint="failed runs of the arm, and of its reference"),
    ]
    rows = [
        [
            *who.row(each),
            number(each.target, ".1%"),
            *(when(time) for time in each.steps_to_target),
            *(when(time, ".3g") for time in each.seconds_to_target),
            ratio(each.cost.seconds_per_step),
            ratio(each.cost.images_per_second),
            ratio(each.cost.peak_memory),
            Value(f"{each.failures[0]}, {each.failures[1]}", sum(each.failures)),
        ]
        for each in found
    ]
    return Table("Steps and seconds to the target, and cost", columns, rows)


def tests_table(found: Sequence[RateComparison]) -> Table:
    """Further statistics of the seeds' differences in AULC."""
    who = _Who(found)
    columns = [
        *who.columns,
        Column("sd", hint="standard deviation of the seeds’ differences in AULC"),
        Column("error, seeds", hint="standard error of the mean that the seeds cause"),
        Column(
            "error, pictures",
            hint="standard error of the mean that the choice of validation pictures causes",
        ),
        Column("t-test p", hint="paired, over the seeds alone"),
        Column("Wilcoxon p", hint="signed ranks of the seeds; from six seeds on"),
        Column("effect size", hint="Hedges’ g of the paired differences; from three seeds on"),
        Column(
            "seeds improved",
            hint="probability of improvement: share of the seeds in which the arm had more",
        ),
        Column("bootstrap", hint=f"{_INTERVAL} by resampling the seeds; from six seeds on"),
    ]
    rows = [
        [
            *who.row(each),
            number(each.aulc.sd, ".4f"),
            number(each.aulc.seed_error, ".4f"),
            number(each.aulc.picture_error, ".4f"),
            probability(each.aulc.t_test_p),
            probability(each.aulc.wilcoxon_p),
            number(each.aulc.effect_size, ".2f"),
            number(each.aulc.probability_of_improvement, ".0%"),
            interval(*(each.aulc.bootstrap or (None, None))),
        ]
        for each in found
    ]
    return Table("Tests and effect sizes of the difference in AULC", columns, rows)


def best_table(comparison: Comparison) -> Table:
    """Each arm at its best rate beside the baseline at its own best rate."""
    columns = [
        *words("arm", "verdict"),
        Column("seeds"),
        Column(
            "best rate", hint="the one chosen most often; the shares of all that were chosen follow"
        ),
        Column(
            "accuracy",
            hint="cross-fitted: each picture is judged at the rate that the others chose",
        ),
        Column(f"{BASELINE}’s rate"),
        Column(f"{BASELINE}’s accuracy"),
        Column("difference"),
        Column(_INTERVAL),
        Column("p"),
        Column("AULC"),
        Column(f"{BASELINE}’s"),
        Column("steps to target"),
        Column(f"{BASELINE}’s"),
        Column("rates tried"),
    ]
    rows = [
        [
            text(each.arm),
            verdict(each),
            number(len(each.seeds), "d"),
            _choice(each.lr, each.choices),
            number(each.arm_accuracy),
            _choice(each.reference_lr, each.reference_choices),
            number(each.reference_accuracy),
            number(each.accuracy.mean, "+.3f"),
            interval(each.accuracy.low, each.accuracy.high),
            probability(each.accuracy.p),
            *(number(value) for value in each.aulc),
            *(when(time) for time in each.steps_to_target),
            Value(f"{each.rates_tried[0]}, {each.rates_tried[1]}", each.rates_tried[0]),
        ]
        for each in comparison.best
    ]
    return Table("Each arm at its best rate, the baseline at its own", columns, rows)


def _choice(lr: float, choices: dict[float, float]) -> Value:
    """The rate, and the shares of all chosen rates if the choice was not unanimous."""
    ordered = sorted(choices.items(), key=lambda choice: -choice[1])
    shares = (
        ""
        if len(ordered) < 2
        else f" ({', '.join(f'{each:g}: {share:.0%}' for each, share in ordered[:3])})"
    )
    return Value(f"{lr:g}{shares}", lr)


def cells_table(cells: Sequence[Cell]) -> Table:
    """Mean ± standard deviation over the seeds, for each arm at each rate."""
    columns = [
        Column("rate"),
        *words("arm"),
        Column("seeds"),
        Column("steps"),
        Column("final accuracy"),
        Column("best accuracy"),
        Column("AULC"),
        Column("final loss"),
        Column("steps to target"),
        Column("seconds", hint="of training"),
        Column("seconds a\N{NO-BREAK SPACE}step"),
        Column("pictures a\N{NO-BREAK SPACE}second"),
        Column("peak memory"),
        Column("drift", hint="relative change of the backbone’s outputs by surgery alone"),
        Column("head rate", hint="learning rates of the classifier, over the seeds"),
        Column("probe", hint="accuracy of a classifier on the features before fine-tuning"),
        Column("probe loss", hint="its validation loss"),
    ]
    rows = [
        [
            rate(cell.lr),
            text(cell.arm),
            number(len(cell.seeds), "d"),
            number(cell.steps, "d"),
            spread(cell.final_top1),
            spread(cell.best_top1),
            spread(cell.aulc),
            spread(cell.final_loss),
            when(cell.steps_to_target),
            spread(cell.seconds, 0 if cell.seconds.mean >= 100 else 1),
            number(cell.seconds_per_step, ".3g"),
            number(cell.images_per_second, ".1f"),
            _memory(cell.peak_memory_bytes),
            number(cell.drift, ".2f"),
            text(", ".join(f"{lr:g}" for lr in cell.head_lrs) or NOTHING),
            number(cell.probe_top1, ".3f"),
            number(cell.probe_loss, ".3f"),
        ]
        for cell in sorted(cells, key=lambda cell: (cell.lr, cell.arm != BASELINE, cell.arm))
    ]
    return Table("Every arm at every rate", columns, rows)


def _memory(size: float | None) -> Value:
    if size is None:
        return Value(NOTHING, "")
    return Value(f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB", round(size))


def pairs_table(found: Sequence[RateComparison]) -> tuple[Table, dict[str, str]]:
    """The two runs of each seed, and the hashes that all pairs share.

    The hashes that differ between pairs are in the rows.
    """
    who = _Who(found)
    pairs = [(each, pair) for each in found for pair in each.pairs]
    common = {}
    for key in ("dataset", "weights"):
        values = {pair.proof.get(key) for _, pair in pairs}
        if len(values) == 1 and (value := values.pop()):
            common[key] = value
    # With a single pair per arm, its p would be read as the arm's.
    tested = any(not each.one_seed for each in found)
    test = Column(
        "McNemar p",
        hint="exact test of the best checkpoints’ predictions on the same pictures: of these "
        "nets, not of the arms",
    )
    own = [
        key
        for key in ("dataset", "weights", "head_init", "order", "augmentation")
        if key not in common
    ]
    columns = [
        *who.columns,
        Column("seed"),
        Column("AULC"),
        Column(who.theirs),
        Column("best"),
        Column(who.theirs),
        Column("final"),
        Column(who.theirs),
        Column("steps to target"),
        Column(who.theirs),
        *([test] if tested else []),
        *(
            Column(
                key.replace("_", " "),
                numeric=False,
                hint="first characters of the hash that both runs share",
            )
            for key in own
        ),
        *words("state"),
    ]
    rows = [
        [
            *who.row(each),
            number(pair.seed, "d"),
            *(number(value) for value in (*pair.aulc, *pair.best_top1, *pair.final_top1)),
            *(text("never" if value is None else value) for value in pair.steps_to_target),
            *([probability(None if each.one_seed else pair.mcnemar_p)] if tested else []),
            *(text((pair.proof.get(key) or "")[:8]) for key in own),
            text(pair.statuses[0] if len(set(pair.statuses)) == 1 else ", ".join(pair.statuses)),
        ]
        for each, pair in pairs[:MOST_PAIRS]
    ]
    left_out = len(pairs) - len(rows)
    rest = f"{left_out} more pairs are in comparison.json." if left_out else ""
    return Table("Pairs, seed by seed", columns, rows, rest), common
