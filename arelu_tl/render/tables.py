"""The report of compare as tables and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.pairing import BASELINE
from arelu_tl.analysis.results import NOT_DETECTABLE, Cell, Comparison, RateComparison, Spread
from arelu_tl.analysis.statistics import PairedDifference
from arelu_tl.render.console import Shown, line
from arelu_tl.render.grid import Column, Grid
from arelu_tl.render.text import Part


def or_dash(value: float | int | None, form: str = "") -> str:
    """Format a number in a table; None becomes "-"."""
    return "-" if value is None else format(value, form)


def comparison_report(comparison: Comparison) -> list[Shown]:
    """The table of results, then the verdicts, the cause of the gain, warnings and proofs."""
    parts: list[Shown] = [rates_table(comparison)]
    if len({cell.lr for cell in comparison.cells}) > 1 and comparison.best:
        parts += ["", best_table(comparison)]
    parts.append("")
    # A verdict of one seed adds nothing to the table, so it is not bold.
    parts += [
        line(found.sentence, style="" if found.one_seed else "bold") for found in comparison.judged
    ]
    parts += [line(sentence) for sentence in comparison.gain]
    parts += [line(sentence) for sentence in (_heads(comparison), _probes(comparison)) if sentence]
    parts += [line(warning, style="yellow") for warning in comparison.warnings]
    parts += [line(proof, style="dim") for proof in _proofs(comparison.rates)]
    if comparison.unpaired:
        parts.append(line(f"without a partner: {', '.join(comparison.unpaired)}"))
    if comparison.repeated:
        parts.append(line(f"left out: {', '.join(comparison.repeated)}"))
    return parts


def rates_table(comparison: Comparison) -> Grid:
    """The arms at each rate, the baseline first."""
    table = Grid(
        [
            Column("lr", once=True),
            Column("arm", "name"),
            Column("seeds", gives_way=5),
            Column("final", gives_way=4),
            Column("best", gives_way=1),
            Column("AULC"),
            Column("over relu"),
            Column("95% interval", gives_way=2, optional=True),
            Column("steps to target"),
            Column("step/relu", gives_way=6),
            Column("img/s", gives_way=8),
            Column("drift", gives_way=7),
        ],
        title=_title(comparison),
    )
    found = {(each.arm, each.lr): each for each in comparison.rates}
    for cell in sorted(
        comparison.cells, key=lambda cell: (cell.lr, cell.arm != BASELINE, cell.arm)
    ):
        table.add(f"{cell.lr:g}", *_cells(cell, found.get((cell.arm, cell.lr))))
    return table


def _title(comparison: Comparison) -> str:
    steps = max(cell.steps for cell in comparison.cells)
    pictures = {found.aulc.pictures for found in comparison.rates} - {None}
    counted = f", {min(p for p in pictures if p)} validation pictures" if pictures else ""
    return f"{steps} steps{counted}; target {_targets(comparison)}"


def _targets(comparison: Comparison) -> str:
    targets = sorted({f"{cell.target:.1%}" for cell in comparison.cells})
    return targets[0] if len(targets) == 1 else "95% of relu's best at the same rate"


def _cells(cell: Cell, found: RateComparison | None) -> list[Part]:
    detectable = found is not None and not found.one_seed and found.verdict != NOT_DETECTABLE
    return [
        cell.arm,
        str(len(cell.seeds)),
        _mean(cell.final_top1),
        _mean(cell.best_top1),
        _mean(cell.aulc),
        ("" if found is None else f"{found.aulc.mean:+.3f}", "bold" * detectable),
        ("" if found is None else _interval(found.aulc), "bold" * detectable),
        _when(cell.steps_to_target),
        "" if found is None else or_dash(found.cost.seconds_per_step, ".2f"),
        or_dash(cell.images_per_second, ".1f"),
        or_dash(cell.drift, ".2f"),
    ]


def _mean(spread: Spread) -> str:
    return f"{spread.mean:.3f}" + (f" ±{spread.sd:.3f}" if spread.sd is not None else "")


def _interval(difference: PairedDifference) -> str:
    return or_dash(difference.low, "+.3f") + (
        f" to {difference.high:+.3f}" if difference.high is not None else ""
    )


def _when(time: TimeToTarget) -> str:
    if time.reached == 0:
        return "never"
    steps = f"{time.median:.0f}" if time.median is not None else f"> {time.restricted_mean:.0f}"
    return steps if time.reached == time.of else f"{steps} ({time.reached} of {time.of})"


def best_table(comparison: Comparison) -> Grid:
    """Each arm at its best rate, the baseline at its own best rate below it."""
    how = (
        ", chosen on other pictures than it is judged by"
        if all(each.cross_fitted for each in comparison.best)
        else ""
    )
    columns = [
        Column("arm", "name"),
        Column("best lr"),
        Column("accuracy"),
        Column("AULC", gives_way=3),
        Column("steps to target", gives_way=2),
        Column("over relu"),
        Column("95% interval", gives_way=1, optional=True),
    ]
    table = Grid(columns, title=f"each at its best rate{how}")
    for each in comparison.best:
        accuracies = (each.arm_accuracy, each.reference_accuracy)
        differences = [(f"{each.accuracy.mean:+.3f}", _interval(each.accuracy)), ("", "")]
        for side, (arm, lr) in enumerate(
            ((each.arm, each.lr), (each.reference, each.reference_lr))
        ):
            table.add(
                arm, f"{lr:g}", f"{accuracies[side]:.3f}", f"{each.aulc[side]:.3f}",
                _when(each.steps_to_target[side]), *differences[side],
            )  # fmt: skip
        table.section()
    return table


def _heads(comparison: Comparison) -> str:
    """The classifier's learning rates, where they are not the backbone's."""
    rates = {
        arm: sorted({lr for c in comparison.cells if c.arm == arm for lr in c.head_lrs})
        for arm in comparison.arms
    }
    if all(set(cell.head_lrs) <= {cell.lr} for cell in comparison.cells):
        return ""
    told = (f"{arm} {', '.join(f'{lr:g}' for lr in lrs)}" for arm, lrs in rates.items() if lrs)
    return f"Learning rate of the head: {'; '.join(told)}."


def _probes(comparison: Comparison) -> str:
    """What a classifier on the features before fine-tuning reaches."""
    # It depends on neither the rate nor, but for the pictures of calibration, the seed.
    first = {cell.arm: cell for cell in reversed(comparison.cells) if cell.probe_top1 is not None}
    told = (
        f"{arm} {first[arm].probe_top1:.3f} (loss {or_dash(first[arm].probe_loss, '.3f')})"
        for arm in comparison.arms
        if arm in first
    )
    found = ", ".join(told)
    return f"Without fine-tuning, a linear probe of the features has {found}." if found else ""


def _proofs(rates: Sequence[RateComparison]) -> list[str]:
    """The hashes that the runs of single pairs share; pairs with equal hashes share a line."""
    together: Counter[tuple[int, str]] = Counter()
    for found in rates:
        for pair in found.pairs if len(found.pairs) == 1 else []:
            same = ", ".join(
                f"{what} {value[:12]}"
                for what, value in pair.proof.items()
                if value and what != "weights"
            )
            together[pair.seed, same or "not recorded yet"] += 1
    return [
        f"same in {'both' if n == 1 else 'all of them'} (seed {seed}): {same}"
        for (seed, same), n in together.items()
    ]
