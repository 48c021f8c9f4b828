"""Where a study and its runs keep things, and how finished or running ones are read back. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from arelu_tl.errors import ArtefactError, DataError
from arelu_tl.records.config import GRID_KEYS, FinetuneConfig, SweepConfig, check_config, read_yaml
from arelu_tl.records.storage import read_json, read_rows

STUDY_CONFIG = "study.yaml"
DATASET = "dataset.json"
SPLIT = "split.csv"
COMPARISON = "comparison.json"
FIGURE = "convergence.png"
REPORT = "report.html"

RUN_CONFIG = "run.yaml"
ENVIRONMENT = "environment.json"
SURGERY = "surgery.json"
METRICS = "metrics.jsonl"
RESULTS = "results.csv"
SUMMARY = "summary.json"
PREDICTIONS = "predictions.csv"
CHECKPOINTS = "checkpoints"
BEST = "best.safetensors"
TENSORBOARD = "tensorboard"

# Files that together tell a folder that a command has written: a study, a run, and what goes to an --output.
_RESULTS: tuple[frozenset[str], ...] = (
    frozenset({STUDY_CONFIG}),
    frozenset({RUN_CONFIG}),
    frozenset({"reproduction.yaml"}),
    frozenset({REPORT, FIGURE}),
    frozenset({"check.json", "rejected.csv", "duplicates.csv"}),
    frozenset({"evaluation.json", "confusion.png"}),
    frozenset({"gradients.json", "gradients.png"}),
    frozenset({"activations.json", "activations.png"}),
    frozenset({"config.json", "model.safetensors"}),
)


def run_name(arm: str, lr: float, seed: int) -> str:
    """Name of a run's folder: ``arelu-lr0.0001-s0``; the rate is written in full, without an exponent."""
    return f"{arm}-lr{format(Decimal(repr(float(lr))).normalize(), 'f')}-s{seed}"


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says about itself.

    Attributes:
        path: the run's folder.
        config: resolved configuration, arm included.
        summary: content of summary.json; {} while the run has not written one.
        rows: rows of metrics.jsonl, without what each site had learnt by then; ``metrics`` has that too.
        surgery: content of surgery.json; None for the unmodified arm.
        dataset: fingerprint of the pictures and their split, from the study's dataset.json; None outside of a study.
    """

    path: Path
    config: FinetuneConfig
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    surgery: dict[str, Any] | None = None
    dataset: str | None = None

    @property
    def status(self) -> str:
        """finished, interrupted or failed; running where there is no summary yet."""
        return str(self.summary.get("status", "running"))

    def curve(self, split: str = "val") -> list[dict[str, Any]]:
        """The rows of one split, in order of steps."""
        return [row for row in self.rows if row.get("split") == split]

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The whole rows of metrics.jsonl, "sites" included; read when they are asked for, since few ask and they are long.

        Raises:
            ArtefactError: the file is corrupt.
        """
        path = self.path / METRICS
        return read_rows(path) if path.exists() else []


@dataclass(frozen=True)
class StudyRecord:
    """A folder of runs on one dataset."""

    path: Path
    config: FinetuneConfig
    runs: list[RunRecord] = field(default_factory=list)

    def best(self) -> RunRecord:
        """The finished run with the best validation accuracy, of equals the one that reached it first.

        Raises:
            DataError: none has finished.
        """
        finished = [run for run in self.runs if run.status == "finished"]
        if not finished:
            raise DataError(f"{self.path}: no run of this study has finished")
        return max(finished, key=lambda run: (run.summary["best_top1"], -run.summary["best_step"]))


def is_run(path: Path) -> bool:
    return (path / RUN_CONFIG).is_file()


def is_study(path: Path) -> bool:
    return (path / STUDY_CONFIG).is_file()


def holds_results(names: Collection[str]) -> bool:
    """Whether a folder with files of these names has been written by one of our commands, and is no user's own."""
    here = frozenset(names)
    return any(told <= here for told in _RESULTS)


def load_run(path: Path | str) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        DataError: there is no run at ``path``.
        ArtefactError: a file of it is corrupt.
    """
    path = Path(path)
    if not is_run(path):
        raise DataError(f"{path} is not a run folder: it has no {RUN_CONFIG}")
    summary = path / SUMMARY
    metrics = path / METRICS
    surgery = path / SURGERY
    return RunRecord(
        path=path,
        config=_read_config(path / RUN_CONFIG),
        summary=_read_object(summary) if summary.exists() else {},
        rows=read_rows(metrics, without="sites") if metrics.exists() else [],
        surgery=_read_object(surgery) if surgery.exists() else None,
        dataset=_fingerprint(path),
    )


def load_study(path: Path | str) -> StudyRecord:
    """Read a study folder and every run in it; there may be none yet.

    Raises:
        DataError: there is no study at ``path``.
        ArtefactError: a file of it is corrupt.
    """
    path = Path(path)
    if not is_study(path):
        raise DataError(f"{path} is not a study folder: it has no {STUDY_CONFIG}")
    return StudyRecord(path=path, config=_read_config(path / STUDY_CONFIG), runs=_runs_below(path))


def read_environment(run: Path) -> dict[str, Any]:
    """Content of a run's environment.json; {} where there is none.

    Raises:
        ArtefactError: it is corrupt.
    """
    path = run / ENVIRONMENT
    return _read_object(path) if path.exists() else {}


def find_runs(path: Path | str) -> list[RunRecord]:
    """The run at ``path``, or all runs at most two folders below it (a study, or a parent of studies), by name.

    Raises:
        DataError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give a run, a study, or a folder of studies")
    if is_run(path):
        return [load_run(path)]
    found = _runs_below(path)
    if not found:
        raise DataError(f"{path} holds no runs: looked for {RUN_CONFIG} in it and two folders down")
    return found


def _runs_below(path: Path) -> list[RunRecord]:
    found = {p.parent for pattern in (f"*/{RUN_CONFIG}", f"*/*/{RUN_CONFIG}") for p in path.glob(pattern)}
    return [load_run(run) for run in sorted(found)]


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: not a JSON object")
    return value


def _fingerprint(run: Path) -> str | None:
    dataset = run.resolve().parent / DATASET
    return str(_read_object(dataset).get("fingerprint")) if dataset.exists() else None


def _read_config(path: Path) -> FinetuneConfig:
    """A configuration that we wrote ourselves: if it does not validate, the file was damaged, not mistyped."""
    try:
        values = read_yaml(path)
        return check_config(values, SweepConfig if GRID_KEYS[0] in values else FinetuneConfig)
    except ValueError as error:
        raise ArtefactError(f"{path}: {error}") from None
