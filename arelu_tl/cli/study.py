"""Run a study and report it, for finetune, demo and sweep.

Imports torch, so commands import it only when they run.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from arelu_tl.analysis.comparison import compare_runs
from arelu_tl.analysis.results import Comparison
from arelu_tl.cli.progress import StudyView
from arelu_tl.cli.reporting import show_comparison
from arelu_tl.errors import ComparisonError, DataError, RunsFailedError
from arelu_tl.experiment.finetune import finetune, resume_study
from arelu_tl.experiment.sweep import sweep
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig, SweepConfig
from arelu_tl.render.console import Output
from arelu_tl.render.text import shell_word
from arelu_tl.training.distributed import leads_here


def run_study(
    config: FinetuneConfig | None, resume: Path | None, output: Output, *, moved: Path | None = None
) -> None:
    """Train (or resume), compare, draw, and print the report and the next commands.

    Args:
        moved: where the resumed study's pictures are now, if not where they were.
    """
    # The hub's client logs each of its retries; our own error reports the failure once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    leads = leads_here()
    if not leads:  # only the first process prints
        output = Output(quiet=True)
        logging.disable()
        warnings.simplefilter("ignore")
    with StudyView(output) as view:
        if resume is not None:
            study = resume_study(resume, data=moved, observer=view)
        elif config is not None:
            study = finetune(config, observer=view)
        else:
            raise TypeError("run_study needs a configuration or a study to resume")
    if not leads:
        return
    if len(study.runs) < 2:
        (run,) = study.runs
        output.report(
            f"{run.path}: {run.config.arm}, best accuracy {run.summary['best_top1']:.3f} "
            f"at step {run.summary['best_step']}",
            data=run.summary,
        )
        return
    output.note("")
    show_comparison(
        compare_runs(study.runs), study.runs, study.path, output, *_next_commands(study)
    )


def run_sweep(config: SweepConfig, output: Output, *, retry_failed: bool) -> None:
    """Begin or resume a sweep, compare its runs, and print the report.

    Raises:
        RunsFailedError: runs failed; the others are trained and the report is printed.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with StudyView(output) as view:
        study = sweep(config, retry_failed=retry_failed, observer=view)
    output.note("")
    failed = [run for run in study.runs if run.status == "failed"]
    try:
        comparison = compare_runs(study.runs)
    except (ComparisonError, DataError) as nothing:  # only one arm, or every run failed
        data = {"study": str(study.path), "runs": {run.path.name: run.status for run in study.runs}}
        output.report(f"{study.path}: {nothing}", data=data)
    else:
        show_comparison(
            comparison, study.runs, study.path, output, *_next_after_sweep(study, comparison)
        )
    if failed:
        names = ", ".join(run.path.name for run in failed)
        raise RunsFailedError(
            f"{len(failed)} of {len(study.runs)} runs failed ({names}); summary.json says why, "
            "--retry-failed trains them anew",
            max(int(run.summary.get("exit_code", 1)) for run in failed),
        )


def _next_commands(study: runs.StudyRecord) -> list[str]:
    """The commands to run next: a sweep to test the activation, then predict and export."""
    run = shell_word(study.best().path)
    config = shell_word(study.path / runs.STUDY_CONFIG)
    return [
        "next:",
        f"  arelu-tl sweep --config {config} --name {shell_word(study.path.name + '-sweep')} "
        f"--lrs {study.config.lr:g},{study.config.lr * 10:g} --seeds 0,1,2   "
        "# is it the activation, the rate or the seed?",
        f"  arelu-tl predict {run} PICTURE",
        f"  arelu-tl export {run} --format safetensors",
    ]


def _next_after_sweep(study: runs.StudyRecord, comparison: Comparison) -> list[str]:
    """The commands to run next: a wider grid if the best rate is at its edge, predict, export."""
    run = shell_word(study.best().path)
    lines = ["next:"]
    rates = sorted({cell.lr for cell in comparison.cells})
    edges = {edge for found in comparison.best for edge in found.at_edge.values()}
    wider = ",".join(
        f"{lr:g}"
        for edge, lr in (("smallest", rates[0] / 3), ("largest", rates[-1] * 3))
        if edge in edges
    )
    if wider:
        config, name = shell_word(study.path / runs.STUDY_CONFIG), shell_word(study.path.name)
        lines.append(
            f"  arelu-tl sweep --config {config} --name {name} --lrs {wider}   "
            "# does a better rate lie beyond?"
        )
    return [
        *lines,
        f"  arelu-tl predict {run} PICTURE",
        f"  arelu-tl export {run} --format safetensors",
    ]
