"""Print a reproduction and write its files.

This module imports torch, for the catalogue; the command imports it when it runs.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arelu_tl.activation.catalogue import CATALOGUE
from arelu_tl.paper import config as reproduction
from arelu_tl.paper.config import TRANSFER, ReproduceConfig
from arelu_tl.paper.digits import DigitSet
from arelu_tl.paper.results import tabulate
from arelu_tl.paper.runs import ended_runs
from arelu_tl.paper.show import (
    reproduction_csv,
    reproduction_figure,
    reproduction_markdown,
    reproduction_report,
)
from arelu_tl.paper.units import PAPERS_EPOCH, PRETRAIN_LR, Task, steps_per_epoch
from arelu_tl.records import runs
from arelu_tl.records.config import check_config
from arelu_tl.records.runs import RunRecord
from arelu_tl.records.storage import read_json, write_bytes, write_json, write_text
from arelu_tl.render.console import Output
from arelu_tl.render.figures.canvas import png
from arelu_tl.render.text import shell_word


def show_reproduction(
    path: Path, config: ReproduceConfig, tasks: Sequence[Task], output: Output
) -> None:
    """Write the table, its data and the curves into the study ``path``, and print the table.

    Raises:
        StorageError: the folder cannot be written.
    """
    chosen = [entry for entry in CATALOGUE.values() if entry.name in config.activations]
    ended = {task.folder: ended_runs(path / task.folder) for task in tasks}
    result = tabulate(
        ended,
        titles={entry.name: entry.title for entry in chosen},
        learnable=[entry.name for entry in chosen if entry.learnable],
        notes=[
            *reproduction_notes(config, tasks),
            *environment_notes([run for each in ended.values() for run in each]),
        ],
        transfer=config.transfer,
    )
    command = command_of(config)
    data = {"command": command, **result.to_json()}
    write_json(path / reproduction.RESULTS, data)
    write_text(path / reproduction.TABLE, reproduction_markdown(result, command))
    write_text(path / reproduction.TABLE_CSV, reproduction_csv(result))
    write_bytes(path / reproduction.CURVES, png(reproduction_figure(result)))
    files = [
        path / name
        for name in (
            reproduction.TABLE,
            reproduction.TABLE_CSV,
            reproduction.CURVES,
            reproduction.RESULTS,
        )
    ]
    studies = [f"  arelu-tl compare {shell_word(path / task.folder)}" for task in tasks]
    intervals = ", with intervals and verdicts" if len(config.seeds) > 1 else ""
    beside = f"   # each activation beside ReLU{intervals}" if "relu" in config.activations else ""
    output.report(
        *reproduction_report(result),
        "report: " + ", ".join(map(str, files)),
        "next:",
        *studies[:-1],
        studies[-1] + beside,
        data=data,
    )


def command_of(config: ReproduceConfig) -> str:
    """Return the command line that reproduces ``config``.

    It does not depend on the study's place or on how often it was continued.
    """
    usual = check_config({"transfer": True, **TRANSFER} if config.transfer else {}, ReproduceConfig)
    words = ["arelu-tl", "reproduce", *["--transfer"] * config.transfer]
    for key in type(config).model_fields:
        value = getattr(config, key)
        if key in ("transfer", "download", "device", "jobs", "output", "name") or value == getattr(
            usual, key
        ):
            continue
        words += [
            f"--{key.replace('_', '-')}",
            ",".join(map(str, value)) if isinstance(value, list) else str(value),
        ]
    return shlex.join(words)


# Behaviour of two activations in the authors' code that their names do not show.
_ODD = {
    "maxout": "Maxout pools one channel there, which makes it the identity",
    "slaf": "SLAF has two terms, which makes it the straight line 1 + x",
}


def reproduction_notes(config: ReproduceConfig, tasks: Sequence[Task]) -> list[str]:
    """Describe the experiment in sentences."""
    sets = {task.target.name: task.target for task in tasks}.values()
    notes = [
        f"{each.description}: {len(each.train):,} pictures to train on, {len(each.test):,} to test."
        for each in sets
    ]
    notes += [_epoch(config, each) for each in sets]
    several = "s" * (len(config.seeds) > 1)
    notes.append(
        f"{len(config.seeds)} training{several} of each (seed{several} "
        f"{', '.join(map(str, config.seeds))}; the paper has 5). "
        + (
            "Of a seed all activations "
            + ("were first trained from" if config.transfer else "begin with")
        )
        + " the same weights and see the same batches in the same order."
    )
    if config.transfer:
        epochs = f"{config.pretrain_epochs} epoch{'s' * (config.pretrain_epochs > 1)}"
        notes.append(
            f"Each activation was first trained on the other set, {epochs} with SGD at "
            f"{PRETRAIN_LR:g} (the paper: 20), then all its weights on this one, {config.epochs} "
            "(the paper: 100). Before: as the other set left it."
        )
    notes.append(
        "MNIST-Conv as in the authors' code: convolution, 2 x 2 max pooling and activation three "
        "times, then a linear layer; pixels from 0 to 1, no augmentation; SGD with momentum 0.9, "
        "Adam with torch's defaults, no weight decay, no schedule."
    )
    odd = [sentence for name, sentence in _ODD.items() if name in config.activations]
    if odd:
        notes.append(
            f"{'; '.join(odd)}: both as in the authors' code."
            if len(odd) > 1
            else f"{odd[0]}: as in the authors' code."
        )
    return notes


def environment_notes(trained: Sequence[RunRecord]) -> list[str]:
    """Return a sentence if the runs of one table were trained in several environments.

    This happens when a study is continued on another machine.

    Raises:
        ArtefactError: a run's environment.json cannot be read.
    """
    kinds = Counter(_kind(read_json(run.path / runs.ENVIRONMENT)) for run in trained)
    if len(kinds) < 2:
        return []
    counted = "; ".join(f"{count} with {kind}" for kind, count in kinds.most_common())
    return [
        f"The trainings are of several environments ({counted}): the same to rounding, not to the "
        "bit."
    ]


def _kind(environment: dict[str, Any]) -> str:
    convolutions = str(environment.get("convolutions")).partition(" ")[0].rstrip(":")
    return (
        f"torch {environment.get('packages', {}).get('torch')} on "
        f"{environment.get('device_name')}, {convolutions} convolutions"
    )


def _epoch(config: ReproduceConfig, digits: DigitSet) -> str:
    steps = steps_per_epoch(config, digits)
    if digits.whole:
        return (
            f"An epoch is {steps} steps of {config.batch_size}, one pass; the last batch is what "
            "is left."
        )
    passes = PAPERS_EPOCH / len(digits.train)
    return (
        f"An epoch on {digits.name} is {steps} steps of {config.batch_size}, as many as on "
        f"MNIST's 60,000 pictures: here {passes:.0f} reshuffled passes over fewer pictures, where "
        "the paper has one."
    )
