"""The files of a study and its runs, and how they are read, finished or not. Imports no torch."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arelu_tl.errors import ArtefactError, DataError
from arelu_tl.records.config import (
    GRID_KEYS,
    FinetuneConfig,
    SweepConfig,
    check_config,
    dump_yaml,
    read_yaml,
)
from arelu_tl.records.format import require_format
from arelu_tl.records.rows import MetricRow, Summary, read_metric_rows, read_summary
from arelu_tl.records.storage import read_json, write_text

STUDY_CONFIG = "study.yaml"
DATASET = "dataset.json"
SPLIT = "split.csv"
TRAINED_ON = "trained-on.bin"
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
CHOICES = "choices.json"
TENSORBOARD = "tensorboard"

# Sets of files that identify a folder written by a command: a study, a run, or an --output.
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
    """Return a run's folder name, such as ``arelu-lr0.0001-s0``; the rate has no exponent."""
    return f"{arm}-lr{format(Decimal(repr(float(lr))).normalize(), 'f')}-s{seed}"


@dataclass(frozen=True)
class RunRecord:
    """The content of a run folder.

    Attributes:
        path: the run's folder.
        config: resolved configuration, arm included.
        summary: content of summary.json; {} if the run has not written one yet.
        rows: rows of metrics.jsonl without the key "sites", which ``metrics`` includes.
        surgery: content of surgery.json; None for the unmodified arm.
        dataset: fingerprint of the pictures and their split, from the study's dataset.json; None
            outside of a study.
        environment: content of environment.json; {} if there is none.
    """

    path: Path
    config: FinetuneConfig
    summary: Summary
    rows: list[MetricRow]
    surgery: dict[str, Any] | None = None
    dataset: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The status: finished, interrupted or failed; running if there is no summary yet."""
        return str(self.summary.get("status", "running"))

    def curve(self, split: str = "val") -> list[MetricRow]:
        """Return the rows of one split, in order of steps."""
        return [row for row in self.rows if row.get("split") == split]

    @property
    def settled_config(self) -> FinetuneConfig:
        """The configuration with what ``auto`` has come to.

        Raises:
            ArtefactError: the file that tells this is corrupt.
        """
        # Runs from before heads could start otherwise do not tell how theirs did.
        return self.config.model_copy(update={"head_init": "random", **self.settled})

    @cached_property
    def settled(self) -> dict[str, Any]:
        """The settings that ``auto`` has come to, by key; {} if they are not recorded.

        Raises:
            ArtefactError: the file is corrupt.
        """
        path = self.path / CHOICES
        if not path.exists():
            return {}
        record = read_json(path)
        settings = record.get("settings") if isinstance(record, dict) else None
        if not isinstance(settings, dict):
            raise ArtefactError(f"{path} is damaged: it tells no settings")
        return settings

    @cached_property
    def metrics(self) -> list[MetricRow]:
        """The full rows of metrics.jsonl, "sites" included; read on demand, because they are large.

        Raises:
            ArtefactError: the file is corrupt.
        """
        path = self.path / METRICS
        return read_metric_rows(path) if path.exists() else []


@dataclass(frozen=True)
class StudyRecord:
    """A folder of runs on one dataset."""

    path: Path
    config: FinetuneConfig
    runs: list[RunRecord] = field(default_factory=list)

    def best(self) -> RunRecord:
        """Return the finished run with the best validation accuracy; of ties, the earliest step.

        Raises:
            DataError: no run has finished.
        """
        finished = [run for run in self.runs if run.status == "finished"]
        if not finished:
            raise DataError(f"{self.path}: no run of this study has finished")
        return max(finished, key=lambda run: (run.summary["best_top1"], -run.summary["best_step"]))


def is_run(path: Path) -> bool:
    """Return whether ``path`` is a run folder."""
    return (path / RUN_CONFIG).is_file()


def is_study(path: Path) -> bool:
    """Return whether ``path`` is a study folder."""
    return (path / STUDY_CONFIG).is_file()


def holds_results(names: Collection[str]) -> bool:
    """Return whether a folder with files of these names was written by one of our commands."""
    here = frozenset(names)
    return any(marks <= here for marks in _RESULTS)


def load_run(path: Path | str) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        DataError: there is no run at ``path``.
        ArtefactError: one of its files is corrupt, or the run or its study has another format.
    """
    return _load_run(Path(path), {})


