"""Kinds of values in a configuration, as the command line and YAML files write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from arelu_tl.records.amounts import parse_duration, parse_interval, parse_size
from arelu_tl.records.home import at_home


def option(default: Any, help_text: str, panel: str, **constraints: Any) -> Any:
    """A field that is an option too: its help, the panel of ``--help`` that it stands in, perhaps a ``short`` name."""
    extra = {"panel": panel, "short": constraints.pop("short", None)}
    return Field(default, description=help_text, json_schema_extra=extra, **constraints)


def _no_truth_value(value: Any) -> Any:
    """Python takes True for 1; a ``yes`` in a YAML file is no number."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not yes or no")
    return value


def _size(value: Any) -> Any:
    """Leave a size as it was written, so that it reads back as such."""
    parse_size(value if isinstance(value, str) else "")
    return value


def _interval(value: Any) -> Any:
    """A number of steps, or a time, as it was written: YAML reads the one as a number."""
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
    """The command line gives digits as text, as a YAML file may; any fault is one sentence, where a union would have two."""
    if value == "auto":
        return value
    try:
        return _POSITIVE.validate_python(value)
    except ValidationError:
        raise ValueError("a whole number of at least 1 is wanted, or auto") from None


IntOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]


def _split(value: Any) -> Any:
    """``1e-5,1e-4`` as the command line gives it, or a list as YAML does."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _duration(value: Any) -> Any:
    """Leave a time as it was written, so that it reads back as such."""
    if value is not None:
        parse_duration(value if isinstance(value, str) else "")
    return value


def require_distinct(grid: object, keys: Iterable[str]) -> None:
    """
    Raises:
        ValueError: one of the lists ``keys`` of a configuration names a value twice.
    """
    for key in keys:
        values = getattr(grid, key)
        if len(set(values)) < len(values):
            raise ValueError(f"{key} names a value twice")


Commas = BeforeValidator(_split)
Size = Annotated[str, BeforeValidator(_size)]
Interval = Annotated[str, BeforeValidator(_interval)]
Duration = Annotated[str | None, BeforeValidator(_duration)]
