"""The check of all pictures: decode each one fully once, and cache what training needs of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arelu_tl.data.decode import UndecodableError
from arelu_tl.data.formats import unreadable
from arelu_tl.data.passed_over import some
from arelu_tl.data.recipe import Recipe, Whole
from arelu_tl.data.similar import LOOK_BYTES, Look, look_of
from arelu_tl.data.store import PictureStore
from arelu_tl.records.storage import sha256_file


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that looks like a picture but cannot be read as one."""

    path: str
    reason: str


def by_reason(rejected: Iterable[Rejected], most: int = 3) -> str:
    """Summarise files that cannot be read.

    For each of the ``most`` commonest reasons: how many files, and a few of their paths.
    """
    paths: dict[str, list[str]] = {}
    for each in rejected:
        paths.setdefault(each.reason, []).append(each.path)
    commonest = sorted(paths, key=lambda reason: -len(paths[reason]))
    summaries = [_counted(reason, paths[reason]) for reason in commonest[:most]]
    return "; ".join([*summaries, "..."] if len(paths) > most else summaries)


def _counted(reason: str, paths: list[str]) -> str:
    return (
        f"{len(paths)} files, {reason}: {some(paths)}"
        if len(paths) > 1
        else f"{paths[0]} ({reason})"
    )


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of ``check_pictures``.

    Attributes:
        digests: {path: SHA-256} of the valid pictures.
        looks: {SHA-256: look of that picture}.
        rejected: the invalid files.
    """

    digests: dict[str, str]
    looks: dict[str, Look]
    rejected: list[Rejected]


def check_pictures(
    root: Path,
    paths: list[str],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: PictureStore | None = None,
    recipes: Mapping[str, Recipe] | None = None,
) -> Checked:
    """Decode each picture to its end; a file that ``cache`` knows to be valid is only hashed.

    Args:
        threads: None for one per core.
        progress: called with (done, total) after each picture.
        recipes: {path: recipe whose result is put into ``cache``}.
    """
    recipes = recipes or {}

    def examine(path: str) -> tuple[str, Look | None, str]:
        content = b""
        try:
            content = (root / path).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            return digest, _decode(content, digest, recipes.get(path), cache), ""
        except UndecodableError as error:
            return "", None, unreadable(content, path) or str(error)
        except OSError as error:
            return "", None, os.strerror(error.errno or 0)

    checked = Checked({}, {}, [])
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for done, (path, (digest, look, reason)) in enumerate(
            zip(paths, pool.map(examine, paths), strict=True), start=1
        ):
            if look is None:
                checked.rejected.append(Rejected(path, reason))
            else:
                checked.digests[path] = digest
                checked.looks.setdefault(digest, look)
            if progress is not None:
                progress(done, len(paths))
    return checked


def _decode(content: bytes, digest: str, recipe: Recipe | None, cache: PictureStore | None) -> Look:
    known = cache.verdict(digest) if cache is not None else None
    look = Look.unpack(known) if known is not None and len(known) == LOOK_BYTES else None
    wanted = (
        cache is not None
        and recipe is not None
        and not cache.holds(recipe, digest)
        and not cache.full
    )
    if look is not None and not wanted:
        return look
    picture = recipe.open(content) if recipe is not None and wanted else Whole().open(content)
    if cache is not None and recipe is not None and wanted:
        # A valid picture that the transform cannot process is reported when it is needed.
        with suppress(UndecodableError):
            cache.put(recipe, digest, recipe.reduce(picture))
    if look is None:
        look = look_of(content, picture)
        if cache is not None:
            cache.note_good(digest, look.pack())
    return look


def hash_pictures(root: Path, paths: list[str], threads: int | None = None) -> dict[str, str]:
    """{path: SHA-256} of the readable files."""

    def digest(path: str) -> str:
        try:
            return sha256_file(root / path)
        except OSError:  # check_pictures reports it
            return ""

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return {
            path: found for path, found in zip(paths, pool.map(digest, paths), strict=True) if found
        }
