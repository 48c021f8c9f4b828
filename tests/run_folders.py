"""Run folders as training leaves them, written in milliseconds: what is read back is real, only the training is not."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arelu_tl.records.config import check_config, dump_yaml
from arelu_tl.records.runs import pack_flags, run_name

PAIRING = {
    "dataset": "d" * 64,
    "head_init": "h" * 64,
    "weights": "w" * 64,
    "epochs": [{"order": f"order {n}", "first_batch": f"batch {n}"} for n in range(3)],
}


def write_run(
    parent: Path,
    arm: str,
    top1: Sequence[float] | None = None,
    *,
    correct: NDArray[np.bool_] | None = None,
    steps: Sequence[int] | None = None,
    right: Sequence[bool] | int | None = None,
    status: str | None = "finished",
    pairing: dict[str, Any] | None = PAIRING,
    seconds_a_step: float = 0.5,
    losses: Sequence[float] | None = None,
    drift: float | None = None,
    batchnorm: str = "corrected",
    name: str | None = None,
    sites: int = 3,
    told: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run's folder below ``parent``.

    Args:
        top1: accuracy of each evaluation; from ``correct`` when None.
        correct: what each evaluation got right, (evaluations, pictures); not recorded when None.
        right: what the best checkpoint got right, or how many pictures there are when it got the share of its accuracy; as
            ``correct`` has it when None, and without it no predictions.csv.
        sites: how many an arm has replaced, with their alpha and beta at every evaluation where it learns them.
        status: None for a run that is still at it: no summary.
        told: what else its summary tells.
        settings: of the configuration, ``lr`` and ``seed`` among them.
    """
    config = check_config({"arm": arm, **settings})
    path = parent / (name or run_name(arm, config.lr, config.seed))
    path.mkdir(parents=True)
    (path / "run.yaml").write_text(dump_yaml(config), encoding="utf-8")
    if top1 is None:
        assert correct is not None
        top1 = correct.mean(axis=1).tolist()
    steps = steps if steps is not None else range(0, 10 * len(top1), 10)
    losses = losses or [1 - value for value in top1]
    rows: list[dict[str, Any]] = []
    for number, (step, value, loss) in enumerate(zip(steps, top1, losses, strict=False)):
        row = {
            "step": step,
            "epoch": 0,
            "split": "val",
            "loss": loss,
            "top1": value,
            "lr": config.lr,
        }
        row["seconds"] = seconds_a_step * step
        if correct is not None:
            row["correct"] = pack_flags(correct[number])
        if arm == "arelu":
            row["sites"] = {
                f"act{i}": [0.1 * i + step / 1e4, 2.0 - step / 1e4] for i in range(sites)
            }
        rows.append(row)
    rows.insert(
        1,
        {
            "step": 10,
            "epoch": 1,
            "split": "train",
            "loss": 9.0,
            "top1": 0.99,
            "lr": config.lr,
            "seconds": 1.0,
        },
    )
    (path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    if right is None and correct is not None:
        right = correct[int(np.argmax(top1))].tolist()
    elif isinstance(right, int):
        right = [i < round(max(top1) * right) for i in range(right)]
    if right is not None:
        with open(path / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "predicted", "probability"])
            writer.writerows(
                [f"val/a/{i}.png", "a", "a" if good else "b", "0.900000"]
                for i, good in enumerate(right)
            )
    if arm != "relu":
        replaced = [
            {
                "name": f"act{i}",
                "kind": "module",
                "status": "replaced",
                "alpha0": 0.1 * i,
                "beta0": 2.0,
                "scale": 0.53,
                "cap": None,
            }
            for i in range(sites)
        ]
        surgery = {
            "arm": arm,
            "init": "calibrated",
            "batchnorm": batchnorm,
            "sites": replaced,
            "drift": None,
        }
        if drift is not None:
            surgery["drift"] = {"relative": drift, "top1_agreement": 0.8, "images": 8}
        (path / "surgery.json").write_text(json.dumps(surgery), encoding="utf-8")
    if status is not None:
        summary: dict[str, Any] = {
            "arm": arm,
            "lr": config.lr,
            "seed": config.seed,
            "status": status,
        }
        summary |= {
            "images_per_second": 50.0,
            "peak_memory_bytes": 1_000_000,
            "pairing": pairing or {},
        }
        summary |= told or {}
        if status == "failed":
            summary["error"] = "NonFiniteError: the training loss became nan"
        (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


def draw_correct(
    stream: np.random.Generator,
    curve: Sequence[float],
    pictures: int,
    *,
    difficulty: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """What each evaluation of a run gets right (evaluations, pictures), with mean accuracy about ``curve``.

    ``difficulty`` (pictures,) makes the same pictures hard for every run that is given it.
    """
    if difficulty is None:
        difficulty = np.zeros(pictures)
    logits = np.log(np.asarray(curve) / (1 - np.asarray(curve)))[:, None] - difficulty
    return np.asarray(stream.random((len(curve), pictures)) < 1 / (1 + np.exp(-logits)), dtype=bool)
