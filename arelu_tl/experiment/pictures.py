"""A study's pictures: how each split is preprocessed, and the scan that checks and caches them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arelu_tl.backbone.loading import expected_data_config
from arelu_tl.data.cache import open_cache
from arelu_tl.data.folder import PictureFolder, scan_folder
from arelu_tl.data.loader import View, eval_view, train_view
from arelu_tl.data.recipe import Evaluated, Recipe, for_crops
from arelu_tl.errors import ArtefactError, ConfigError
from arelu_tl.experiment.observer import Observer
from arelu_tl.records.amounts import format_size, parse_size
from arelu_tl.records.config import FinetuneConfig


def views(config: FinetuneConfig, data_config: dict[str, Any]) -> dict[str, View]:
    """Return the preprocessing of "train" and "val" pictures.

    Raises:
        ArtefactError: the model's preprocessing is not supported.
    """
    train = train_view(data_config, config.augmentation())
    return {"train": train, "val": eval_view(data_config)}


@contextmanager
def scanned_pictures(config: FinetuneConfig, observer: Observer) -> Iterator[PictureFolder]:
    """Check and cache all pictures of ``config``; the cache is open until the context ends.

    Raises:
        ConfigError: ``config`` names no folder, or a cache for which this machine has no place.
        DataError: see ``scan_folder``.
        StorageError: the cache's folder cannot be made.
    """
    if config.data is None:
        raise ConfigError("the configuration names no folder of pictures")
    with open_cache(config.cache, parse_size(config.cache_limit)) as cache:
        folder = scan_folder(
            config.data,
            config.scan(),
            # The output may lie inside the folder of pictures, still empty
            # ("cd PICTURES; arelu-tl finetune .").
            leave_out=[config.output],
            cache=cache,
            recipes=_recipes(config),
            progress=observer.checking_pictures,
        )
        if message := folder.passed.line():
            observer.note(message)
        yield dataclasses.replace(folder, root=config.data)


def _recipes(config: FinetuneConfig) -> dict[str, Recipe]:
    """Return how each split's pictures are reduced; {} if only the built model determines it."""
    data_config = expected_data_config(config.model, config.img_size)
    if data_config is None:
        return {}
    try:
        evaluated = Evaluated(data_config)
    except ArtefactError:  # reported when the model is built
        return {}
    return {
        "train": evaluated if config.no_aug else for_crops(data_config, config.scale[0]),
        "val": evaluated,
    }


def describe_cache(config: FinetuneConfig, folder: PictureFolder) -> str:
    """Describe how many pictures are cached, where, and how full the cache is; "" if it is off."""
    if folder.cache is None:
        return (
            ""
            if config.cache == "off"
            else "no room for reduced pictures: each is decoded whenever it is needed"
        )
    cache, recipes = folder.cache, _recipes(config)
    wanted = {
        (recipes[split], sample.digest)
        for split, recipe in recipes.items()
        for sample in folder.splits[split]
    }
    sizes = [size for recipe, digest in wanted if (size := cache.size(recipe, digest))]
    place = _short(cache.root)
    room = f"{format_size(cache.used())} of at most {format_size(cache.limit)} used there"
    if not recipes:
        return f"reduced pictures are kept in {place} as they are needed ({room})"
    fewer = f"{len(sizes):,} of {len(wanted):,}" if len(sizes) < len(wanted) else f"{len(sizes):,}"
    rest = "; the others are decoded whenever they are needed" if len(sizes) < len(wanted) else ""
    return f"reduced pictures: {fewer} kept, {format_size(sum(sizes))} in {place} ({room}){rest}"


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)
