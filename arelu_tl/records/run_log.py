"""The two logs of a run: metrics.jsonl and results.csv. Rows of every command are written here."""

from __future__ import annotations

import csv
from pathlib import Path

from arelu_tl.records import runs
from arelu_tl.records.rows import EPOCH_COLUMNS, EpochRow, MetricRow
from arelu_tl.records.storage import RowWriter, storage_errors, write_text


class RunLog:
    """Appends rows to both logs in a run's folder; to be closed."""

    def __init__(self, path: Path, *, keep: dict[str, int] | None = None) -> None:
        """Open the logs in the folder ``path``.

        Args:
            keep: ``lengths`` at a checkpoint, to which the logs are cut back; None empties them.
        """
        self._metrics = RowWriter(path / runs.METRICS, keep=keep["metrics"] if keep else None)
        self._results = path / runs.RESULTS
        if keep is None:
            self._metrics.truncate()
            write_text(self._results, ",".join(EPOCH_COLUMNS) + "\n")
        else:
            with storage_errors(self._results), open(self._results, "ab") as file:
                file.truncate(keep["results"])

    def metric(self, row: MetricRow) -> None:
        """Append a row to metrics.jsonl."""
        self._metrics.append(row)

    def epoch(self, row: EpochRow) -> None:
        """Append a row to results.csv."""
        with (
            storage_errors(self._results),
            open(self._results, "a", encoding="utf-8", newline="") as file,
        ):
            csv.DictWriter(file, EPOCH_COLUMNS, lineterminator="\n").writerow(row)

    def lengths(self) -> dict[str, int]:
        """Return the logs' lengths in bytes."""
        return {"metrics": self._metrics.length(), "results": self._results.stat().st_size}

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
