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


def stderr_bars(
    output: Output, *, share: bool = False, hidden: bool = False, redirect_stdout: bool = True
) -> Progress:
    """Progress bars on stderr, shown only on a terminal and removed at their end.

    After the step count (with ``share``, the percentage) comes the task's field ``told``, a list of
    texts. If they do not all fit, the last ones are left out, so that no number is cut.
    """
    # Columns do not wrap: numbers keep their width beside a long name or on a wide terminal.
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole),
        _Bar(output.err),
        TaskProgressColumn(markup=False, table_column=whole)
        if share
        else MofNCompleteColumn(table_column=whole),
        _Texts(table_column=Column(no_wrap=False)),
        TimeRemainingColumn(table_column=whole),
        console=output.err,
        transient=True,
        redirect_stdout=redirect_stdout,
        disable=hidden or output.quiet or not output.err.is_terminal,
    )


class _Bar(BarColumn):
    """A bar whose length depends on the terminal's width."""

    def __init__(self, console: Console) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> ProgressBar:
        self.bar_width = max(5, min(40, self._console.width // 4 - 10))
        return super().render(task)


class _Texts(ProgressColumn):
    def render(self, task: Task) -> _Fitting:
        return _Fitting(task.fields.get("fields", ()))


class _Fitting:
    """As many of ``parts`` as fit."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = parts

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, self._text(options.max_width).cell_len)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._text(options.max_width)

    def _text(self, width: int) -> Text:
        candidates = (
            line("  ".join(self._parts[:count])) for count in range(len(self._parts), 0, -1)
        )
        return next((text for text in candidates if text.cell_len <= width), Text())


class PictureBar:
    """A progress bar over pictures.

    A context manager. The bar is on stderr, only on a terminal, and is removed at the end.
    """

    def __init__(self, output: Output, description: str, *, hidden: bool = False) -> None:
        self._description = description
        self._task: TaskID | None = None
        # Stdout may be redirected to a file, so the bar must not capture it.
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
