"""The table of supported architectures. Imports neither torch nor timm, so that it is there at once."""

from __future__ import annotations

from collections.abc import Sequence

from arelu_tl.records.survey import SurveyRow
from arelu_tl.render.grid import Column, Grid


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
