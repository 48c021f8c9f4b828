"""Pages of the reference that are made from the code whenever the site is built, so that they cannot contradict it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

import arelu_tl
from arelu_tl.explain.sites.survey_table import read_survey
from arelu_tl.records.config import FinetuneConfig, SweepConfig

COMMANDS = (
    "demo", "finetune", "sweep", "check", "compare", "inspect", "evaluate", "predict", "explain gradients", "explain activations",
    "explain features", "reproduce", "export",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, make in (
        ("command-line", command_line),
        ("configuration", configuration),
        ("python", python),
        ("architectures", architectures),
    ):
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files


def command_line() -> str:
    """Every command's own --help."""
    parts = [
        "# Command line\n",
        "Every option of `finetune` and `sweep` is also a [line of YAML](configuration.md).\n",
    ]
    for command in ("", *COMMANDS):
        words = [*command.split(), "--help"]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("arelu-tl")), *words],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb"},
        )
        parts.append(
            f"## arelu-tl {command}".rstrip() + f"\n\n```text\n{done.stdout.strip()}\n```\n"
        )
    return "\n".join(parts)


def configuration() -> str:
    """Every field of the configuration: its key, option, default and meaning."""
    parts = [
        "# Configuration\n",
        "`arelu-tl finetune DATA --config FILE` reads these keys from YAML; the command line wins, and an "
        "unknown key is an error. A study's `study.yaml` and a run's `run.yaml` hold all of them.\n",
    ]
    for title, model, known in (
        ("finetune", FinetuneConfig, set()),
        ("Only in sweep", SweepConfig, set(FinetuneConfig.model_fields)),
    ):
        parts.append(f"## {title}\n\n| key | default | meaning |\n|---|---|---|")
        parts += [
            _row(name, field) for name, field in model.model_fields.items() if name not in known
        ]
        parts.append("")
    return "\n".join(parts)


def _row(name: str, field: Any) -> str:
    choices = [c for c in get_args(field.annotation) if isinstance(c, str)]
    of = f" ({', '.join(f'`{c}`' for c in choices)})" if 0 < len(choices) <= 8 else ""
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{name}` | `{field.default}` | {meaning}{of} |"


def python() -> str:
    """The public names, from their docstrings."""
    homes = arelu_tl._HOMES
    parts = [
        "# Python\n",
        "`import arelu_tl` imports neither torch nor timm; each name loads what it needs.\n",
    ]
    for name in (
        "convert",
        "sites",
        "AReLU",
        "finetune",
        "compare",
        "export",
        "load_model",
        "load_run",
    ):
        module, _, other = homes[name].partition(":")
        parts.append(f"::: {module}.{other or name}\n")
    parts.append("## What they return and take\n")
    for name in sorted(
        set(homes)
        - {"convert", "sites", "AReLU", "finetune", "compare", "export", "load_model", "load_run"}
    ):
        if name != "FinetuneConfig":  # its fields are the configuration's page
            parts.append(f"::: {homes[name]}.{name}\n")
    return "\n".join(parts)


def architectures() -> str:
    """Every timm architecture that runs a ReLU."""
    release, rows = read_survey()
    parts = [
        "# Supported architectures\n",
        f"The {len(rows)} architectures of timm {release} that run a ReLU (`arelu-tl inspect --list-supported`; "
        "`scripts/survey_timm.py` makes the list).\n",
        "| architecture | sites | not replaced because |\n|---|---|---|",
    ]
    parts += [f"| `{row.name}` | {row.sites} | {row.refusal or ''} |" for row in rows]
    return "\n".join(parts) + "\n"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take the theme's search helper from this site instead of from another one."""
    own = get_relative_url("assets/worker-from-file.js", page.url)
    return output.replace("https://unpkg.com/iframe-worker/shim", own)
