"""Show a reproduction and leave its files. Imports torch, for the catalogue; the command imports it when it runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from arelu_tl.activation import CATALOGUE
from arelu_tl.analysis.reproduction import tabulate
from arelu_tl.records import reproduction
from arelu_tl.records.config import check_config
from arelu_tl.records.reproduction import TRANSFER, ReproduceConfig
from arelu_tl.records.storage import write_bytes, write_json, write_text
from arelu_tl.render.console import Output
from arelu_tl.render.figures import png, reproduction_figure
from arelu_tl.render.reproduction import reproduction_csv, reproduction_markdown, reproduction_report
from arelu_tl.render.text import shell_word
from arelu_tl.study.reproduce_notes import environment_notes, reproduction_notes
from arelu_tl.study.reproduce_runs import ended_runs
from arelu_tl.study.reproduce_units import Task


def show_reproduction(path: Path, config: ReproduceConfig, tasks: Sequence[Task], output: Output) -> None:
    """Write the table, its data and the curves into the study ``path``, and print the table.

    Raises:
        StorageError: the folder cannot be written.
    """
    chosen = [entry for entry in CATALOGUE.values() if entry.name in config.activations]
    ended = {task.folder: ended_runs(path / task.folder) for task in tasks}
    told = tabulate(
        ended,
        titles={entry.name: entry.title for entry in chosen},
        learnable=[entry.name for entry in chosen if entry.learnable],
        notes=[*reproduction_notes(config, tasks), *environment_notes([run for each in ended.values() for run in each])],
        transfer=config.transfer,
    )
    command = command_of(config)
    data = {"command": command, **told.to_json()}
    write_json(path / reproduction.RESULTS, data)
    write_text(path / reproduction.TABLE, reproduction_markdown(told, command))
    write_text(path / reproduction.TABLE_CSV, reproduction_csv(told))
    write_bytes(path / reproduction.CURVES, png(reproduction_figure(told)))
    files = [path / name for name in (reproduction.TABLE, reproduction.TABLE_CSV, reproduction.CURVES, reproduction.RESULTS)]
    studies = [f"  arelu-tl compare {shell_word(path / task.folder)}" for task in tasks]
    intervals = ", with intervals and verdicts" if len(config.seeds) > 1 else ""
    beside = f"   # each activation beside ReLU{intervals}" if "relu" in config.activations else ""
    output.report(
        *reproduction_report(told),
        "report: " + ", ".join(map(str, files)),
        "next:",
        *studies[:-1],
        studies[-1] + beside,
        data=data,
    )


def command_of(config: ReproduceConfig) -> str:
    """The command line that makes what ``config`` describes, wherever and however often it was gone on with."""
    usual = check_config({"transfer": True, **TRANSFER} if config.transfer else {}, ReproduceConfig)
    words = ["arelu-tl", "reproduce", *["--transfer"] * config.transfer]
    for key in type(config).model_fields:
        value = getattr(config, key)
        if key in ("transfer", "download", "device", "jobs", "output", "name") or value == getattr(usual, key):
            continue
        words += [f"--{key.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(words)
