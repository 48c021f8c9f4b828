"""Tables of the page: cells with their sort keys, columns, and formats of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.results import Spread
from arelu_tl.analysis.statistics import PairedDifference

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Value:
    """A cell of a table.

    Attributes:
        sort: the sort key, if it is not the text itself; "" sorts last in both directions.
        tone: a class of the style sheet.
    """

    text: str
    sort: float | str | None = None
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: one or a few words.
        numeric: right-aligned and sorted by number.
        hint: the meaning of the heading, shown as a tooltip.
    """

    heading: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        name: what a screen reader calls it.
        rest: a note of what was left out.
    """

    name: str
    columns: Sequence[Column]
    rows: list[list[Value]] = field(default_factory=list)
    rest: str = ""


def words(*headings: str) -> list[Column]:
    """Make columns of text."""
    return [Column(heading, numeric=False) for heading in headings]


def text(value: object) -> Value:
    """Make a cell of text; None and "" become a dash."""
    return Value(NOTHING, "") if value is None or value == "" else Value(str(value))


def number(value: float | None, form: str = ".3f", *, unit: str = "") -> Value:
    """Make a cell of a number, with a true minus sign, which is as wide as the plus."""
    if value is None:
        return Value(NOTHING, "")
    shown = format(value, form)
    return Value(
        shown.replace("-", "−") + unit,
        None if shown == str(value) and not unit else float(f"{value:.6g}"),
    )


def rate(lr: float) -> Value:
    """Make a cell of a learning rate, in the format that the sentences use."""
    return Value(f"{lr:g}", lr)


def probability(p: float | None) -> Value:
    """Make a cell of a p-value."""
    if p is None:
        return Value(NOTHING, "")
    return Value(
        "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}", float(f"{p:.6g}")
    )


def spread(values: Spread, digits: int = 3) -> Value:
    """Make a cell of mean ± standard deviation."""
    mean = f"{values.mean:.{digits}f}"
    return Value(
        mean if values.sd is None else f"{mean} ± {values.sd:.{digits}f}",
        float(f"{values.mean:.6g}"),
    )


def interval(low: float | None, high: float | None) -> Value:
    """Make a cell of an interval, sorted by its lower end."""
    if low is None or high is None:
        return Value(NOTHING, "")
    return Value(f"{low:+.3f} to {high:+.3f}".replace("-", "−"), float(f"{low:.6g}"))


def difference(found: PairedDifference) -> Value:
    """Make a cell of the mean difference with its interval."""
    shown = f"{found.mean:+.3f}"
    if found.low is not None and found.high is not None:
        shown += f" ({found.low:+.3f} to {found.high:+.3f})"
    return Value(shown.replace("-", "−"), float(f"{found.mean:.6g}"))


def when(time: TimeToTarget, form: str = ".0f") -> Value:
    """Make a cell of the median time to the target and how many runs never reached it."""
    never = (
        ""
        if time.reached == time.of
        else "never"
        if time.of == 1
        else f"never in {time.of - time.reached} of {time.of}"
    )
    if time.median is None:
        return Value(never, "Infinity")
    return Value(
        f"{time.median:{form}}" + (f" ({never})" if never else ""), float(f"{time.median:.6g}")
    )


def ratio(value: float | None) -> Value:
    """Make a cell of a multiple of the reference."""
    return number(value, ".2f", unit=" ×")
