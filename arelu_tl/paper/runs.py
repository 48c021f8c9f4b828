"""The folders of a reproduction's runs.

They have the form of every other run's, so that ``compare`` can read them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import torch

from arelu_tl.errors import ArtefactError, DataError, NonFiniteError
from arelu_tl.experiment.environment import describe_environment
from arelu_tl.paper.config import ReproduceConfig
from arelu_tl.paper.nets import convolution
from arelu_tl.paper.units import Outcome, Task
from arelu_tl.records import runs
from arelu_tl.records.config import SweepConfig, check_config, dump_yaml
from arelu_tl.records.format import FORMAT, require_format
from arelu_tl.records.rows import EPOCH_COLUMNS
from arelu_tl.records.runs import aulc, pack_flags
from arelu_tl.records.storage import make_folder, read_json, write_json, write_text

MODEL = "mnist-conv"


def require_same_pictures(path: Path, task: Task) -> None:
    """Check that the study at ``path``, if there is one, has the pictures of ``task``.

    Raises:
        DataError: the study was begun with other pictures.
        ArtefactError: it does not record its pictures, or has another format.
    """
    if not (path / runs.DATASET).exists():
        return
    record = read_json(path / runs.DATASET)
    if not isinstance(record, dict) or "fingerprint" not in record:
        raise ArtefactError(f"{path / runs.DATASET} is damaged: it has no fingerprint")
    require_format(record, path)
    if record["fingerprint"] != task.target.fingerprint():
        raise DataError(
            f"{task.target.name}: the pictures are not those that {path} was started on; begin a "
            "new study"
        )


def open_task(path: Path, config: ReproduceConfig, task: Task) -> None:
    """Write the description of a study of runs.

    It may already exist, with a smaller grid.
    """
    make_folder(path)
    digits = task.target
    halves = {"train": digits.train, "val": digits.test}
    counts = {
        name: torch.bincount(half.labels, minlength=10).tolist() for name, half in halves.items()
    }
    record = {
        "format": FORMAT,
        "classes": [str(digit) for digit in range(10)],
        "layout": digits.told,
        "counts": {
            name: {str(digit): count for digit, count in enumerate(each)}
            for name, each in counts.items()
        },
        "fingerprint": digits.fingerprint(),
    }
    write_json(path / runs.DATASET, record)
    grid = {"arms": config.activations, "lrs": config.lrs, "seeds": config.seeds}
    write_text(
        path / runs.STUDY_CONFIG,
        dump_yaml(check_config({**_shared(config, task), **grid}, SweepConfig)),
    )


def ended_runs(path: Path) -> list[runs.RunRecord]:
    """Return the complete runs of the study at ``path``, which may not exist yet."""
    return [run for run in runs.load_study(path).runs if run.summary] if runs.is_study(path) else []


def training_environment(device: torch.device) -> dict[str, Any]:
    """Return environment.json of every run: one thread trains a stack."""
    return {
        **describe_environment(device),
        "threads": 1,
        "convolutions": convolution.kernel_state(),
    }


def write_runs(
    path: Path,
    config: ReproduceConfig,
    outcome: Outcome,
    fingerprint: str,
    environment: dict[str, Any],
) -> None:
    """Write a folder for each net of ``outcome`` into the study ``path``.

    summary.json, which marks a run as ended, is written last.
    """
    for number, (lr, seed) in enumerate(outcome.unit.nets):
        run = make_folder(path / runs.run_name(outcome.unit.activation, lr, seed))
        own = {"arm": outcome.unit.activation, "lr": lr, "seed": seed, "baseline": False}
        rows, epochs = _rows(outcome, number, lr), _epochs(outcome, number, lr)
        write_text(
            run / runs.RUN_CONFIG,
            dump_yaml(check_config({**_shared(config, outcome.unit.task), **own})),
        )
        write_json(run / runs.ENVIRONMENT, environment)
        write_text(
            run / runs.METRICS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        )
        write_text(run / runs.RESULTS, _csv(epochs))
        write_json(
            run / runs.SUMMARY, _summary(outcome, number, rows, fingerprint, environment["device"])
        )


def _shared(config: ReproduceConfig, task: Task) -> dict[str, Any]:
    """Return the settings common to all runs of ``task``, in the form of a fine-tuning's."""
    return {
        "data": config.data,
        "model": MODEL,
        "pretrained": False,
        "img_size": 28,
        "init": "paper",
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "opt": task.opt,
        "weight_decay": 0.0,
        "sched": "none",
        "eval_every": config.eval_every,
        "no_aug": True,
        "device": config.device,
        "output": config.output,
    }


