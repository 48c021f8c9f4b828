"""Write a run's metrics.jsonl and summary.json as TensorBoard event files in the run's folder.

The package is optional, and imported only if it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arelu_tl.errors import ConfigError
from arelu_tl.records.storage import make_folder, storage_errors
from arelu_tl.surgery.convert import SurgeryReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_METRICS = ("final_top1", "final_loss", "best_top1", "best_step", "aulc")


def require_tensorboard() -> None:
    """Raise if the package is missing, before anything is written.

    Raises:
        ConfigError: the package is missing.
    """
    _writer_class()


class TensorBoardLog:
    """Logs each row of metrics.jsonl as scalars, on disk when the call returns.

    Tags are the same in every run, so that TensorBoard overlays the arms' curves: ``loss/val``,
    ``loss/train``, ``top1/val``, ``top1/train`` and ``lr``, by optimiser step. Rows with site
    values are also logged as ``alpha/SITE`` and ``beta/SITE``, and as histograms ``alpha`` and
    ``beta`` over all sites.
    """

    def __init__(
        self, path: Path, report: SurgeryReport | None, *, resumed_at: int | None = None
    ) -> None:
        """Begin a log in the folder ``path``, or continue it.

        Args:
            report: the run's surgery report, logged as the text ``surgery``; None for no surgery.
            resumed_at: step of the checkpoint that the run resumes from: later events are hidden.
                None hides all events of an earlier start of the run.

        Raises:
            ConfigError: the package is missing.
            StorageError: the folder cannot be written.
        """
        self.path = path
        self._rate_step = -1
        # Only where there is anything to hide: TensorBoard reads files of the same second by name,
        # so that this one may come after the summary's, and would hide that too.
        begun = any(path.glob("events.*"))
        first = 0 if resumed_at is None else resumed_at + 1
        self._writer = _open(path, purge_step=first if begun else None)
        if report is not None and resumed_at is None:
            values = {key: value for key, value in report.to_json().items() if key != "sites"}
            with storage_errors(path):
                self._writer.add_text(
                    "surgery",
                    _table({**values, "replaced": report.replaced, "sites": report.executed}),
                    0,
                )
                self._writer.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        """Log one row of metrics.jsonl."""
        step, split = row["step"], row["split"]
        with storage_errors(self.path):
            for name in ("loss", "top1"):
                self._writer.add_scalar(f"{name}/{split}", row[name], step)
            # A training row and an evaluation have the same rate at the same step.
            if step != self._rate_step:
                self._writer.add_scalar("lr", row["lr"], step)
                self._rate_step = step
            sites: dict[str, list[float]] = row.get("sites", {})
            for at, name in enumerate(("alpha", "beta") if sites else ()):
                self._writer.add_histogram(
                    name, np.array([values[at] for values in sites.values()]), step
                )
                for site, values in sites.items():
                    self._writer.add_scalar(f"{name}/{site}", values[at], step)
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        with storage_errors(self.path):
            self._writer.close()


def log_summary(path: Path, summary: Mapping[str, Any], report: SurgeryReport | None) -> None:
    """Log a finished run's text ``summary`` and its HPARAMS line with arm, rate and seed.

    Raises:
        StorageError: the folder cannot be written.
    """
    metrics = {f"summary/{name}": summary[name] for name in _METRICS}
    if report is not None and report.drift is not None and report.drift.relative is not None:
        metrics["summary/drift"] = report.drift.relative
    with storage_errors(path), _open(path) as writer:
        writer.add_text(
            "summary",
            _table({k: v for k, v in summary.items() if k != "pairing"}),
            summary["steps"],
        )
        # With its own run name TensorBoard would show it as another run beside the curves.
        settings = {key: summary[key] for key in ("arm", "lr", "seed")}
        writer.add_hparams(settings, metrics, run_name=".", global_step=summary["steps"])


def _open(path: Path, *, purge_step: int | None = None) -> SummaryWriter:
    writer_class = _writer_class()
    make_folder(path)
    with storage_errors(path):
        return writer_class(str(path), purge_step=purge_step)


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "`tensorboard` needs the package tensorboard: pip install 'arelu-tl[tensorboard]'"
        ) from None
    return SummaryWriter


def _table(values: Mapping[str, Any]) -> str:
    """Return a Markdown table, the format in which TensorBoard shows texts."""
    cells = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {cell} |" for key, cell in cells.items())]
    )
