"""Rows and summaries are checked when they are read: what is none of ours is named with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from arelu_tl.errors import ArtefactError
from arelu_tl.records.rows import read_metric_rows, read_summary

ROW = {
    "step": 0, "epoch": 0, "split": "val", "loss": 2.0, "top1": 0.1, "lr": 1e-4, "seconds": 0.0,
    "correct": "3:oA==", "sites": {"act1": [0.1, 2.0]},
}  # fmt: skip


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    diverged = {**ROW, "step": 1, "loss": None}
    newer = {**ROW, "step": 2, "epoch": 0.5, "of a later version": 1}
    path = write(tmp_path / "metrics.jsonl", ROW, diverged, newer)
    assert read_metric_rows(path) == [ROW, diverged, newer]
    kept = {key: value for key, value in ROW.items() if key != "sites"}
    assert read_metric_rows(path, without="sites")[0] == kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": "first"}, "line 2.step"),
        ({"split": "test"}, "line 2.split"),
        ({"loss": "high"}, "line 2.loss"),
        ({"sites": [1]}, "line 2.sites"),
        ({"top1": None}, "line 2.top1"),
    ],
)
def test_a_row_that_is_none_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", ROW, {**ROW, **change})
    with pytest.raises(ArtefactError) as caught:
        read_metric_rows(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("missing", ["step", "epoch", "split", "loss", "top1", "lr", "seconds"])
def test_a_row_without_what_every_row_has_is_refused(missing: str, tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != missing}
    with pytest.raises(ArtefactError, match=f"line 1.{missing}: field required"):
        read_metric_rows(write(tmp_path / "metrics.jsonl", row))


def test_a_summary_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"status": "finished", "best_top1": 0.5, "later": 1}')
    assert read_summary(path)["best_top1"] == 0.5
    for content in ('{"status": "done"}', '{"best_top1": "high"}', "[]"):
        path.write_text(content)
        with pytest.raises(ArtefactError, match=r"summary\.json"):
            read_summary(path)
