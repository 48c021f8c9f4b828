"""Batches whose order and augmentation depend only on (seed, epoch, sample), not on workers.

Both arms of a pair therefore get the same augmented pictures, and a resumed epoch starts at any
batch without replaying the earlier ones.
"""

from __future__ import annotations

import hashlib
import multiprocessing.util
import os
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybeToTensor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from arelu_tl.data.decode import UndecodableError
from arelu_tl.data.recipe import Evaluated, Recipe, for_crops
from arelu_tl.data.split import Sample
from arelu_tl.data.store import PictureStore
from arelu_tl.errors import ConfigError, DataError
from arelu_tl.records.settings import AugmentSettings

Transform = Callable[[Image.Image], Any]


@dataclass(frozen=True)
class View:
    """How a split's pictures are preprocessed.

    Attributes:
        recipe: reduces a decoded file; its result can be cached.
        transform: turns the result into a tensor (C, H, W), each time a picture is loaded.
    """

    recipe: Recipe
    transform: Transform


def eval_transform(data_config: dict[str, Any]) -> Transform:
    """Make timm's evaluation transform: resize, centre crop, normalise to float (C, H, W)."""
    transform: Transform = _create(data_config, is_training=False)
    return transform


def eval_view(data_config: dict[str, Any]) -> View:
    """Make a view bitwise equal to ``eval_transform``, whose resized crop can be cached.

    Raises:
        ArtefactError: see ``Preprocessing``.
    """
    whole = _create(data_config, is_training=False)
    first = next(i for i, step in enumerate(whole.transforms) if isinstance(step, MaybeToTensor))
    return View(Evaluated(data_config), type(whole)(whole.transforms[first:]))


def train_view(data_config: dict[str, Any], augment: AugmentSettings = AugmentSettings()) -> View:
    """Make timm's training transform, of pictures reduced to the size that its random crops need.

    With ``no_aug`` this is ``eval_view``.
    """
    if augment.no_aug:
        return eval_view(data_config)
    transform = _create(
        data_config,
        is_training=True,
        scale=augment.scale,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.auto_augment,
        re_prob=augment.re_prob,
    )
    return View(for_crops(data_config, augment.scale[0]), transform)


def _create(data_config: dict[str, Any], **kwargs: Any) -> Any:
    chosen = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    settings: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in data_config.items() if k in chosen
    }
    return create_transform(**settings, **kwargs)


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Loads pictures by (epoch, index); these and the seed alone determine the augmentation."""

    def __init__(
        self,
        root: Path,
        samples: Sequence[Sample],
        view: View,
        seed: int | None,
        cache: PictureStore | None,
    ) -> None:
        self.root = root
        self.cache = cache
        self.samples = samples
        self.view = view
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[tuple[Tensor, int]]:
        """Return the items of a batch; DataLoader requests all of them at once."""
        if self.seed is None:
            return [self._item(index) for _, index in keys]
        items = []
        # Restoring the generators costs more than seeding them, so do it once per batch.
        with _generators_kept():
            for epoch, index in keys:
                picture = self._picture(self.samples[index])
                _seed_generators(self.seed, epoch, index)
                items.append((self.view.transform(picture), self.samples[index].label))
        return items

    def _item(self, index: int) -> tuple[Tensor, int]:
        return self.view.transform(self._picture(self.samples[index])), self.samples[index].label

    def _picture(self, sample: Sample) -> Image.Image:
        recipe = self.view.recipe
        if self.cache is not None and (kept := self.cache.get(recipe, sample.digest)) is not None:
            return kept
        try:
            content = (self.root / sample.path).read_bytes()
            picture = recipe.reduce(recipe.open(content))
        except (UndecodableError, OSError) as error:
            raise DataError(
                f"{sample.path} could be decoded before training and cannot now: {error}"
            ) from None
        # If the file has changed since the scan, the recorded digest is no longer its own.
        if (
            self.cache is not None
            and not self.cache.full
            and hashlib.sha256(content).hexdigest() == sample.digest
        ):
            self.cache.put(recipe, sample.digest, picture)
        return picture


def _seed_generators(*key: int) -> None:
    """Seed the three random generators that transforms use."""
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(3, np.uint64)]
    random.seed(words[0])
    np.random.seed(words[1] % 2**32)  # noqa: NPY002 (timm's transforms use the global generator)
    torch.default_generator.manual_seed(words[2] % 2**63)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Restore the states of the three generators on exit."""
    python, torch_state = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)


