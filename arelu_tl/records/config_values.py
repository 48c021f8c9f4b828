"""Types of configuration values, as written on the command line and in YAML files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from arelu_tl.records.amounts import parse_duration, parse_interval, parse_size
from arelu_tl.records.home import at_home


def option(default: Any, help_text: str, panel: str, **constraints: Any) -> Any:
    """Make a field that is also an option, with its help text and its panel of ``--help``.

    Args:
        constraints: pydantic's constraints, and optionally the option's ``short`` name.
    """
    extra = {"panel": panel, "short": constraints.pop("short", None)}
    return Field(default, description=help_text, json_schema_extra=extra, **constraints)


def _no_truth_value(value: Any) -> Any:
    """Reject bool: Python treats True as 1, but ``yes`` in a YAML file is not a number."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not yes or no")
    return value


def _size(value: Any) -> Any:
    """Check a size, but keep it as it was written."""
    parse_size(value if isinstance(value, str) else "")
    return value


def _interval(value: Any) -> Any:
    """Check an interval, but keep it as text; YAML reads a number of steps as an int."""
    written = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    parse_interval(written if isinstance(written, str) else "")
    return written


def _file_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("no file's name has a zero byte in it")
    return Path(at_home(str(path)))


def _folder_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError("the name of a folder in the folder of pictures is wanted, no path")
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]
FilePath = Annotated[Path, AfterValidator(_file_path)]
ModelName = Annotated[str, AfterValidator(at_home)]
Int = Annotated[int, BeforeValidator(_no_truth_value)]
Float = Annotated[float, BeforeValidator(_no_truth_value)]
Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_truth_value)]

_POSITIVE = TypeAdapter(Annotated[Int, Field(ge=1)])


def _number_or_auto(value: Any) -> Any:
    """Accept "auto" or a positive int, also as text from the command line or YAML.

    An error is one sentence; a union type would report two.
    """
    if value == "auto":
        return value
    try:
        return _POSITIVE.validate_python(value)
    except ValidationError:
        raise ValueError("a whole number of at least 1 is wanted, or auto") from None


def _positive_or_auto(value: Any) -> Any:
    """Convert the command line's text; a number of the wrong sign is as wrong as a word."""
    if value == "auto":
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ValueError("a number above 0 is wanted, or auto")
    return number


FloatOrAuto = Annotated[float | Literal["auto"], BeforeValidator(_positive_or_auto)]
IntOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]


def _split(value: Any) -> Any:
    """Split ``1e-5,1e-4`` from the command line; a list from YAML is returned unchanged."""
    return (
        [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, str)
        else value
    )


def _duration(value: Any) -> Any:
    """Check a duration, but keep it as it was written."""
    if value is not None:
        parse_duration(value if isinstance(value, str) else "")
    return value


def require_distinct(grid: object, keys: Iterable[str]) -> None:
    """Raise if one of the lists ``keys`` of a configuration contains a value twice.

    Raises:
        ValueError: the message names the list.
    """
    for key in keys:
        values = getattr(grid, key)
        if len(set(values)) < len(values):
            raise ValueError(f"{key} names a value twice")


Commas = BeforeValidator(_split)
Size = Annotated[str, BeforeValidator(_size)]
Interval = Annotated[str, BeforeValidator(_interval)]
Duration = Annotated[str | None, BeforeValidator(_duration)]
