"""Print a comparison and write its files, for compare, finetune, demo and sweep.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arelu_tl.analysis.results import Comparison
from arelu_tl.records import runs
from arelu_tl.records.storage import make_folder, write_json
from arelu_tl.render.console import Output, Shown
from arelu_tl.render.report.report import write_report_files
from arelu_tl.render.tables import comparison_report


def show_comparison(
    comparison: Comparison,
    compared: Sequence[runs.RunRecord],
    folder: Path | None,
    output: Output,
    *more: Shown,
) -> None:
    """Print ``comparison`` and then ``more``.

    With ``folder``, write comparison.json, the figures and the report's page there.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    data = comparison.to_json()
    written: list[Shown] = []
    if folder is not None:
        make_folder(folder)
        write_json(folder / runs.COMPARISON, data, indent=None)
        files = write_report_files(comparison, compared, folder, title=study_title(compared))
        written = ["report: " + ", ".join(map(str, files))]
    output.report(*comparison_report(comparison), *written, *more, data=data)


def study_title(compared: Sequence[runs.RunRecord]) -> str:
    """The models and the picture folders of the compared runs.

    Runs of ``reproduce`` have no folder, so none is named.
    """
    models = sorted({run.config.model for run in compared})
    folders = sorted({run.config.data.name for run in compared if run.config.data is not None})
    return ", ".join(models) + (f" on {', '.join(folders)}" if folders else "")
