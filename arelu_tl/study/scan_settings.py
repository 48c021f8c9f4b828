"""What of a configuration says how a folder of pictures is read. Imports no torch."""

from __future__ import annotations

from typing import Any

from arelu_tl.records.config import FinetuneConfig


def scan_settings(config: FinetuneConfig) -> dict[str, Any]:
    """What of ``config`` goes to ``scan_folder``, but for the folder itself and what lies in it that is no class."""
    keys = (
        "train_split", "val_split", "layout", "val_fraction", "split_seed", "on_bad_image", "allow_duplicates", "follow_links",
    )  # fmt: skip
    return {key: getattr(config, key) for key in keys}
