"""The report of ``arelu-tl explain features`` as text: what the arms say, and each shown site's numbers."""

from __future__ import annotations

from pathlib import Path

from arelu_tl.render.console import Shown, line
from arelu_tl.render.grid import Column, Grid
from arelu_tl.render.tables import or_dash
from arelu_tl.study.feature_maps import ArmAnswer, FeatureReport

_COLUMNS = [
    Column("site", "name", once=True),
    Column("arm", "name"),
    Column("x < 0", gives_way=1),
    Column("zero after", gives_way=1),
    Column("attention"),
    Column("of x < 0", gives_way=3),
    Column("of x >= 0", gives_way=3),
    Column("energy before", gives_way=2),
    Column("energy after", gives_way=2),
]


def features_report(report: FeatureReport, figure: Path) -> list[Shown]:
    """Everything that the command shows, top to bottom."""
    parts: list[Shown] = [line(report.note)] if report.note else []
    parts += [line(_answer(answer)) for answer in report.answers]
    parts += [line(f"not drawn: {site.title}: {shown.reason}") for site, shown in report.shown if not shown.maps]
    return [*parts, "", _table(report), "", f"figure: {figure}"]


def _answer(answer: ArmAnswer) -> str:
    (label, probability), *others = answer.top(3)
    then = f" (then {', '.join(f'{name} {p:.3f}' for name, p in others)})" if others else ""
    found = answer.evidence
    where = f"no evidence map: {found.reason}" if found.shares is None else f"evidence map of {found.label}"
    return f"{answer.arm}, step {answer.step}: {label} {probability:.3f}{then}; {where}"


def _table(report: FeatureReport) -> Grid:
    table = Grid(_COLUMNS)
    for site, _ in report.shown:
        for arm, told in site.statistics.items():
            factors = (told.attention, told.attention_negative, told.attention_positive)
            table.add(
                site.title,
                arm,
                f"{told.negative_share:.0%}",
                f"{told.zero_share:.0%}",
                *(or_dash(value, ".3f") for value in factors),
                *(or_dash(value, ".3g") for value in (told.energy_before, told.energy_after)),
            )
    return table
