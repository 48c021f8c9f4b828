"""Run a study and report it: what finetune and demo share. Imports torch; commands import it when they run."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from arelu_tl.analysis import Comparison, compare_runs
from arelu_tl.errors import RunsFailedError
from arelu_tl.records import runs
from arelu_tl.records.config import FinetuneConfig, SweepConfig
from arelu_tl.records.storage import write_json
from arelu_tl.render.console import Output, plain
from arelu_tl.render.figures import draw_convergence
from arelu_tl.render.progress import StudyView
from arelu_tl.render.tables import comparison_report
from arelu_tl.study.finetune import finetune, resume_study
from arelu_tl.study.sweep import resume_sweep, sweep


def run_study(config: FinetuneConfig | None, resume: Path | None, output: Output) -> None:
    """Train (or, with ``resume``, go on), compare, draw, and print the report and what to type next."""
    # The hub's client logs each of its retries; our own error says it once.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with StudyView(output) as view:
        if resume is not None:
            study = resume_study(resume, observer=view)
        elif config is not None:
            study = finetune(config, observer=view)
        else:
            raise TypeError("run_study needs a configuration or a study to resume")
    if len(study.runs) < 2:
        (run,) = study.runs
        output.report(
            f"{run.path}: {run.config.arm}, best accuracy {run.summary['best_top1']:.3f} at step {run.summary['best_step']}",
            data=run.summary,
        )
        return
    comparison = compare_runs(study.runs)
    figure = write_comparison(study, comparison)
    output.note("")
    output.report(comparison_report(comparison), f"figure: {plain(figure)}", _next_commands(study), data=comparison.to_json())


def run_sweep(config: SweepConfig | None, resume: Path | None, output: Output, *, retry_failed: bool) -> None:
    """Train (or, with ``resume``, go on with) a sweep, compare what is there, and print the report.

    Raises:
        RunsFailedError: runs failed; the others are trained and the report is printed all the same.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with StudyView(output) as view:
        if resume is not None:
            study = resume_sweep(resume, retry_failed=retry_failed, observer=view)
        elif config is not None:
            study = sweep(config, retry_failed=retry_failed, observer=view)
        else:
            raise TypeError("run_sweep needs a configuration or a study to resume")
    finished = [run for run in study.runs if run.status == "finished"]
    failed = [run for run in study.runs if run.status == "failed"]
    output.note("")
    data = {"study": str(study.path), "runs": {run.path.name: run.status for run in study.runs}, "comparison": None}
    arms = {run.config.arm for run in finished}
    if "relu" in arms and len(arms) > 1:
        comparison = compare_runs(finished)
        write_json(study.path / runs.COMPARISON, comparison.to_json())
        output.report(comparison_report(comparison), data={**data, "comparison": comparison.to_json()})
    else:
        output.report(f"{plain(study.path)}: {len(finished)} runs trained; none to compare without relu and an arm", data=data)
    if failed:
        names = ", ".join(run.path.name for run in failed)
        raise RunsFailedError(
            f"{len(failed)} of {len(study.runs)} runs failed ({names}); summary.json says why, --retry-failed trains them anew",
            max(int(run.summary.get("exit_code", 1)) for run in failed),
        )


def write_comparison(study: runs.StudyRecord, comparison: Comparison) -> Path:
    """Write comparison.json and convergence.png of a study with one pair; the path of the figure."""
    write_json(study.path / runs.COMPARISON, comparison.to_json())
    pair = comparison.pairs[0]
    data = study.config.data.name if study.config.data is not None else ""
    figure = study.path / runs.FIGURE
    draw_convergence(pair, figure, title=f"{study.config.model} on {data}, learning rate {pair.lr:g}, seed {pair.seed}")
    return figure


def _next_commands(study: runs.StudyRecord) -> str:
    """What a user would want next: is it the activation or the rate, and how is the model used."""
    best = max(study.runs, key=lambda run: (run.summary["best_top1"], -run.summary["best_step"]))
    run = shlex.quote(str(best.path))
    config = shlex.quote(str(study.path / runs.STUDY_CONFIG))
    return "\n".join(
        [
            "next:",
            f"  arelu-tl finetune --config {config} --lr {study.config.lr * 10:g}   # is it the activation, or the rate?",
            f"  arelu-tl finetune --config {config} --seed {study.config.seed + 1}   # is it the seed?",
            f"  arelu-tl predict {run} PICTURE",
            f"  arelu-tl export {run} --format safetensors",
        ]
    )
