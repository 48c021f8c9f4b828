"""Progress bars; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from arelu_tl.render.console import Output, line


def stderr_bars(output: Output, *, share: bool = False, hidden: bool = False, redirect_stdout: bool = True) -> Progress:
    """Bars on stderr, where that is a terminal; gone at their end.

    After the steps (with ``share`` the share of them) a task's field ``told`` is shown, a list of what is to be told: where
    there is no room for all of it, the last of it gives way, as no number may be cut.
    """
    # A long name or a wide terminal must not move what stands beside; numbers keep their room.
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole),
        _Bar(output.err),
        TaskProgressColumn(markup=False, table_column=whole) if share else MofNCompleteColumn(table_column=whole),
        _Told(table_column=Column(no_wrap=False)),
        TimeRemainingColumn(table_column=whole),
        console=output.err,
        transient=True,
        redirect_stdout=redirect_stdout,
        disable=hidden or output.quiet or not output.err.is_terminal,
    )


class _Bar(BarColumn):
    """As long as a terminal of that width spares."""

    def __init__(self, console: Console) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> ProgressBar:
        self.bar_width = max(5, min(40, self._console.width // 4 - 10))
        return super().render(task)


class _Told(ProgressColumn):
    def render(self, task: Task) -> _Fitting:
        return _Fitting(task.fields.get("told", ()))


class _Fitting:
    """As many of ``parts`` as there is room for."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = parts

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, self._text(options.max_width).cell_len)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._text(options.max_width)

    def _text(self, width: int) -> Text:
        tellings = (line("  ".join(self._parts[:count])) for count in range(len(self._parts), 0, -1))
        return next((told for told in tellings if told.cell_len <= width), Text())


class PictureBar:
    """A context manager that shows on stderr, where that is a terminal, how many pictures are done; gone at its end."""

    def __init__(self, output: Output, description: str, *, hidden: bool = False) -> None:
        self._description = description
        self._task: TaskID | None = None
        # What is printed meanwhile may go into a file: it is not the bar's to show.
        self._bars = stderr_bars(output, hidden=hidden, redirect_stdout=False)

    def __enter__(self) -> PictureBar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bars.add_task(self._description, total=total)
        self._bars.update(self._task, completed=done)
