"""Pictures by the thousand through a classifier: threads decode and preprocess, a few batches ahead and no more."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.data.gate import Rejected
from arelu_tl.study.classifier import Classifier


@dataclass(frozen=True)
class Answer:
    """Attributes:
    path: the picture's.
    log_probabilities: of the classes (classes,).
    """

    path: Path
    log_probabilities: NDArray[np.float64]


def classify(classifier: Classifier, paths: Iterable[Path], *, batch_size: int = 32) -> Iterator[Answer | Rejected]:
    """What the classifier says of each picture, in the order of ``paths``; ``Rejected`` where it cannot be read.

    Pictures are opened while earlier ones are classified. At most two batches wait, however many there are.

    Raises:
        ArtefactError: see ``Classifier.log_probabilities``.
    """

    def prepare(path: Path) -> NDArray[Any] | Rejected:
        try:
            return classifier.prepare(open_picture(path))
        except UndecodableError as error:
            return Rejected(str(path), str(error))
        except (OSError, ValueError) as error:  # a path with a NUL in it is a ValueError
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            return Rejected(str(path), reason)

    size = min(batch_size, classifier.largest_batch or batch_size)
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[tuple[Path, Future[NDArray[Any] | Rejected]]] = deque()
    rest = iter(paths)
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                for path in islice(rest, 2 * max(size, threads) - len(waiting)):
                    waiting.append((path, pool.submit(prepare, path)))
                if not waiting:
                    return
                group = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                yield from _answers(classifier, [(path, future.result()) for path, future in group])
        finally:
            # Whoever stops asking does not wait for pictures that nobody will look at.
            for _, future in waiting:
                future.cancel()


def _answers(classifier: Classifier, group: list[tuple[Path, NDArray[Any] | Rejected]]) -> Iterator[Answer | Rejected]:
    good = [prepared for _, prepared in group if not isinstance(prepared, Rejected)]
    rows = iter(classifier.log_probabilities(good) if good else ())
    for path, prepared in group:
        yield prepared if isinstance(prepared, Rejected) else Answer(path, next(rows))