def _load_run(path: Path, datasets: dict[Path, str | None]) -> RunRecord:
    """Load a run; ``datasets`` caches the fingerprint of each study for all of its runs."""
    if not is_run(path):
        raise DataError(f"{path} is not a run folder: it has no {RUN_CONFIG}")
    environment = read_environment(path)
    study = path.resolve().parent
    if study not in datasets:
        datasets[study] = _fingerprint(study)
    summary = path / SUMMARY
    metrics = path / METRICS
    surgery = path / SURGERY
    return RunRecord(
        path=path,
        config=_read_config(path / RUN_CONFIG),
        summary=read_summary(summary) if summary.exists() else cast("Summary", {}),
        rows=read_metric_rows(metrics, without="sites") if metrics.exists() else [],
        surgery=_read_object(surgery) if surgery.exists() else None,
        dataset=datasets[study],
        environment=environment,
    )


def load_study(path: Path | str) -> StudyRecord:
    """Read a study folder and every run in it; there may be none yet.

    Raises:
        DataError: there is no study at ``path``.
        ArtefactError: one of its files is corrupt.
    """
    path = Path(path)
    return StudyRecord(path=path, config=study_config(path), runs=_runs_below(path, {}))


def study_config(path: Path) -> FinetuneConfig:
    """Read the configuration of a study, without its runs.

    Raises:
        DataError: there is no study at ``path``.
        ArtefactError: it is corrupt.
    """
    if not is_study(path):
        raise DataError(f"{path} is not a study folder: it has no {STUDY_CONFIG}")
    return _read_config(path / STUDY_CONFIG)


def read_environment(run: Path) -> dict[str, Any]:
    """Read a run's environment.json, which contains the run's format; {} if there is none.

    Raises:
        ArtefactError: it is corrupt, or this version does not read that format.
    """
    path = run / ENVIRONMENT
    environment = _read_object(path) if path.exists() else {}
    require_format(environment, run)
    return environment


def require_known_format(run: Path) -> None:
    """Raise unless this version reads the format of the run in the folder ``run``.

    Raises:
        ArtefactError: it does not.
    """
    read_environment(run)


def record_place(study: Path, data: Path) -> None:
    """Record in a study and its runs that their pictures are in the folder ``data``.

    Raises:
        ArtefactError, StorageError: a configuration is damaged or cannot be written.
    """
    # The study's own file is written last: once it names the folder, all do.
    for path in (*sorted(study.glob(f"*/{RUN_CONFIG}")), study / STUDY_CONFIG):
        write_text(path, dump_yaml(_read_config(path).model_copy(update={"data": data})))


def find_runs(*paths: Path | str) -> list[RunRecord]:
    """Load the run at each path, or all runs up to two folders below it, sorted by name.

    A path may be a run, a study, or a folder of studies. Each run is returned once.

    Raises:
        DataError: one of the paths has no run.
    """
    datasets: dict[Path, str | None] = {}
    found: dict[Path, RunRecord] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; give a run, a study, or a folder of studies")
        here = [_load_run(path, datasets)] if is_run(path) else _runs_below(path, datasets)
        if not here:
            raise DataError(
                f"{path} holds no runs: looked for {RUN_CONFIG} in it and two folders down"
            )
        found |= {run.path.resolve(): run for run in here}
    return list(found.values())


def _runs_below(path: Path, datasets: dict[Path, str | None]) -> list[RunRecord]:
    found = {
        p.parent for pattern in (f"*/{RUN_CONFIG}", f"*/*/{RUN_CONFIG}") for p in path.glob(pattern)
    }
    return [_load_run(run, datasets) for run in sorted(found)]


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: not a JSON object")
    return value


