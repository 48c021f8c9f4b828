"""Progress bars; imports no torch."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from arelu_tl.render.console import Output


def stderr_bars(output: Output, *told: ProgressColumn, hidden: bool = False, redirect_stdout: bool = True) -> Progress:
    """Bars on stderr, where that is a terminal, with ``told`` before the time that remains; gone at their end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *told,
        TimeRemainingColumn(),
        console=output.err,
        transient=True,
        redirect_stdout=redirect_stdout,
        disable=hidden or output.quiet or not output.err.is_terminal,
    )


class PictureBar:
    """A context manager that shows on stderr, where that is a terminal, how many pictures are done; gone at its end."""

    def __init__(self, output: Output, description: str, *, hidden: bool = False) -> None:
        self._description = description
        self._task: TaskID | None = None
        # What is printed meanwhile may go into a file: it is not the bar's to show.
        self._bars = stderr_bars(output, MofNCompleteColumn(), hidden=hidden, redirect_stdout=False)

    def __enter__(self) -> PictureBar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bars.add_task(self._description, total=total)
        self._bars.update(self._task, completed=done)
