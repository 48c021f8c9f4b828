"""The folders of a reproduction's runs.

They have the form of every other run's, so that ``compare`` can read them.
"""

from __future__ import annotations

from contextlib import closing
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
from arelu_tl.records.rows import MetricRow, Summary, epoch_row, metric_row
from arelu_tl.records.run_log import RunLog
from arelu_tl.records.runs import pack_flags
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
        "layout": digits.description,
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
        rows = _rows(outcome, number, lr)
        write_text(
            run / runs.RUN_CONFIG,
            dump_yaml(check_config({**_shared(config, outcome.unit.task), **own})),
        )
        write_json(run / runs.ENVIRONMENT, environment)
        evaluations = {row["step"]: row for row in rows if row["split"] == "val"}
        with closing(RunLog(run)) as log:
            for row in rows:
                log.metric(row)
                if row["split"] == "train":
                    log.epoch(epoch_row(row, evaluations[row["step"]]))
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
        "head_lr": None,
        "bn_stats": "batch",
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


def _rows(outcome: Outcome, net: int, lr: float) -> list[MetricRow]:
    """Return the rows of metrics.jsonl in order of steps; at an epoch's end, training first."""
    rows = []
    for each in outcome.curves.evaluations:
        correct = each.correct[net]
        row = metric_row(
            "val",
            step=each.step,
            epoch=round(each.epoch, 6),
            loss=float(each.loss[net]),
            top1=float(correct.float().mean()),
            lr=lr,
            seconds=_share(outcome, each.seconds),
        )
        rows.append(row | {"correct": pack_flags(correct.numpy())})
    for mean in outcome.curves.epochs:
        row = metric_row(
            "train",
            step=mean.step,
            epoch=mean.epoch,
            loss=float(mean.loss[net]),
            top1=float(mean.top1[net]),
            lr=lr,
            seconds=_share(outcome, mean.seconds),
        )
        rows.append(row)
    return sorted(rows, key=lambda row: (row["step"], row["split"]))


def _summary(
    outcome: Outcome, net: int, rows: list[MetricRow], fingerprint: str, device: str
) -> Summary:
    lr, seed = outcome.unit.nets[net]
    val = [row for row in rows if row["split"] == "val"]
    seconds = _share(outcome, outcome.curves.seconds)
    source = outcome.unit.task.source
    began = (
        "torch's initialisation"
        if source is None
        else f"trained on {source.name}, each arm by itself"
    )
    broken = int(outcome.curves.broken[net])
    ended: Summary = {"status": "finished"}
    if broken >= 0:
        when = (
            f"at step {broken}"
            if source is None or seed not in outcome.lost
            else f"while it was trained on {source.name}"
        )
        error = (
            f"the loss became no finite number {when}; its accuracies are those of what was left"
        )
        ended = {"status": "failed", "error": error, "exit_code": NonFiniteError.exit_code}
    return {
        "arm": outcome.unit.activation,
        "lr": lr,
        "head_lr": lr,
        "seed": seed,
        **ended,
        "steps": val[-1]["step"],
        "epochs": len(outcome.curves.epochs),
        "stopped_early": False,
        **runs.curve_results(val),
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
