"""Batches whose order and augmentation are functions of (seed, epoch, sample), whatever the number of workers.

Both arms of a pair therefore see the same pictures, augmented alike, and a resumed epoch starts at any batch without
replaying what came before.
"""

from __future__ import annotations

import hashlib
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from arelu_tl.data.cache import DecodedPictures
from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.data.folder import Sample
from arelu_tl.errors import DataError

Transform = Callable[[Image.Image], Tensor]


def eval_transform(data_config: dict[str, Any]) -> Transform:
    """timm's evaluation transform: resize, centre crop, normalise; to a float tensor (C, H, W)."""
    return _create(data_config, is_training=False)


def train_transform(data_config: dict[str, Any], **augmentation: Any) -> Transform:
    """timm's training transform; ``augmentation`` takes create_transform's no_aug, scale, hflip and so on."""
    if augmentation.pop("no_aug", False):
        return eval_transform(data_config)
    return _create(data_config, is_training=True, **augmentation)


def _create(data_config: dict[str, Any], **kwargs: Any) -> Transform:
    chosen = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data_config.items() if k in chosen}
    transform: Transform = create_transform(**settings, **kwargs)
    return transform


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Decodes and transforms; its keys are (epoch, index), and a train item's randomness comes from them alone."""

    def __init__(
        self, root: Path, samples: Sequence[Sample], transform: Transform, seed: int | None, decoded: DecodedPictures | None
    ) -> None:
        self.root = root
        self.decoded = decoded
        self.samples = samples
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        sample = self.samples[index]
        picture = self._picture(sample)
        if self.seed is None:
            return self.transform(picture), sample.label
        with _seeded(self.seed, epoch, index):
            return self.transform(picture), sample.label

    def _picture(self, sample: Sample) -> Image.Image:
        if self.decoded is not None and (picture := self.decoded.get(sample.digest)) is not None:
            return picture
        try:
            return open_picture(self.root / sample.path)
        except (UndecodableError, OSError) as error:
            raise DataError(f"{sample.path} could be decoded before training and cannot now: {error}") from None


class _seeded:  # noqa: N801 (used as a verb)
    """Seeds the three generators that transforms draw from, and puts them back."""

    def __init__(self, *key: int) -> None:
        words = np.random.SeedSequence(key).generate_state(3, np.uint64)
        self.seeds = [int(word) for word in words]

    def __enter__(self) -> None:
        self.before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        random.seed(self.seeds[0])
        np.random.seed(self.seeds[1] % 2**32)  # noqa: NPY002 (timm's transforms draw from the global generator)
        torch.default_generator.manual_seed(self.seeds[2] % 2**63)

    def __exit__(self, *exception: object) -> None:
        python, numpy, torch_state = self.before
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)


class _Order:
    """The batch sampler: lists of (epoch, index), for the epoch and first batch that are set on it."""

    def __init__(self, count: int, batch_size: int, seed: int | None) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch = self.first = 0

    def indices(self, epoch: int) -> list[int]:
        if self.seed is None:
            return list(range(self.count))
        return [int(i) for i in np.random.default_rng([self.seed, epoch]).permutation(self.count)]

    def __len__(self) -> int:
        if self.seed is None:
            return -(-self.count // self.batch_size)
        # A small last batch would disturb BatchNorm; as in timm it is left out, and another epoch's order brings its
        # pictures back. A set smaller than one batch is one batch.
        return max(1, self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.indices(self.epoch)
        # Made at once, not while they are asked for: the loop may already have begun the next epoch by then.
        size = self.batch_size
        return iter([[(self.epoch, i) for i in order[b * size : (b + 1) * size]] for b in range(self.first, len(self))])


@dataclass
class Batches:
    """One split as batches of (pictures float (B, C, H, W), labels int64 (B,)).

    Attributes:
        samples: the split's samples; with evaluation batches, in the order in which they come.
        batch_size: pictures in a batch.
    """

    samples: Sequence[Sample]
    batch_size: int
    _order: _Order = field(repr=False)
    _loader: DataLoader[tuple[Tensor, int]] = field(repr=False)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, from batch ``first`` on."""
        self._order.epoch, self._order.first = epoch, first
        return iter(self._loader)

    @property
    def workers(self) -> int:
        """Processes that decode."""
        return self._loader.num_workers

    def indices(self, epoch: int = 0) -> list[list[int]]:
        """Which samples make up each batch of an epoch."""
        order, size = self._order.indices(epoch), self.batch_size
        return [order[b * size : (b + 1) * size] for b in range(len(self))]

    def order_digest(self, epoch: int) -> str:
        """Digest of which picture comes when in an epoch."""
        text = "\n".join(f"{self.samples[i].path}\t{self.samples[i].label}" for i in self._order.indices(epoch))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def batch_digest(pictures: Tensor, labels: Tensor) -> str:
    """Digest of a batch to the last pixel: what proves that two arms were augmented alike."""
    digest = hashlib.sha256(pictures.contiguous().numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def make_train_batches(
    root: Path,
    samples: Sequence[Sample],
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    pin: bool = False,
    decoded: DecodedPictures | None = None,
) -> Batches:
    """Shuffled batches; order from (seed, epoch), augmentation from (seed, epoch, index).

    ``decoded`` saves the decoding of the pictures in it, here and below; the batches are the same.
    """
    return _make(root, samples, transform, batch_size, seed, workers, pin, decoded)


def make_eval_batches(
    root: Path,
    samples: Sequence[Sample],
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
    pin: bool = False,
    decoded: DecodedPictures | None = None,
) -> Batches:
    """Batches in the samples' own order, every picture exactly once."""
    return _make(root, samples, transform, batch_size, None, workers, pin, decoded)


def _make(
    root: Path,
    samples: Sequence[Sample],
    transform: Transform,
    batch_size: int,
    seed: int | None,
    workers: int,
    pin: bool,
    decoded: DecodedPictures | None,
) -> Batches:
    order = _Order(len(samples), batch_size, seed)
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        _Pictures(root, samples, transform, seed, decoded),
        batch_sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_one_thread if workers else None,
        # The default would draw from the global generator, and make dropout depend on the number of epochs begun.
        generator=torch.Generator().manual_seed(0),
    )
    return Batches(samples=samples, batch_size=batch_size, _order=order, _loader=loader)


def _one_thread(_: int) -> None:
    """A worker keeps to one thread, says nothing (its parent has looked at every picture already), and leaves Ctrl-C to
    its parent: the terminal sends it to both, and a dead worker would take the step with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
