"""Batches whose order and augmentation are functions of (seed, epoch, sample), whatever the number of workers.

Both arms of a pair therefore see the same pictures, augmented alike, and a resumed epoch starts at any batch without
replaying what came before.
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

Transform = Callable[[Image.Image], Any]


@dataclass(frozen=True)
class View:
    """How a split's pictures are seen.

    Attributes:
        recipe: what is made of a file once.
        transform: what is made of that at every look: a tensor (C, H, W).
    """

    recipe: Recipe
    transform: Transform


def eval_transform(data_config: dict[str, Any]) -> Transform:
    """timm's evaluation transform: resize, centre crop, normalise; to a float tensor (C, H, W)."""
    transform: Transform = _create(data_config, is_training=False)
    return transform


def eval_view(data_config: dict[str, Any]) -> View:
    """What ``eval_transform`` makes of the decoded picture, to the bit, its resized crop made once.

    Raises:
        ArtefactError: see ``Preprocessing``.
    """
    whole = _create(data_config, is_training=False)
    first = next(i for i, step in enumerate(whole.transforms) if isinstance(step, MaybeToTensor))
    return View(Evaluated(data_config), type(whole)(whole.transforms[first:]))


def train_view(
    data_config: dict[str, Any], *, no_aug: bool = False, scale: tuple[float, float] = (0.35, 1.0), **augmentation: Any
) -> View:
    """timm's training transform of pictures reduced to what its random crops need.

    Args:
        no_aug: ``eval_view`` instead.
        scale: share of the picture's area that a crop keeps, least and most.
        augmentation: create_transform's hflip, color_jitter and so on.
    """
    if no_aug:
        return eval_view(data_config)
    return View(for_crops(data_config, scale[0]), _create(data_config, is_training=True, scale=scale, **augmentation))


def _create(data_config: dict[str, Any], **kwargs: Any) -> Any:
    chosen = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data_config.items() if k in chosen}
    return create_transform(**settings, **kwargs)


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Reduces and transforms; its keys are (epoch, index), and a train item's randomness comes from them alone."""

    def __init__(self, root: Path, samples: Sequence[Sample], view: View, seed: int | None, cache: PictureStore | None) -> None:
        self.root = root
        self.cache = cache
        self.samples = samples
        self.view = view
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[tuple[Tensor, int]]:
        """The items of a batch; DataLoader asks for all of them at once."""
        if self.seed is None:
            return [self._item(index) for _, index in keys]
        items = []
        # To put the generators back costs more than to seed them: once a batch is enough.
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
            raise DataError(f"{sample.path} could be decoded before training and cannot now: {error}") from None
        # A file that has changed since the scan is no longer the one whose digest we know.
        if self.cache is not None and not self.cache.full and hashlib.sha256(content).hexdigest() == sample.digest:
            self.cache.put(recipe, sample.digest, picture)
        return picture


def _seed_generators(*key: int) -> None:
    """Seed the three generators that transforms draw from."""
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(3, np.uint64)]
    random.seed(words[0])
    np.random.seed(words[1] % 2**32)  # noqa: NPY002 (timm's transforms draw from the global generator)
    torch.default_generator.manual_seed(words[2] % 2**63)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put them back to where they were."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)


class _Order:
    """The batch sampler: lists of (epoch, index), for the epoch and first batch that are set on it.

    Of several processes (``share``: this one's number, and how many) each has its slice of every batch where the order is
    shuffled, and every so-manieth batch where it is not.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None, share: tuple[int, int]) -> None:
        self.count, self.batch_size, self.seed, self.share = count, batch_size, seed, share
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
        batches = [[(self.epoch, i) for i in order[b * size : (b + 1) * size]] for b in range(self.first, len(self))]
        ours, of = self.share
        if self.seed is None:
            return iter(batches[ours::of])
        return iter([batch[ours * len(batch) // of : (ours + 1) * len(batch) // of] for batch in batches])


@dataclass
class Batches:
    """One split as batches of (pictures float (B, C, H, W), labels int64 (B,)).

    Attributes:
        samples: the split's samples; with evaluation batches, in the order in which they come.
        batch_size: pictures in a batch, the slices of other processes included.
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
    view: View,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    pin: bool = False,
    cache: PictureStore | None = None,
    share: tuple[int, int] = (0, 1),
) -> Batches:
    """Shuffled batches; order from (seed, epoch), augmentation from (seed, epoch, index).

    Args:
        cache: saves the decoding of the pictures in it, and is given the others, here and below; the batches are the same.
        share: (number of this process, processes): each gets its equal slice of every batch.
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
    """Batches in the samples' own order, every picture exactly once; of N processes each gets every N-th batch."""
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
        # The default would draw from the global generator, and make dropout depend on the number of epochs begun.
        generator=torch.Generator().manual_seed(0),
    )
    return Batches(samples=samples, batch_size=batch_size, _order=order, _loader=loader)


def _quiet_worker(_: int) -> None:
    """A worker keeps to one thread, says nothing (its parent has looked at every picture already), and leaves Ctrl-C to
    its parent: the terminal sends it to both, and a dead worker would take the step with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.excepthook = _report_unless_parent_left


def _report_unless_parent_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A parent that ends while it fetches a batch breaks the connection to the thread that serves it: what ended the
    parent it tells itself, and a traceback of the server's beside it would hide that."""
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


# A socket's path has room for 104 bytes on some systems, 108 on Linux; its own name and its end take 19 of them.
_MOST_BYTES = 84


def shorten_socket_folder() -> None:
    """Let this process and its workers make their sockets where the path is short enough, if TMPDIR's is too long for them.

    With a longer one a worker's first batch never arrives, and training would wait for ever.

    Raises:
        ConfigError: there is no such place.
    """
    # Where it is short, each worker makes a folder of its own.
    if sys.platform == "win32" or len(os.fsencode(tempfile.gettempdir())) + len("/pymp-12345678") <= _MOST_BYTES:
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        # Made at the first call, removed when this process ends, and inherited by its workers.
        folder = str(multiprocessing.util.get_temp_dir())
    except OSError:
        folder = ""
    finally:
        tempfile.tempdir = before
    if not folder or len(os.fsencode(folder)) > _MOST_BYTES:
        raise ConfigError("the path for temporary files is too long for loader workers: set a short TMPDIR, or pass -j 0")
