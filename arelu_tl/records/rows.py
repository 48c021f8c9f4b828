"""Types of metrics.jsonl, results.csv and summary.json, which are validated when read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

# pydantic supports typing.TypedDict only from Python 3.12 on.
from typing_extensions import TypedDict

from arelu_tl.errors import ArtefactError
from arelu_tl.records.storage import read_json, read_rows

# Newer versions may write additional keys.
_OPEN = ConfigDict(extra="allow")


@with_config(_OPEN)
class MetricRow(TypedDict):
    """A line of metrics.jsonl: means over training pictures since the last row, or an evaluation.

    Attributes:
        step: completed optimiser steps.
        epoch: completed epochs; ``reproduce`` counts parts of one.
        loss: mean over the pictures; None if NaN or infinite (``reproduce`` continues then).
        top1: share of pictures that are classified correctly.
        lr: the backbone's learning rate; the head's if the backbone is frozen.
        seconds: training time so far, without evaluation and saving.
        correct: only in evaluations: which pictures are classified correctly, see
            ``runs.pack_flags``.
        sites: only in evaluations: {site: [mean alpha, mean beta]} if they learn.
    """

    step: int
    epoch: int | float
    split: Literal["train", "val"]
    loss: float | None
    top1: float
    lr: float
    seconds: float
    correct: NotRequired[str]
    sites: NotRequired[dict[str, list[float]]]


class EpochRow(TypedDict):
    """A line of results.csv; the validation columns are missing if nothing was evaluated."""

    epoch: int
    step: int
    train_loss: float | None
    train_top1: float
    val_loss: NotRequired[float | None]
    val_top1: NotRequired[float]
    lr: float
    seconds: float


EPOCH_COLUMNS = tuple(EpochRow.__annotations__)


def metric_row(
    split: Literal["train", "val"],
    *,
    step: int,
    epoch: float,
    loss: float,
    top1: float,
    lr: float,
    seconds: float,
) -> MetricRow:
    """Make a line of metrics.jsonl."""
    return {
        "step": step,
        "epoch": epoch,
        "split": split,
        "loss": loss if math.isfinite(loss) else None,
        "top1": top1,
        "lr": lr,
        "seconds": round(seconds, 4),
    }


def epoch_row(train: MetricRow, val: MetricRow | None) -> EpochRow:
    """Make a line of results.csv from the means over an epoch and the evaluation at its end."""
    row: EpochRow = {
        "epoch": int(train["epoch"]),
        "step": train["step"],
        "train_loss": train["loss"],
        "train_top1": train["top1"],
        "lr": train["lr"],
        "seconds": train["seconds"],
    }
    if val is not None:
        row |= {"val_loss": val["loss"], "val_top1": val["top1"]}
    return row


@with_config(_OPEN)
class Summary(TypedDict, total=False):
    """The content of summary.json: how a run ended, and its results if it finished.

    Attributes:
        arm, lr, seed: identify a run within its study.
        status: finished, interrupted or failed.
        error: why it did not finish.
        exit_code: exit code of a failed run of a sweep.
        aulc: area under the curve of validation accuracy against steps from step 0, divided by the
            number of steps: 0..1.
        seconds: training time.
        micro_batch: pictures that memory held at a time; None if it held the whole batch.
        on_features: whether only the head was trained, on cached features.
        stack: number of nets that ``reproduce`` trained together.
        head_lr, bn_stats: the classifier's learning rate and what BatchNorm normalised by, also
            where they were chosen.
        probe: a linear probe of the start: its top1, loss and lr; None if there is none.
        pairing: what both runs of a pair must share.
    """

    arm: str
    lr: float
    head_lr: float
    bn_stats: str
    seed: int
    status: Literal["finished", "interrupted", "failed"]
    error: str
    exit_code: int
    steps: int
    epochs: int
    stopped_early: bool
    final_top1: float
    final_loss: float | None
    best_top1: float
    best_step: int
    aulc: float
    seconds: float
    images_per_second: float | None
    peak_memory_bytes: int | None
    micro_batch: int | None
    on_features: bool
    device: str
    stack: int
    probe: dict[str, Any] | None
    pairing: dict[str, Any]


_Value = TypeVar("_Value")
_METRIC_ROWS = TypeAdapter(list[MetricRow])
_SUMMARY = TypeAdapter(Summary)


def read_metric_rows(path: Path, *, without: str | None = None) -> list[MetricRow]:
    """Read metrics.jsonl; an incomplete last line is skipped.

    Args:
        without: a key to drop from every row, to save memory if it makes up most of a long file.

    Raises:
        ArtefactError: the file is missing or corrupt, or a row is invalid.
    """
    rows = read_rows(path, without=without)
    return cast("list[MetricRow]", _checked(rows, _METRIC_ROWS, path))


def read_summary(path: Path) -> Summary:
    """Read summary.json.

    Raises:
        ArtefactError: the file is missing or corrupt, or not a summary.
    """
    return cast("Summary", _checked(read_json(path), _SUMMARY, path))


def _checked(value: _Value, kind: TypeAdapter[Any], path: Path) -> _Value:
    """Validate ``value`` and return it unchanged."""
    try:
        kind.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        at = ".".join(
            f"line {part + 1}" if isinstance(part, int) else part for part in fault["loc"]
        )
        raise ArtefactError(f"{path}: {at}: {str(fault['msg']).lower()}") from None
    return value
