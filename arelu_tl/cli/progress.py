"""A study's progress on stderr: pictures checked, a bar per arm, a line per epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.progress import TaskID

from arelu_tl.data.folder import PictureFolder
from arelu_tl.experiment.observer import Observer
from arelu_tl.explain.sites.show import KERNEL_WARNING
from arelu_tl.models.tables import rejected_line
from arelu_tl.records.amounts import format_duration
from arelu_tl.records.rows import EpochRow, MetricRow, Summary
from arelu_tl.render.bar import stderr_bars
from arelu_tl.render.console import Output
from arelu_tl.render.text import Part
from arelu_tl.surgery.calibrate import Drift
from arelu_tl.surgery.convert import SurgeryReport


class StudyView(Observer):
    """Show a study on stderr.

    A context manager, which removes the bars at its end, also after an error.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self._bars = stderr_bars(output)
        self._task: TaskID | None = None
        self._epochs = 0
        self._speed = 0.0
        self._baseline: dict[int, float] = {}

    def __enter__(self) -> StudyView:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _begin(self, description: str, total: int) -> None:
        self._end()
        self._task = self._bars.add_task(description, total=total, fields=[])

    def _end(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def checking_pictures(self, done: int, total: int) -> None:
        if self._task is None:
            self._begin("checking pictures", total)
        if self._task is not None:
            self._bars.update(self._task, completed=done)
        if done == total:
            self._end()

    def study_started(self, path: Path, folder: PictureFolder, arms: Sequence[str]) -> None:
        counts = {split: len(samples) for split, samples in folder.splits.items()}
        pictures = ", ".join(f"{n} {split}" for split, n in counts.items())
        if endings := folder.endings():
            pictures += f" ({endings})"
        here = Path.cwd()
        root = folder.root.relative_to(here) if folder.root.is_relative_to(here) else folder.root
        self.output.note(
            (str(root), "bold"), f": {len(folder.classes)} classes, pictures: {pictures}"
        )
        for rejected in folder.rejected:
            self.output.note(*rejected_line(rejected))
        for warning in folder.warnings():
            self.output.note((warning, "yellow"))
        self.output.note("study folder: ", (str(path), "bold"), whole=True)

    def sweep_planned(self, cells: int, waiting: int, seconds: float) -> None:
        trained = f", {cells - waiting} of them trained already" if waiting < cells else ""
        self.output.note(
            f"{cells} runs{trained}; about {format_duration(seconds)} to go, from a measured step"
            if waiting
            else f"{cells} runs{trained}"
        )

    def cell_started(self, number: int, cells: int, name: str) -> None:
        # A sweep compares its arms at its end, over all rates and seeds; another cell's epochs
        # are no baseline for this one.
        self._baseline.clear()
        self.output.note()
        self.output.note((f"run {number} of {cells}", "bold"), f": {name}")

    def cell_ended(
        self, name: str, status: str, summary: Summary | None, done: int, cells: int, to_go: float
    ) -> None:
        parts: list[Part] = [status]
        if summary:
            parts = ["accuracy ", (f"{summary['final_top1']:.3f}", "bold")]
            parts.append(f" (best {summary['best_top1']:.3f}), {summary['seconds']:.0f} s")
        if status != "interrupted":
            parts.append(
                f"; {done} of {cells}"
                + (f", about {format_duration(to_go)} to go" if done < cells else "")
            )
        self.output.note(f"  {name}: ", *parts)

    def run_started(
        self,
        arm: str,
        total_steps: int,
        total_epochs: int,
        weights: str,
        report: SurgeryReport | None,
    ) -> None:
        self._epochs = total_epochs
        what = "unmodified backbone"
        if report is not None:
            what = (
                f"{report.replaced} of {report.executed} ReLU sites replaced, "
                f"{report.parameters_added} parameters added"
            )
            if not report.replaced:
                what = (
                    f"every ReLU stays, the statistics of {report.batchnorm_layers} BatchNorm "
                    f"layers {report.batchnorm}"
                )
            if report.drift is not None:
                what += f", {describe_drift(report)}"
        self.output.note()
        self.output.note((arm, "bold"), f": {what}; weights: {weights}")
        kernels = (
            sum(p.site.role == "kernel" and p.status == "replaced" for p in report.sites)
            if report
            else 0
        )
        if kernels:
            self.output.note((f"{kernels} sites {KERNEL_WARNING}", "yellow"))
        if report is not None and not report.budget_kept:
            warning = (
                f"even the least leak drifts further than --drift-budget {report.drift_budget:g}"
            )
            self.output.note((warning, "yellow"))
        self._begin(arm, total_steps)

    def progress(
        self, arm: str, step: int, loss: float, top1: float, images_per_second: float
    ) -> None:
        # Single steps jitter; a running mean is readable.
        self._speed = (
            images_per_second if not self._speed else 0.9 * self._speed + 0.1 * images_per_second
        )
        if self._task is not None:
            fields = [f"loss {loss:.3f}", f"acc {top1:.2f}", f"{self._speed:.1f} img/s"]
            self._bars.update(self._task, completed=step, fields=fields)

    def evaluated(self, arm: str, row: MetricRow) -> None:
        if row["step"] == 0:
            self._show(arm, 0, f"{'before training':<22}", row["loss"], row["top1"])

    def epoch_end(self, arm: str, row: EpochRow) -> None:
        training = f"train {row['train_loss']:6.3f} acc {row['train_top1']:.3f}"
        self._show(
            arm,
            row["epoch"],
            f"{training:<22}",
            row.get("val_loss"),
            row.get("val_top1", math.nan),
            f"  {self._speed:.1f} img/s",
        )

    def _show(
        self, arm: str, epoch: int, training: str, loss: float | None, top1: float, speed: str = ""
    ) -> None:
        beside = ""
        if arm == "relu":
            self._baseline[epoch] = top1
        elif epoch in self._baseline:
            beside = f" (relu {self._baseline[epoch]:.3f})"
        start = f"  {arm:<6} epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}  "
        end = f"val {math.nan if loss is None else loss:6.3f} acc {top1:.3f}{beside}"
        self.output.note(
            f"{start}{training} | val {loss:6.3f} acc ",
            (f"{top1:.3f}", "bold"),
            f"{beside}{speed}",
            shorter=[f"{start}{training} | {end}", f"{start}{end}"],
        )

    def run_finished(self, arm: str, summary: Summary) -> None:
        self._end()
        self._speed = 0.0
        if summary["stopped_early"]:
            self.output.note(
                f"  {arm} stopped early: no better validation accuracy for --patience epochs"
            )

    def note(self, text: str) -> None:
        self.output.note(text)


def describe_drift(report: SurgeryReport) -> str:
    """The drift in words: the features' relative change and the agreement of the top-1 classes."""
    if report.drift is None:
        return "drift not measured"

    def size(drift: Drift) -> str:
        return "overflow" if drift.relative is None else f"{drift.relative:.2f}"

    early = (
        f"{size(report.drift_uncalibrated)} before BatchNorm was put right; "
        if report.drift_uncalibrated
        else ""
    )
    kept = (
        f"pretrained top-1 kept on {report.drift.top1_agreement:.0%} of {report.drift.images} "
        "pictures"
    )
    return f"drift {size(report.drift)} ({early}{kept})"
