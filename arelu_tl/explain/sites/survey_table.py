"""The table of timm's architectures that run a ReLU, as written by scripts/survey_timm.py."""

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
        sites: number of ReLUs in one forward pass.
        module, shared, functional: number of them that are a module of their own, a call of a
            shared module, or a functional call.
        relu6, squeeze_excite, squared: number of them that are a ReLU6, in a squeeze-excite block,
            or squared.
        refusal: why surgery refuses it; "" where it converts.
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
    """Write the table for timm's ``release``, tab-separated with a header line."""
    lines = ["\t".join(field.name for field in fields(SurveyRow))]
    lines += ["\t".join(" ".join(str(value).split()) for value in astuple(row)) for row in rows]
    path.write_text(
        f"# timm {release}: written by scripts/survey_timm.py\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


def read_survey(path: Path = SURVEY) -> tuple[str, list[SurveyRow]]:
    """Return (the timm release of the table, its rows)."""
    header, _, *lines = path.read_text(encoding="utf-8").splitlines()
    release = header.removeprefix("# timm ").partition(":")[0]
    counted = [field.name for field in fields(SurveyRow)[1:-1]]
    rows = []
    for line in lines:
        name, *counts, refusal = line.split("\t")
        rows.append(
            SurveyRow(name, refusal=refusal, **dict(zip(counted, map(int, counts), strict=True)))
        )
    return release, rows


def survey_table(rows: Sequence[SurveyRow]) -> Grid:
    """Show a row per architecture, with the kinds of its sites."""
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
        counts = (
            row.sites,
            row.module,
            row.shared,
            row.functional,
            row.relu6,
            row.squeeze_excite,
            row.squared,
        )
        table.add(
            row.name,
            *(str(n) if n else "·" for n in counts),
            *[row.refusal or ""] * refused,
        )
    return table
