"""Progress of a reproduction: what will be trained, a bar of steps, and the remaining time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from arelu_tl.paper.reproduce import Watcher
from arelu_tl.paper.units import Task, Unit
from arelu_tl.records.amounts import format_duration
from arelu_tl.render.bar import stderr_bars
from arelu_tl.render.console import Output

# Without a bar, print a line after so many seconds.
_LINE_EVERY = 60.0


class ReproductionView(Watcher):
    """Shows a reproduction on stderr.

    It is a context manager, which removes the bar at the end, whatever ended it.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self._bar = stderr_bars(output, share=True)
        self._task = self._bar.add_task("training", total=None, fields=[])
        self._began = self._printed = time.monotonic()
        self._done, self._total = 0, 0

    def __enter__(self) -> ReproductionView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def planned(
        self, path: Path, tasks: Sequence[Task], runs: int, done: int, net_steps: int
    ) -> None:
        self._began = self._printed = time.monotonic()
        self._total = net_steps
        self._bar.update(self._task, total=net_steps)
        self.output.note("study folder: ", (str(path), "bold"), whole=True)
        for digits in {task.target.name: task.target for task in tasks}.values():
            self.output.note((digits.name, "bold"), f": {digits.description}")
        before = f", {done} of them trained already" if done else ""
        self.output.note(f"{runs} trainings{before}; {net_steps:,} steps to take")

    def advanced(self, net_steps: int) -> None:
        self._done += net_steps
        self._bar.update(self._task, completed=self._done)

    def unit_done(self, unit: Unit) -> None:
        rates = ", ".join(f"{lr:g}" for lr in unit.lrs)
        self._bar.update(
            self._task, fields=[f"{unit.task.folder} {unit.activation}", f"rates {rates}"]
        )
        now = time.monotonic()
        if self._bar.disable and self._done and now - self._printed > _LINE_EVERY:
            self._printed = now
            left = (now - self._began) * (self._total - self._done) / self._done
            self.output.note(
                f"{self._done / self._total:.0%} of the steps; about {format_duration(left)} to go"
            )
