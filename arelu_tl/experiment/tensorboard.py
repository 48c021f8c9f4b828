"""A run for TensorBoard: what metrics.jsonl and summary.json tell, as event files in a folder of the run's own.

The package is optional, and imported only where it is asked for.
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
    """Tell before anything is written that the package is missing.

    Raises:
        ConfigError: it is.
    """
    _writer_class()


class TensorBoardLog:
    """Each row of metrics.jsonl as scalars, on disk when the call returns.

    Tags are the same in every run, so that TensorBoard lays the arms' curves over one another: ``loss/val``, ``loss/train``,
    ``top1/val``, ``top1/train`` and ``lr``, by optimiser step. Rows that tell of sites are also ``alpha/SITE`` and
    ``beta/SITE``, with the histograms ``alpha`` and ``beta`` over all sites.
    """

    def __init__(self, path: Path, report: SurgeryReport | None, *, resumed_at: int | None = None) -> None:
        """Begin a log in the folder ``path``, or go on with it.

        Args:
            report: of the run's surgery, None where there was none; it is the text ``surgery``.
            resumed_at: step of the checkpoint that the run goes on from: later events are hidden. None hides all that an
                earlier start of the run left.

        Raises:
            ConfigError: the package is missing.
            StorageError: the folder cannot be written.
        """
        self.path = path
        self._rate_told_at = -1
        self._writer = _open(path, purge_step=0 if resumed_at is None else resumed_at + 1)
        if report is not None and resumed_at is None:
            told = {key: value for key, value in report.to_json().items() if key != "sites"}
            with storage_errors(path):
                self._writer.add_text("surgery", _table({**told, "replaced": report.replaced, "sites": report.executed}), 0)
                self._writer.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        """Log one row of metrics.jsonl."""
        step, split = row["step"], row["split"]
        with storage_errors(self.path):
            for name in ("loss", "top1"):
                self._writer.add_scalar(f"{name}/{split}", row[name], step)
            # A training row and an evaluation tell the same rate at the same step.
            if step != self._rate_told_at:
                self._writer.add_scalar("lr", row["lr"], step)
                self._rate_told_at = step
            sites: dict[str, list[float]] = row.get("sites", {})
            for at, name in enumerate(("alpha", "beta") if sites else ()):
                self._writer.add_histogram(name, np.array([values[at] for values in sites.values()]), step)
                for site, values in sites.items():
                    self._writer.add_scalar(f"{name}/{site}", values[at], step)
            self._writer.flush()

    def close(self) -> None:
        with storage_errors(self.path):
            self._writer.close()


def log_summary(path: Path, summary: Mapping[str, Any], report: SurgeryReport | None) -> None:
    """Add a finished run's end to its log: the text ``summary``, and a line of the HPARAMS tab with the arm, rate and seed.

    Raises:
        StorageError: the folder cannot be written.
    """
    metrics = {f"summary/{name}": summary[name] for name in _METRICS}
    if report is not None and report.drift is not None and report.drift.relative is not None:
        metrics["summary/drift"] = report.drift.relative
    with storage_errors(path), _open(path) as writer:
        writer.add_text("summary", _table({k: v for k, v in summary.items() if k != "pairing"}), summary["steps"])
        # A run name of its own would stand in TensorBoard as another run, beside the curves.
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
        raise ConfigError("--tensorboard needs the package tensorboard: pip install 'arelu-tl[tensorboard]'") from None
    return SummaryWriter


def _table(values: Mapping[str, Any]) -> str:
    """Markdown, as TensorBoard shows texts."""
    cells = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {cell} |" for key, cell in cells.items())])
