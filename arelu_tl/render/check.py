"""What check prints. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from arelu_tl.data import PictureFolder
from arelu_tl.data.copies import Copies
from arelu_tl.render.console import plain
from arelu_tl.study.check import Check

# Of classes, files and groups; all of them are in the report's files.
_MOST = 40
_FEW = 10


def check_report(check: Check) -> list[RenderableType]:
    """Tables of what was found, then warnings, then why finetune would refuse it, or that it would not."""
    parts: list[RenderableType] = []
    folder = check.folder
    if folder is not None:
        parts.append(_classes_table(folder))
        if folder.rejected:
            parts.append(_rejected_table(folder))
        if folder.copies:
            parts.append(_copies_table(folder.copies))
        if endings := folder.endings():
            parts.append(f"files: {plain(endings)}")
        if told := folder.passed.line():
            parts.append(plain(told))
        # An error says it already.
        refused = any("--allow-duplicates" in problem for problem in check.problems)
        parts += [f"[yellow]{plain(told)}[/]" for told in folder.warnings() if not (refused and "more than one split" in told)]
    parts += [f"[red]refused:[/] {plain(problem)}" for problem in check.problems]
    if not check.problems:
        parts.append(f"[green]{plain(check.root)} can be trained on[/]")
    return parts


def _classes_table(folder: PictureFolder) -> Table:
    counts = folder.counts()
    ours = ", split by us" if folder.layout == "flat" else ""
    table = Table(title=f"{len(folder.classes)} classes{ours}", title_justify="left", show_footer=True)
    table.add_column("class", "all", overflow="fold")
    for split in counts:
        table.add_column(split, str(sum(counts[split].values())), justify="right")
    # The largest and the smallest are what one asks for.
    train = counts["train"]
    names = sorted(folder.classes, key=lambda name: -train.get(name, 0))
    shown = names if len(names) <= _MOST else [*names[: _MOST // 2], *names[-_MOST // 2 :]]
    order = {name: place for place, name in enumerate(folder.classes)}
    for name in sorted(shown, key=order.__getitem__) if len(shown) == len(names) else shown:
        table.add_row(plain(name), *(str(counts[split].get(name, "·")) for split in counts))
    if len(shown) < len(names):
        table.caption = f"the largest and the smallest {_MOST // 2} classes"
    return table


def _rejected_table(folder: PictureFolder) -> Table:
    table = Table(title=f"{len(folder.rejected)} files that are no pictures{_told_first(folder.rejected)}", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("reason", overflow="fold")
    for each in folder.rejected[:_FEW]:
        table.add_row(plain(each.path), plain(each.reason))
    return table


def _copies_table(copies: Sequence[Copies]) -> Table:
    table = Table(title=f"{len(copies)} pictures that stand more than once{_told_first(copies)}", title_justify="left")
    table.add_column("files", overflow="fold")
    table.add_column("same")
    table.add_column("where")
    for group in copies[:_FEW]:
        files = " = ".join(plain(path) for path in group.paths[:4])
        more = f" and {len(group.paths) - 4} more" if len(group.paths) > 4 else ""
        where = "several splits" if group.across_splits else "several classes" if group.across_classes else "one class"
        table.add_row(files + more, "bytes" if group.exact else "looks", where)
    return table


def _told_first(rows: Sequence[object]) -> str:
    return f", the first {_FEW}" if len(rows) > _FEW else ""
