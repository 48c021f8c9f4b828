"""The report of ``arelu-tl explain features`` as text: what the arms say, and each shown site's numbers."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from arelu_tl.render.console import plain
from arelu_tl.render.tables import or_dash
from arelu_tl.study.feature_maps import ArmAnswer, FeatureReport

_COLUMNS = ("site", "arm", "x < 0", "zero after", "attention", "of x < 0", "of x >= 0", "energy before", "after")


def features_report(report: FeatureReport, figure: Path) -> list[RenderableType]:
    """Everything that the command shows, top to bottom."""
    parts: list[RenderableType] = [plain(report.note)] if report.note else []
    parts += [_answer(answer) for answer in report.answers]
    parts += [f"not drawn: {plain(site.title)}: {shown.reason}" for site, shown in report.shown if not shown.maps]
    return [*parts, _table(report), f"figure: {plain(figure)}"]


def _answer(answer: ArmAnswer) -> str:
    (label, probability), *others = answer.top(3)
    then = f" (then {', '.join(f'{plain(name)} {p:.3f}' for name, p in others)})" if others else ""
    found = answer.evidence
    where = f"no evidence map: {plain(found.reason)}" if found.shares is None else f"evidence map of {plain(found.label)}"
    return f"{plain(answer.arm)}, step {answer.step}: {plain(label)} {probability:.3f}{then}; {where}"


def _table(report: FeatureReport) -> Table:
    table = Table()
    for heading in _COLUMNS:
        table.add_column(heading, justify="left" if heading in ("site", "arm") else "right", overflow="fold")
    for site, _ in report.shown:
        for number, (arm, told) in enumerate(site.statistics.items()):
            factors = (told.attention, told.attention_negative, told.attention_positive)
            table.add_row(
                "" if number else plain(site.title),
                plain(arm),
                f"{told.negative_share:.0%}",
                f"{told.zero_share:.0%}",
                *(or_dash(value, ".3f") for value in factors),
                *(or_dash(value, ".3g") for value in (told.energy_before, told.energy_after)),
            )
    return table
