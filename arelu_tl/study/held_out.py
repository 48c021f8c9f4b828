"""Which pictures of a folder a run was not trained on. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from arelu_tl.records import runs
from arelu_tl.study.run_pictures import run_of, run_pictures


def held_out(model_path: Path, data: Path) -> set[str] | None:
    """Paths of the validation pictures, where the model is a run, or its checkpoint, that was trained on this very folder."""
    run = run_of(model_path)
    trained_on = runs.load_run(run).config.data if runs.is_run(run) else None
    if trained_on is None or trained_on.resolve() != data.resolve():
        return None
    pictures = run_pictures(run)
    return {path for path, _ in pictures.val} if pictures is not None else None
