"""Pictures to prove an export, to calibrate its quantization and to measure its accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.errors import DataError
from arelu_tl.models.run_pictures import RunPictures, spread

_PROOF = 10
_CALIBRATION = 128
_JUDGED = 2000
_BATCH = 16


class ExportPictures:
    """Pictures of a run, preprocessed for its model.

    Args:
        pictures: None where they are gone.
        classes: of the model; a picture's label is the index of its class.
        data_config: the preprocessing.
    """

    def __init__(
        self, pictures: RunPictures | None, classes: list[str], data_config: dict[str, Any]
    ) -> None:
        self._pictures = pictures
        self._labels = {name: label for label, name in enumerate(classes)}
        self._preprocessing = Preprocessing(data_config)

    def proof(self) -> Tensor | None:
        """Return up to ten validation pictures (N, C, H, W); None where they are gone."""
        if self._pictures is None or not self._pictures.val:
            return None
        try:
            pictures = [
                open_picture(self._pictures.root / path)
                for path, _ in spread(self._pictures.val, _PROOF)
            ]
        except (OSError, UndecodableError):
            return None
        return torch.stack([torch.from_numpy(self._preprocessing(picture)) for picture in pictures])

    def decoded(self) -> Iterator[Image.Image]:
        """Yield decoded pictures: random ones of four shapes, and a few of the run's."""
        stream = np.random.default_rng(0)
        for height, width in ((300, 451), (451, 300), (40, 57), (256, 256)):
            blobs = Image.fromarray(stream.integers(0, 256, (7, 9, 3), dtype=np.uint8))
            yield blobs.resize((width, height), Image.Resampling.BICUBIC)
        if self._pictures is not None:
            for path, _ in spread(self._pictures.val, _PROOF):
                try:
                    yield open_picture(self._pictures.root / path)
                except (OSError, UndecodableError):
                    continue  # gone; more random pictures would prove no more

    def calibration(self) -> Iterator[Tensor]:
        """Yield batches of training pictures (B, C, H, W).

        Raises:
            DataError: they are gone.
        """
        for batch, _ in self._batches(self._found().train, _CALIBRATION):
            yield batch

    def judged(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of up to 2,000 validation pictures (B, C, H, W), and their labels (B,).

        Raises:
            DataError: they are gone.
        """
        return self._batches(self._found().val, _JUDGED)

    def require(self) -> None:
        """Check that the pictures exist; they are needed to measure what fewer bits change.

        Raises:
            DataError: they are gone.
        """
        root = self._found().root
        for path, _ in (*self._found().train[:1], *self._found().val[:1]):
            if not (root / path).is_file():
                raise DataError(
                    f"{root}: {path} is not there; "
                    "fewer bits need the run's pictures (`data=FOLDER`)"
                )

    def _found(self) -> RunPictures:
        if self._pictures is None or not self._pictures.train or not self._pictures.val:
            raise DataError(
                "fewer bits need the run's own pictures, which are gone: "
                "say with `data` where they are now"
            )
        return self._pictures

    def _batches(
        self, pictures: list[tuple[str, str]], count: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        chosen, root = spread(pictures, count), self._found().root
        for first in range(0, len(chosen), _BATCH):
            some = chosen[first : first + _BATCH]
            try:
                prepared = [
                    torch.from_numpy(self._preprocessing(open_picture(root / path)))
                    for path, _ in some
                ]
            except (OSError, UndecodableError) as error:
                raise DataError(f"a picture of the run cannot be read any more: {error}") from None
            yield torch.stack(prepared), torch.tensor([self._labels[label] for _, label in some])
