"""A table of the page: what stands in it, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from arelu_tl.analysis.censoring import TimeToTarget
from arelu_tl.analysis.results import Spread
from arelu_tl.analysis.statistics import PairedDifference

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Value:
    """What a cell shows.

    Attributes:
        sort: what it is sorted by where that is not the text itself; "" goes last in either direction.
        tone: a class of the style sheet.
    """

    text: str
    sort: float | str | None = None
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """Attributes:
    heading: one or a few words.
    numeric: aligned to the right, sorted by number.
    hint: what the heading means, shown when it is pointed at.
    """

    heading: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns; ``rest`` says what was left out, ``name`` what a screen reader calls it."""

    name: str
    columns: Sequence[Column]
    rows: list[list[Value]] = field(default_factory=list)
    rest: str = ""


def words(*headings: str) -> list[Column]:
    """Columns of text."""
    return [Column(heading, numeric=False) for heading in headings]


def text(value: object) -> Value:
    return Value(NOTHING, "") if value is None or value == "" else Value(str(value))


def number(value: float | None, form: str = ".3f", *, unit: str = "") -> Value:
    """A figure, with a minus sign as wide as the plus."""
    if value is None:
        return Value(NOTHING, "")
    shown = format(value, form)
    return Value(shown.replace("-", "−") + unit, None if shown == str(value) and not unit else float(f"{value:.6g}"))


def rate(lr: float) -> Value:
    """A learning rate, as the sentences write it."""
    return Value(f"{lr:g}", lr)


def probability(p: float | None) -> Value:
    """A p-value."""
    if p is None:
        return Value(NOTHING, "")
    return Value("< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}", float(f"{p:.6g}"))


def spread(values: Spread, digits: int = 3) -> Value:
    """Mean ± standard deviation."""
    told = f"{values.mean:.{digits}f}"
    return Value(told if values.sd is None else f"{told} ± {values.sd:.{digits}f}", float(f"{values.mean:.6g}"))


def interval(low: float | None, high: float | None) -> Value:
    if low is None or high is None:
        return Value(NOTHING, "")
    return Value(f"{low:+.3f} to {high:+.3f}".replace("-", "−"), float(f"{low:.6g}"))


def difference(found: PairedDifference) -> Value:
    """The mean difference with its interval."""
    told = f"{found.mean:+.3f}"
    if found.low is not None and found.high is not None:
        told += f" ({found.low:+.3f} to {found.high:+.3f})"
    return Value(told.replace("-", "−"), float(f"{found.mean:.6g}"))


def when(time: TimeToTarget, form: str = ".0f") -> Value:
    """The median time to the target, and in how many runs it was never reached."""
    never = "" if time.reached == time.of else "never" if time.of == 1 else f"never in {time.of - time.reached} of {time.of}"
    if time.median is None:
        return Value(never, "Infinity")
    return Value(f"{time.median:{form}}" + (f" ({never})" if never else ""), float(f"{time.median:.6g}"))


def ratio(value: float | None) -> Value:
    """A multiple of the reference."""
    return number(value, ".2f", unit=" ×")
