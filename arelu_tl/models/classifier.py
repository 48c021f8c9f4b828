"""Label pictures with a trained model: a run, an exported folder, a checkpoint or an ONNX file.

An ONNX file is run without importing torch.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.data.gate import Rejected
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.errors import ArtefactError, DataError
from arelu_tl.models import run_pictures
from arelu_tl.models.onnx_session import OnnxSession
from arelu_tl.records.storage import refuse_executable
from arelu_tl.records.trained_on import TrainedOn


class Classifier(ABC):
    """A model that labels pictures.

    Attributes:
        classes: class names; answer i belongs to classes[i].
        data_config: the preprocessing.
        largest_batch: largest number of prepared pictures that ``log_probabilities`` takes; None
            for no limit.
    """

    classes: list[str]
    data_config: dict[str, Any]
    largest_batch: int | None = None

    @abstractmethod
    def prepare(self, picture: Image.Image) -> NDArray[Any]:
        """Preprocess an RGB picture for ``log_probabilities``. Several threads may call it.

        Raises:
            UndecodableError: the picture cannot be preprocessed.
        """

    @abstractmethod
    def log_probabilities(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Compute the logarithms of the classes' probabilities (N, classes), all finite.

        Raises:
            ArtefactError: an answer of the model is NaN or infinite.
        """

    def trained_on(self) -> TrainedOn | None:
        """Return what the model was trained on; None where that is unknown.

        Raises:
            ArtefactError: the record of it is damaged.
        """
        return None

    def probabilities(self, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Compute the classes' probabilities (N, classes) for RGB pictures of any sizes.

        Raises:
            UndecodableError, ArtefactError: see ``prepare`` and ``log_probabilities``.
        """
        size = self.largest_batch or max(1, len(pictures))
        batches = [pictures[first : first + size] for first in range(0, len(pictures), size)]
        answers = [
            np.exp(self.log_probabilities([self.prepare(picture) for picture in batch]))
            for batch in batches
        ]
        return np.concatenate([np.empty((0, len(self.classes))), *answers])


def open_classifier(path: Path, device: str | None = None) -> Classifier:
    """Open a model that ``load_model`` takes, or an .onnx file that ``arelu-tl export`` wrote.

    Args:
        path: of the model.
        device: where to run it; None for the best device available, for an .onnx file the CPU.

    Raises:
        DataError: there is no model at ``path``.
        ArtefactError: it is damaged, or of a kind that is never loaded because loading it can
            execute code.
        ConfigError: the device, or a package that an .onnx file needs, is missing.
    """
    if path.is_dir():
        return _TorchClassifier(path, device)
    refuse_executable(path)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file")
    if path.suffix.lower() != ".onnx":
        raise DataError(f"{path}: no model: name a run folder, an exported folder or an .onnx file")
    return _OnnxClassifier(path, device)


class _OnnxClassifier(Classifier):
    def __init__(self, path: Path, device: str | None) -> None:
        self._path = path
        self._session = OnnxSession(path, device)
        self.classes, self.data_config = self._session.classes, self._session.data_config
        # Decoded pictures differ in size, so they cannot be stacked.
        self.largest_batch = 1 if self._session.takes_pictures else None
        self._prepare: Callable[[Image.Image], NDArray[Any]] = (
            np.asarray if self._session.takes_pictures else _preprocessing(self.data_config, path)
        )

    def prepare(self, picture: Image.Image) -> NDArray[Any]:
        return self._prepare(picture)

    def log_probabilities(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        answers = self._session.run(np.stack(prepared))
        if not self._session.gives_probabilities:
            return _log_softmax(answers, self._path)
        if not (np.isfinite(answers).all() and (answers >= 0).all()):
            raise ArtefactError(f"{self._path}: its answers are no probabilities")
        # 0 means a probability below the smallest float32 number.
        return np.log(
            np.maximum(answers, np.finfo(np.float32).smallest_subnormal).astype(np.float64)
        )

    def trained_on(self) -> TrainedOn | None:
        return self._session.trained_on


class _TorchClassifier(Classifier):
    def __init__(self, path: Path, device: str | None) -> None:
        from arelu_tl.models.load import load_model
        from arelu_tl.training.device import choose_device

        self._path = path
        self._device = choose_device(device)
        model, card = load_model(path)
        self._model = model.to(self._device)
        self.classes, self.data_config = card.classes, card.data_config
        self._prepare = _preprocessing(self.data_config, path)

    def prepare(self, picture: Image.Image) -> NDArray[Any]:
        return self._prepare(picture)

    def log_probabilities(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        import torch

        with torch.inference_mode():
            logits = self._model(torch.from_numpy(np.stack(prepared)).to(self._device))
        return _log_softmax(logits.float().cpu().numpy(), self._path)

    def trained_on(self) -> TrainedOn | None:
        from arelu_tl.models.export_folder import is_export, read_trained_on

        return (
            read_trained_on(self._path)
            if is_export(self._path)
            else run_pictures.trained_on(self._path)
        )


def _preprocessing(data_config: dict[str, Any], path: Path) -> Preprocessing:
    try:
        return Preprocessing(data_config)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from None


def _log_softmax(logits: NDArray[np.float32], path: Path) -> NDArray[np.float64]:
    if not np.isfinite(logits).all():
        raise ArtefactError(
            f"{path}: its logits are not finite: "
            "the weights are damaged, or overflow in this precision"
        )
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@dataclass(frozen=True)
class Answer:
    """The answer to one picture.

    Attributes:
        path: of the picture.
        log_probabilities: of the classes, (classes,).
    """

    path: Path
    log_probabilities: NDArray[np.float64]


def classify(
    classifier: Classifier, paths: Iterable[Path], *, batch_size: int = 32
) -> Iterator[Answer | Rejected]:
    """Yield the classifier's answer to each picture, in the order of ``paths``.

    For a picture that cannot be read, ``Rejected`` is given. Pictures are opened while earlier ones
    are classified. At most two batches wait at a time, so memory stays bounded.

    Args:
        classifier: the model.
        paths: of the pictures.
        batch_size: pictures per batch.

    Raises:
        ArtefactError: see ``Classifier.log_probabilities``.
    """

    def prepare(path: Path) -> NDArray[Any] | Rejected:
        try:
            return classifier.prepare(open_picture(path))
        except UndecodableError as error:
            return Rejected(str(path), str(error))
        except (OSError, ValueError) as error:  # a path with a NUL character raises ValueError
            reason = (
                os.strerror(error.errno)
                if isinstance(error, OSError) and error.errno
                else str(error)
            )
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
            # If the caller stops early, it must not wait for the remaining pictures.
            for _, future in waiting:
                future.cancel()


def _answers(
    classifier: Classifier, group: list[tuple[Path, NDArray[Any] | Rejected]]
) -> Iterator[Answer | Rejected]:
    good = [prepared for _, prepared in group if not isinstance(prepared, Rejected)]
    rows = iter(classifier.log_probabilities(good) if good else ())
    for path, prepared in group:
        yield prepared if isinstance(prepared, Rejected) else Answer(path, next(rows))