class _Order:
    """The batch sampler: lists of (epoch, index), for the epoch and first batch that are set on it.

    ``share`` is (rank, number of processes). In shuffled order each process gets its slice of every
    batch; in file order, every n-th batch of n processes.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int | None, share: tuple[int, int]
    ) -> None:
        self.count, self.batch_size, self.seed, self.share = count, batch_size, seed, share
        self.epoch = self.first = 0

    def indices(self, epoch: int) -> list[int]:
        if self.seed is None:
            return list(range(self.count))
        return [int(i) for i in np.random.default_rng([self.seed, epoch]).permutation(self.count)]

    def __len__(self) -> int:
        if self.seed is None:
            return -(-self.count // self.batch_size)
        # A small last batch would disturb BatchNorm, so it is dropped, as in timm; its pictures
        # appear in other epochs. A set smaller than one batch is one batch.
        return max(1, self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.indices(self.epoch)
        # Build all batches now, not lazily: self.epoch may already be the next epoch by then.
        size = self.batch_size
        batches = [
            [(self.epoch, i) for i in order[b * size : (b + 1) * size]]
            for b in range(self.first, len(self))
        ]
        ours, of = self.share
        if self.seed is None:
            return iter(batches[ours::of])
        return iter(
            [batch[ours * len(batch) // of : (ours + 1) * len(batch) // of] for batch in batches]
        )


@dataclass
class Batches:
    """One split as batches of (pictures float (B, C, H, W), labels int64 (B,)).

    Attributes:
        samples: the split's samples; evaluation batches have them in this order.
        batch_size: pictures in a batch, including the slices of other processes.
    """

    samples: Sequence[Sample]
    batch_size: int
    _order: _Order = field(repr=False)
    _loader: DataLoader[tuple[Tensor, int]] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of an epoch, from batch ``first`` on."""
        self._order.epoch, self._order.first = epoch, first
        return iter(self._loader)

    @property
    def workers(self) -> int:
        """Number of loader processes."""
        return self._loader.num_workers

    def indices(self, epoch: int = 0) -> list[list[int]]:
        """Return the indices of the samples in each batch of an epoch."""
        order, size = self._order.indices(epoch), self.batch_size
        return [order[b * size : (b + 1) * size] for b in range(len(self))]

    def order_digest(self, epoch: int) -> str:
        """Return a digest of the order of the pictures in an epoch."""
        text = "\n".join(
            f"{self.samples[i].path}\t{self.samples[i].label}" for i in self._order.indices(epoch)
        )
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def batch_digest(pictures: Tensor, labels: Tensor) -> str:
    """Return a digest of a batch's pixels and labels, to prove that two arms had equal batches."""
    digest = hashlib.sha256(pictures.contiguous().numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def make_train_batches(
    root: Path,
    samples: Sequence[Sample],
    view: View,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    pin: bool = False,
    cache: PictureStore | None = None,
    share: tuple[int, int] = (0, 1),
) -> Batches:
    """Make shuffled batches; order from (seed, epoch), augmentation from (seed, epoch, index).

    Args:
        cache: supplies its pictures without decoding and stores the others; the batches are the
            same with and without it.
        share: (rank, number of processes): each process gets an equal slice of every batch.
    """
    return _make(root, samples, view, batch_size, seed, workers, pin, cache, share)


def make_eval_batches(
    root: Path,
    samples: Sequence[Sample],
    view: View,
    *,
    batch_size: int,
    workers: int = 0,
    pin: bool = False,
    cache: PictureStore | None = None,
    share: tuple[int, int] = (0, 1),
) -> Batches:
    """Make batches in the samples' own order, with every picture exactly once.

    Args:
        cache: see ``make_train_batches``.
        share: (rank, number of processes): of n processes each gets every n-th batch.
    """
    return _make(root, samples, view, batch_size, None, workers, pin, cache, share)


def _make(
    root: Path,
    samples: Sequence[Sample],
    view: View,
    batch_size: int,
    seed: int | None,
    workers: int,
    pin: bool,
    cache: PictureStore | None,
    share: tuple[int, int],
) -> Batches:
    if workers:
        shorten_socket_folder()
    order = _Order(len(samples), batch_size, seed, share)
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        _Pictures(root, samples, view, seed, cache),
        batch_sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_quiet_worker if workers else None,
        # By default DataLoader draws a seed from the global generator in each epoch; dropout would
        # then depend on the number of epochs begun.
        generator=torch.Generator().manual_seed(0),
    )
    return Batches(samples=samples, batch_size=batch_size, _order=order, _loader=loader)


def _quiet_worker(_: int) -> None:
    """Initialise a loader process: one thread, no warnings, and Ctrl-C ignored.

    The parent has already checked every picture, so warnings are redundant. The terminal sends
    Ctrl-C to parent and workers, and a dead worker would make the current step fail.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.excepthook = _report_unless_parent_left


def _report_unless_parent_left(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print a worker's uncaught exception, unless its connection to the parent has broken.

    A parent that ends while it fetches a batch breaks the connection. It reports its own error,
    which the worker's traceback would hide.
    """
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


# A socket's path is limited to 104 bytes on some systems, and to 108 on Linux; its file name and
# the terminator take 19 of them.
_MOST_BYTES = 84


def shorten_socket_folder() -> None:
    """Move the sockets of this process and its workers to a short path if TMPDIR is too long.

    With a longer path a worker's first batch never arrives, and training would wait forever.

    Raises:
        ConfigError: there is no folder with a short path.
    """
    # If TMPDIR is short enough, each worker makes its own folder.
    if (
        sys.platform == "win32"
        or len(os.fsencode(tempfile.gettempdir())) + len("/pymp-12345678") <= _MOST_BYTES
    ):
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        # The first call makes the folder; workers inherit it, and it is removed at exit.
        folder = str(multiprocessing.util.get_temp_dir())
    except OSError:
        folder = ""
    finally:
        tempfile.tempdir = before
    if not folder or len(os.fsencode(folder)) > _MOST_BYTES:
        raise ConfigError(
            "the path for temporary files is too long for loader workers: set a short TMPDIR, or "
            "pass -j 0"
        )
