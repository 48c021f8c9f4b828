"""Validate the state in a checkpoint, which may come from any source or version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from arelu_tl.errors import ArtefactError

_Record = TypeVar("_Record")


def read_record(kind: type[_Record], saved: object, name: str) -> _Record:
    """Rebuild a dataclass from the result of ``asdict``.

    Raises:
        ArtefactError: an unknown key, or a value of the wrong type.
    """
    if not isinstance(saved, dict):
        raise ArtefactError(f"{name} in the saved state is no record but a {type(saved).__name__}")
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(map(str, saved.keys() - known)):
        raise ArtefactError(
            f"{name} in the saved state is of another version: unknown {', '.join(unknown[:3])}"
        )
    try:
        return TypeAdapter(kind).validate_python(saved)
    except ValidationError as error:
        raise ArtefactError(f"{name} in the saved state is damaged: {_one_line(error)}") from None


def load_part(saved: Mapping[str, Any], name: str, load: Callable[[Any], object]) -> None:
    """Call ``load`` with ``saved[name]``.

    Raises:
        ArtefactError: it is missing, or ``load`` rejects it.
    """
    if name not in saved:
        raise ArtefactError(f"the saved state has no {name}")
    try:
        load(saved[name])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtefactError(f"{name} in the saved state does not fit: {_one_line(error)}") from None


def read_lengths(saved: Mapping[str, Any]) -> dict[str, int]:
    """Return the lengths of the run's logs in bytes, by name.

    Raises:
        ArtefactError: they are missing.
    """
    lengths = saved.get("lengths")
    if not isinstance(lengths, dict) or not all(
        isinstance(lengths.get(key), int) for key in ("metrics", "results")
    ):
        raise ArtefactError("the saved state does not tell the lengths of the run's logs")
    return lengths


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
