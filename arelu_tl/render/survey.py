"""The table of supported architectures. Imports neither torch nor timm, so that it is there at once."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from arelu_tl.records.survey import SurveyRow
from arelu_tl.render.console import plain


def survey_table(rows: Sequence[SurveyRow]) -> Table:
    """A row for each architecture, with how its sites are made up."""
    table = Table()
    table.add_column("architecture", overflow="fold")
    for heading in ("sites", "module", "shared", "functional", "relu6", "SE", "squared"):
        table.add_column(heading, justify="right", no_wrap=True)
    refused = any(row.refusal for row in rows)
    if refused:
        table.add_column("refused because")
    for row in rows:
        counts = (row.sites, row.module, row.shared, row.functional, row.relu6, row.squeeze_excite, row.squared)
        cells = [str(n) if n else "·" for n in counts]
        table.add_row(plain(row.name), *cells, *([plain(row.refusal)] if refused else []))
    return table