def _share(outcome: Outcome, seconds: float) -> float:
    """Return one net's share of a stack's seconds."""
    return round(seconds / len(outcome.unit.nets), 4)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(outcome: Outcome, net: int, lr: float) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl: the evaluations, in order of steps.

    At an epoch's last step, the training row comes before the evaluation.
    """
    rows: list[dict[str, Any]] = []
    for each in outcome.curves.evaluations:
        correct = each.correct[net]
        row = {
            "step": each.step,
            "epoch": round(each.epoch, 6),
            "split": "val",
            "loss": _finite(float(each.loss[net])),
        }
        row |= {
            "top1": float(correct.float().mean()),
            "lr": lr,
            "seconds": _share(outcome, each.seconds),
        }
        rows.append(row | {"correct": pack_flags(correct.numpy())})
    for mean in outcome.curves.epochs:
        row = {
            "step": mean.step,
            "epoch": mean.epoch,
            "split": "train",
            "loss": _finite(float(mean.loss[net])),
        }
        rows.append(
            row
            | {"top1": float(mean.top1[net]), "lr": lr, "seconds": _share(outcome, mean.seconds)}
        )
    return sorted(rows, key=lambda row: (row["step"], row["split"]))


def _epochs(outcome: Outcome, net: int, lr: float) -> list[dict[str, Any]]:
    """Return the rows of results.csv."""
    at = {each.step: each for each in outcome.curves.evaluations}
    return [
        {
            "epoch": mean.epoch,
            "step": mean.step,
            "train_loss": _finite(float(mean.loss[net])),
            "train_top1": float(mean.top1[net]),
            "val_loss": _finite(float(at[mean.step].loss[net])),
            "val_top1": float(at[mean.step].correct[net].float().mean()),
            "lr": lr,
            "seconds": _share(outcome, mean.seconds),
        }
        for mean in outcome.curves.epochs
    ]


def _csv(epochs: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, EPOCH_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(epochs)
    return out.getvalue()


def _summary(
    outcome: Outcome, net: int, rows: list[dict[str, Any]], fingerprint: str, device: str
) -> dict[str, Any]:
    lr, seed = outcome.unit.nets[net]
    val = [row for row in rows if row["split"] == "val"]
    best = max(val, key=lambda row: (row["top1"], -row["step"]))
    seconds = _share(outcome, outcome.curves.seconds)
    source = outcome.unit.task.source
    began = (
        "torch's initialisation"
        if source is None
        else f"trained on {source.name}, each arm by itself"
    )
    broken = int(outcome.curves.broken[net])
    outcome_fields: dict[str, Any] = {"status": "finished"}
    if broken >= 0:
        when = (
            f"at step {broken}"
            if source is None or seed not in outcome.lost
            else f"while it was trained on {source.name}"
        )
        error = (
            f"the loss became no finite number {when}; its accuracies are those of what was left"
        )
        outcome_fields = {"status": "failed", "error": error, "exit_code": NonFiniteError.exit_code}
    return {
        "arm": outcome.unit.activation,
        "lr": lr,
        "seed": seed,
        **outcome_fields,
        "steps": val[-1]["step"],
        "epochs": len(outcome.curves.epochs),
        "stopped_early": False,
        "final_top1": val[-1]["top1"],
        "final_loss": val[-1]["loss"],
        "best_top1": best["top1"],
        "best_step": best["step"],
        "aulc": aulc([row["step"] for row in val], [row["top1"] for row in val]),
        "seconds": seconds,
        "images_per_second": round(outcome.pictures / seconds, 3) if seconds else None,
        "peak_memory_bytes": None,
        "micro_batch": None,
        "on_features": False,
        "device": device,
        "stack": len(outcome.unit.nets),
        "pairing": {
            "dataset": fingerprint,
            "head_init": outcome.heads[seed],
            "weights": began,
            "epochs": outcome.orders[seed],
        },
    }
