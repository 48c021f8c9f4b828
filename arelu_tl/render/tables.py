"""Reports as rich tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from arelu_tl.analysis import BASELINE, Cell, Comparison, PairResult, RateComparison, TimeToTarget
from arelu_tl.analysis.results import Spread
from arelu_tl.analysis.verdict import NOT_DETECTABLE
from arelu_tl.render.console import plain

if TYPE_CHECKING:  # a comparison's tables need no torch
    from arelu_tl.exporting.report import ExportReport


def or_dash(value: float | int | None, form: str = "") -> str:
    """A number in a table; "-" where there is none."""
    return "-" if value is None else format(value, form)


def comparison_report(comparison: Comparison) -> Group:
    """Verdicts, the table they rest on, whose the gain is, and what a reader must know to read them."""
    parts: list[RenderableType] = [rates_table(comparison)]
    if len({cell.lr for cell in comparison.cells}) > 1 and comparison.best:
        parts.append(best_table(comparison))
    sentences = [found.sentence for found in comparison.rates] + [found.sentence for found in comparison.best]
    parts += [Text(sentence, style="bold") for sentence in sentences]
    parts += [Text(sentence) for sentence in comparison.gain]
    parts += [Text(warning, style="yellow") for warning in comparison.warnings]
    parts += [Text(proof, style="dim") for proof in _proofs(comparison.rates)]
    if comparison.unpaired:
        parts.append(Text(f"without a partner: {', '.join(comparison.unpaired)}"))
    if comparison.repeated:
        parts.append(Text(f"left out: {', '.join(comparison.repeated)}"))
    return Group(*parts)


def rates_table(comparison: Comparison) -> Table:
    """Each rate's arms, the baseline first."""
    table = Table(title=_title(comparison), title_justify="left")
    for heading in ("lr", "arm", "seeds", "final", "best", "AULC", "over relu", "to target", "step/relu", "img/s", "drift"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    found = {(each.arm, each.lr): each for each in comparison.rates}
    before = None
    for cell in sorted(comparison.cells, key=lambda cell: (cell.lr, cell.arm != BASELINE, cell.arm)):
        if before not in (None, cell.lr):
            table.add_section()
        table.add_row(f"{cell.lr:g}" if cell.lr != before else "", *_cells(cell, found.get((cell.arm, cell.lr))))
        before = cell.lr
    return table


def _title(comparison: Comparison) -> str:
    steps = max(cell.steps for cell in comparison.cells)
    pictures = {found.aulc.pictures for found in comparison.rates} - {None}
    told = f", {min(p for p in pictures if p)} validation pictures" if pictures else ""
    return f"{steps} steps{told}; target {_targets(comparison)}"


def _targets(comparison: Comparison) -> str:
    targets = sorted({f"{cell.target:.1%}" for cell in comparison.cells})
    return targets[0] if len(targets) == 1 else "95% of relu's best at the same rate"


def _cells(cell: Cell, found: RateComparison | None) -> list[str]:
    return [
        plain(cell.arm),
        str(len(cell.seeds)),
        _mean(cell.final_top1),
        _mean(cell.best_top1),
        _mean(cell.aulc),
        "" if found is None else _difference(found),
        _when(cell.steps_to_target),
        "" if found is None else or_dash(found.cost.seconds_per_step, ".2f"),
        or_dash(cell.images_per_second, ".1f"),
        or_dash(cell.drift, ".2f"),
    ]


def _mean(spread: Spread) -> str:
    return f"{spread.mean:.3f}" + (f" ±{spread.sd:.3f}" if spread.sd is not None else "")


def _difference(found: RateComparison) -> str:
    d = found.aulc
    told = f"{d.mean:+.3f}"
    if d.low is not None and d.high is not None:
        told += f" ({d.low:+.3f} to {d.high:+.3f})"
    return f"[bold]{told}[/]" if found.verdict != NOT_DETECTABLE else told


def _when(time: TimeToTarget) -> str:
    if time.reached == 0:
        return "never"
    step = f"step {time.median:.0f}" if time.median is not None else f"> step {time.restricted_mean:.0f}"
    return step if time.reached == time.of else f"{step} ({time.reached} of {time.of})"


def best_table(comparison: Comparison) -> Table:
    """Best rate against best rate: what each reaches at the rate that it would be tuned to."""
    how = ", chosen on other pictures than it is judged by" if all(each.cross_fitted for each in comparison.best) else ""
    table = Table(title=f"each at its best rate{how}", title_justify="left")
    for heading in (
        "arm",
        "best lr",
        "accuracy",
        "AULC",
        "to target",
        "relu's best lr",
        "accuracy",
        "AULC",
        "to target",
        "difference",
    ):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for each in comparison.best:
        d = each.accuracy
        interval = f" ({d.low:+.3f} to {d.high:+.3f})" if d.low is not None and d.high is not None else ""
        table.add_row(
            plain(each.arm),
            f"{each.lr:g}",
            f"{each.arm_accuracy:.3f}",
            f"{each.aulc[0]:.3f}",
            _when(each.steps_to_target[0]),
            f"{each.reference_lr:g}",
            f"{each.reference_accuracy:.3f}",
            f"{each.aulc[1]:.3f}",
            _when(each.steps_to_target[1]),
            f"{d.mean:+.3f}{interval}",
        )
    return table


def _proofs(rates: Sequence[RateComparison]) -> list[str]:
    """What the runs of single pairs share, once for all that share it, and McNemar's test of each."""
    together: dict[tuple[int, str], list[tuple[RateComparison, PairResult]]] = defaultdict(list)
    for found in rates:
        for pair in found.pairs if len(found.pairs) == 1 else []:
            same = ", ".join(f"{what} {value[:12]}" for what, value in pair.proof.items() if value and what != "weights")
            together[pair.seed, same or "not recorded yet"].append((found, pair))
    lines = []
    for (seed, same), members in together.items():
        tested = [(found, pair.mcnemar_p) for found, pair in members if pair.mcnemar_p is not None]
        named = len(members) > 1
        values = ", ".join(f"{_named(found, rates)} " * named + f"p = {p:.3g}" for found, p in tested)
        tail = f"; McNemar on the best checkpoints' predictions: {values}" if values else ""
        lines.append(f"same in {'all of them' if named else 'both'} (seed {seed}): {same}{tail}")
    return lines


def _named(found: RateComparison, rates: Sequence[RateComparison]) -> str:
    return found.arm + (f" at {found.lr:g}" if len({each.lr for each in rates}) > 1 else "")


def export_report(report: ExportReport) -> Group:
    """What was written, how it was proved, and what of the activations is left in it."""
    files = ", ".join(f"{plain(name)} ({size:,} bytes)" for name, size in report.files.items())
    parts: list[RenderableType] = [Text.from_markup(f"wrote {plain(report.path)}: {files}")]
    if report.fold is not None:
        fold = report.fold
        total = len(fold.folded) + len(fold.kept)
        gains = f"the gains of {len(fold.folded)} of {total} activations"
        normalisations = f", {fold.batchnorms} normalisations" if fold.batchnorms else ""
        parts.append(f"in the weights around them: {gains}{normalisations}")
        parts += [f"  {plain(name)} keeps its product: {plain(reason)}" for name, reason in fold.kept.items()]
    for proof in report.proofs:
        parts.append(
            f"{proof.runtime}: {proof.answers} of {proof.inputs} pictures within {proof.difference:.2g} of {proof.of} "
            f"({_percent(proof.share)} of what is allowed; float32 itself costs {proof.own:.2g})"
        )
    if report.accuracy is not None:
        change = report.accuracy
        parts.append(
            f"in fewer bits: accuracy {change.after:.4f} where the trained model has {change.before:.4f}, the same class on "
            f"{change.same:.1%} of {change.pictures} validation pictures"
        )
    if report.form == "timm":
        parts.append(
            "loads with arelu_tl.load_model, and with timm alone: timm.create_model('local-dir:FOLDER', pretrained=True)"
        )
    elif report.unlike_timm is not None:
        parts.append(f"loads with arelu_tl.load_model, not with timm alone: {plain(report.unlike_timm)}")
    if report.timings:
        parts.append(_timings(report))
    if report.url is not None:
        parts.append(f"uploaded: {plain(report.url)}")
    return Group(*parts)


def _percent(share: float) -> str:
    return "under 1%" if 0 < share < 0.01 else f"{share:.0%}"


def _timings(report: ExportReport) -> Table:
    table = Table(title=f"beside {plain(report.baseline)}, in turns", title_justify="left")
    for name in ("batch", "ms", "baseline ms", "pictures/s", "ratio", "least .. greatest", "rounds"):
        table.add_column(name, justify="right")
    for t in report.timings:
        table.add_row(
            str(t.batch), f"{t.milliseconds:.1f}", f"{t.baseline_milliseconds:.1f}", f"{t.pictures_per_second:.1f}",
            f"{t.ratio:.2f}", f"{t.least:.2f} .. {t.greatest:.2f}", str(t.rounds),
        )  # fmt: skip
    return table
