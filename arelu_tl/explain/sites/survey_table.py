"""The table of timm's architectures that run a ReLU, as scripts/survey_timm.py last counted them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from arelu_tl.render.grid import Column, Grid

SURVEY = Path(__file__).with_name("timm-sites.tsv")


@dataclass(frozen=True)
class SurveyRow:
    """One architecture.

    Attributes:
        name: timm's.
        sites: ReLUs in one forward pass.
        module, shared, functional: how many of them are a module's own, a shared module's calls, functional calls.
        relu6, squeeze_excite, squared: how many of them are so.
        refusal: why surgery refuses it; empty where it converts.
    """

    name: str
    sites: int = 0
    module: int = 0
    shared: int = 0
    functional: int = 0
    relu6: int = 0
    squeeze_excite: int = 0
    squared: int = 0
    refusal: str = ""


def write_survey(rows: Iterable[SurveyRow], release: str, path: Path = SURVEY) -> None:
    """Write the table of the timm ``release``, tab-separated under a line of names."""
    lines = ["\t".join(field.name for field in fields(SurveyRow))]
    lines += ["\t".join(" ".join(str(value).split()) for value in astuple(row)) for row in rows]
    path.write_text(f"# timm {release}: written by scripts/survey_timm.py\n" + "\n".join(lines) + "\n", encoding="utf-8")


def read_survey(path: Path = SURVEY) -> tuple[str, list[SurveyRow]]:
    """(the timm release that it was made of, the rows)."""
    header, _, *lines = path.read_text(encoding="utf-8").splitlines()
    release = header.removeprefix("# timm ").partition(":")[0]
    counted = [field.name for field in fields(SurveyRow)[1:-1]]
    rows = []
    for line in lines:
        name, *counts, refusal = line.split("\t")
        rows.append(SurveyRow(name, refusal=refusal, **dict(zip(counted, map(int, counts), strict=True))))
    return release, rows


def survey_table(rows: Sequence[SurveyRow]) -> Grid:
    """A row for each architecture, with how its sites are made up."""
    kinds = {"module": 2, "shared": 3, "functional": 4, "relu6": 5, "SE": 6, "squared": 7}
    refused = any(row.refusal for row in rows)
    table = Grid(
        [
            Column("architecture", "name"),
            Column("sites"),
            *(Column(kind, gives_way=way) for kind, way in kinds.items()),
            *[Column("refused because", "text", gives_way=1)] * refused,
        ]
    )
    for row in rows:
        counts = (row.sites, row.module, row.shared, row.functional, row.relu6, row.squeeze_excite, row.squared)
        table.add(row.name, *(str(n) if n else "·" for n in counts), *[row.refusal or ""] * refused)
    return table