def _fingerprint(study: Path) -> str | None:
    dataset = study / DATASET
    if not dataset.exists():
        return None
    record = _read_object(dataset)
    require_format(record, study)
    return str(record.get("fingerprint"))


def _read_config(path: Path) -> FinetuneConfig:
    """Read a configuration that we wrote: if it is invalid, the file is damaged, not mistyped."""
    try:
        values = read_yaml(path)
        return check_config(values, SweepConfig if GRID_KEYS[0] in values else FinetuneConfig)
    except ValueError as error:
        raise ArtefactError(f"{path}: {error}") from None


def pack_flags(flags: NDArray[np.bool_]) -> str:
    """Pack flags (N,) as ``COUNT:BASE64``, eight in a byte: 170 characters for 1000 pictures."""
    return f"{len(flags)}:{base64.b64encode(np.packbits(flags).tobytes()).decode('ascii')}"


def unpack_flags(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Unpack K texts of ``pack_flags`` with equal N into flags (K, N).

    Raises:
        ValueError: one is not such a text, or has another N.
    """
    counts = {text.partition(":")[0] for text in texts}
    count = counts.pop() if counts else ""
    if counts or not count.isdecimal():
        raise ValueError("not packed flags: no count, or several")
    try:
        packed = [binascii.a2b_base64(text[len(count) + 1 :], strict_mode=True) for text in texts]
    except ValueError as error:  # binascii's own among them
        raise ValueError(f"not packed flags: {error}") from None
    width = -(-int(count) // 8)
    if any(len(row) != width for row in packed):
        raise ValueError("not packed flags: their count does not fit them")
    rows = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(texts), width)
    return np.unpackbits(rows, axis=1, count=int(count)).astype(bool)


def curve_results(curve: Sequence[MetricRow]) -> Summary:
    """Return the part of summary.json that follows from a run's evaluations, in order of steps."""
    last = curve[-1]
    # Of equal accuracies, the one with the smallest loss, then the earliest: as training keeps it.
    best = max(
        curve, key=lambda row: (row["top1"], -math.inf if row["loss"] is None else -row["loss"])
    )
    return {
        "final_top1": last["top1"],
        "final_loss": last["loss"],
        "best_top1": best["top1"],
        "best_step": best["step"],
        "aulc": aulc([row["step"] for row in curve], [row["top1"] for row in curve]),
    }


def aulc(steps: Sequence[int], accuracy: Sequence[float]) -> float:
    """Return the area under the learning curve (trapezoid rule) divided by the steps: 0..1.

    This is the mean accuracy during training. For a single point it is that point's accuracy.
    """
    if len(steps) != len(accuracy) or not len(steps):
        raise ValueError("a curve needs as many accuracies as steps, and at least one")
    return float(np.average(np.asarray(accuracy, dtype=float), weights=step_weights(steps)))


def step_weights(steps: ArrayLike) -> NDArray[np.float64]:
    """Return the weight (K,) of each evaluation in the area under a curve.

    It is half of the adjacent trapezoids' widths; the weights sum to 1.
    """
    at = np.asarray(steps, dtype=float)
    span = at[-1] - at[0]
    if span == 0:
        return np.asarray(np.eye(len(at))[-1], dtype=float)
    widths = np.diff(at)
    return np.asarray(
        (np.append(widths, 0.0) + np.insert(widths, 0, 0.0)) / (2 * span), dtype=float
    )


def steps_to_target(steps: Sequence[int], accuracy: Sequence[float], target: float) -> int | None:
    """Return the first step whose accuracy reaches ``target``; None if none does (censored)."""
    return next(
        (step for step, value in zip(steps, accuracy, strict=True) if value >= target), None
    )


def common_steps(a: ArrayLike, b: ArrayLike) -> int:
    """Return the last step at which both curves were evaluated; 0 if there is none."""
    return int(max(np.intersect1d(a, b), default=0))
