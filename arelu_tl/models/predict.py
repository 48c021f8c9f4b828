"""Label any number of pictures, given as files, folders and patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from arelu_tl.data.formats import is_picture
from arelu_tl.data.gate import Rejected
from arelu_tl.data.listing import entries_of, list_all, natural_key
from arelu_tl.data.passed_over import PassedOver, is_litter
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.models.classifier import Answer, Classifier, classify
from arelu_tl.records.runs import holds_results

_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class Prediction:
    """One picture's labels, most probable first.

    ``probabilities`` are from the softmax over all classes.
    """

    path: str
    labels: list[str]
    probabilities: list[float]


@dataclass(frozen=True)
class Pictures:
    """The pictures that a list of arguments names.

    Attributes:
        paths: each picture once, in the order of the arguments; a folder's in natural order.
        missing: arguments without a picture, with the reason.
        passed: files and folders that were passed over.
    """

    paths: list[Path]
    missing: list[Rejected]
    passed: PassedOver


def find_pictures(arguments: Iterable[str]) -> Pictures:
    """Expand files, folders (to any depth) and patterns (``*``, ``?``, ``[...]``, ``**``).

    A file that is named itself is always taken, whatever its content. Links to folders are
    followed, but each folder is read only once.
    """
    paths: dict[Path, Path] = {}
    missing = []
    passed = PassedOver()
    place = lru_cache(maxsize=1024)(Path.resolve)
    for argument in arguments:
        try:
            found, reason = _expand(argument, passed)
        except DataError as error:  # a folder that cannot be read
            found, reason = [], str(error)
        if not found:
            missing.append(Rejected(argument, reason))
        for path in found:
            paths.setdefault(place(path.parent) / path.name, path)
    return Pictures(list(paths.values()), missing, passed)


def _expand(argument: str, passed: PassedOver) -> tuple[list[Path], str]:
    """Return (the pictures of one argument, the reason if there are none)."""
    path = Path(argument)
    if path.is_dir():
        return _in_folder(path, passed), "no picture in this folder"
    if path.is_file() or path.is_symlink():
        return [path], ""
    if not _PATTERN & set(argument):
        return [], "no such file or folder"
    found: list[Path] = []
    try:
        matches = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except ValueError as error:
        return [], f"no pattern: {error}"
    named = [part for part in path.parts if not _PATTERN & set(part)]
    skipped = lru_cache(maxsize=1024)(_holds_results)
    for match in sorted(matches, key=lambda p: natural_key(str(p))):
        if any(is_litter(part) and part not in named for part in match.parts):
            passed.litter.append(str(match))
        elif results := [
            place for place in (match, *match.parents) if place.name not in named and skipped(place)
        ]:
            passed.results += [str(place) for place in results if str(place) not in passed.results]
        elif match.is_dir():
            # ** matches every folder on the way, and the pictures in it separately.
            found += _in_folder(match, passed) if "**" not in argument else []
        elif is_picture(match):
            found.append(match)
        else:
            passed.others += 1
    return found, "no picture matches this pattern"


def _holds_results(folder: Path) -> bool:
    return folder.is_dir() and holds_results([each.name for each in entries_of(folder)])


def _in_folder(folder: Path, passed: PassedOver) -> list[Path]:
    listing = list_all(folder)
    passed.add(listing.passed.below(folder))
    return [folder / path for path in listing.pictures[""]]


def predict(
    classifier: Classifier,
    paths: Sequence[Path],
    *,
    top: int = 3,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Prediction | Rejected]:
    """Yield the ``top`` labels of each picture, in the order of ``paths``.

    For a picture that cannot be read, ``Rejected`` is given.

    Args:
        classifier: the model.
        paths: of the pictures.
        top: number of labels per picture.
        batch_size: pictures per batch.
        progress: a callback with (pictures done, pictures in all).

    Raises:
        ConfigError: ``top`` or ``batch_size`` is below 1.
        ArtefactError: an answer of the model is NaN or infinite.
    """
    if top < 1 or batch_size < 1:
        raise ConfigError("`top` and `batch_size` must be at least 1")
    return _predict(classifier, paths, min(top, len(classifier.classes)), batch_size, progress)


def _predict(
    classifier: Classifier,
    paths: Sequence[Path],
    top: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Prediction | Rejected]:
    for done, answer in enumerate(classify(classifier, paths, batch_size=batch_size), start=1):
        yield _labelled(answer, classifier.classes, top) if isinstance(answer, Answer) else answer
        if progress is not None:
            progress(done, len(paths))


def _labelled(answer: Answer, classes: Sequence[str], top: int) -> Prediction:
    # Stable: ties are in class order, as in argmax.
    best = np.argsort(-answer.log_probabilities, kind="stable")[:top]
    return Prediction(
        str(answer.path),
        [classes[i] for i in best],
        np.exp(answer.log_probabilities[best]).tolist(),
    )
