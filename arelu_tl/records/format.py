"""The number of the format that runs, studies and checkpoints are written in, and one line for what has another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arelu_tl.errors import ArtefactError
from arelu_tl.version import __version__

# Another one as soon as what is written could be misread by the version before: not for a key more. It stands in a run's
# environment.json, a study's dataset.json and a checkpoint's manifest.json.
FORMAT = 1


def require_format(record: Mapping[str, Any], path: Path) -> None:
    """Raise unless ``record``, which ``path`` says of itself, names the format that this version reads.

    What was written before there was a number is of format 1.

    Raises:
        ArtefactError: it names another one.
    """
    found = record.get("format", 1)
    if found is True or found != FORMAT:
        raise ArtefactError(
            f"{path} is written in format {found!r}, and arelu-tl {__version__} reads format {FORMAT}: "
            "use the version that wrote it, or one that is newer"
        )
