"""The gate: every picture is decoded once to its end, and what training needs of it is kept while it is at hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arelu_tl.data.decode import UndecodableError
from arelu_tl.data.recipe import Recipe, Whole
from arelu_tl.data.store import PictureStore
from arelu_tl.records.storage import sha256_file


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that looks like a picture by its name and is none."""

    path: str
    reason: str


def check_pictures(
    root: Path,
    paths: list[str],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: PictureStore | None = None,
    recipes: Mapping[str, Recipe] | None = None,
) -> tuple[dict[str, str], list[Rejected]]:
    """Decode each picture to its end; {path: SHA-256} of the good ones, and the bad ones with reasons.

    A file whose bytes ``cache`` knows to be good is only hashed.

    Args:
        recipes: {path: what of the picture ``cache`` is given}.
    """
    recipes = recipes or {}

    def examine(path: str) -> tuple[str, str, str]:
        try:
            content = (root / path).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            _decode(content, digest, recipes.get(path), cache)
        except UndecodableError as error:
            return path, "", str(error)
        except OSError as error:
            return path, "", os.strerror(error.errno or 0)
        return path, digest, ""

    digests: dict[str, str] = {}
    rejected = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for done, (path, digest, reason) in enumerate(pool.map(examine, paths), start=1):
            if reason:
                rejected.append(Rejected(path, reason))
            else:
                digests[path] = digest
            if progress is not None:
                progress(done, len(paths))
    return digests, rejected


def _decode(content: bytes, digest: str, recipe: Recipe | None, cache: PictureStore | None) -> None:
    if cache is None:
        Whole().open(content)
        return
    known = cache.is_good(digest)
    wanted = recipe is not None and not cache.holds(recipe, digest) and not cache.full
    if known and not wanted:
        return
    if recipe is None or not wanted:
        Whole().open(content)
    else:
        picture = recipe.open(content)
        # A picture that the transform cannot serve is one all the same: that is told when it is needed.
        with suppress(UndecodableError):
            cache.put(recipe, digest, recipe.reduce(picture))
    if not known:
        cache.note_good(digest)


def hash_pictures(root: Path, paths: list[str], threads: int | None = None) -> dict[str, str]:
    """{path: SHA-256} of the files that can be read."""

    def digest(path: str) -> str:
        try:
            return sha256_file(root / path)
        except OSError:  # the gate says so
            return ""

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return {path: found for path, found in zip(paths, pool.map(digest, paths), strict=True) if found}
