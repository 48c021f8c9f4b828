"""The format number of runs, studies and checkpoints, and its check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arelu_tl.errors import ArtefactError
from arelu_tl.version import __version__

# Increase it if the previous version could misread what is written, not for an additional key. It
# is stored in a run's environment.json, a study's dataset.json and a checkpoint's manifest.json.
FORMAT = 1


def require_format(record: Mapping[str, Any], path: Path) -> None:
    """Raise unless ``record``, read from ``path``, has the format that this version reads.

    Files without a format number have format 1.

    Raises:
        ArtefactError: it has another format.
    """
    found = record.get("format", 1)
    if found is True or found != FORMAT:
        raise ArtefactError(
            f"{path} is written in format {found!r}, and arelu-tl {__version__} reads format "
            f"{FORMAT}: use the version that wrote it, or one that is newer"
        )
