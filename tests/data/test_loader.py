"""Order and augmentation are functions of (seed, epoch, sample), and nothing else."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from arelu_tl.data.loader import (
    Batches,
    View,
    batch_digest,
    eval_view,
    make_eval_batches,
    make_train_batches,
    train_view,
)
from arelu_tl.data.recipe import Whole
from arelu_tl.data.split import Sample
from arelu_tl.errors import DataError
from arelu_tl.records.settings import AugmentSettings

COUNT = 11
CONFIG = {
    "input_size": (3, 16, 16),
    "interpolation": "bilinear",
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "crop_pct": 1.0,
}
Batch = tuple[Tensor, Tensor]


def draw_from_every_generator(picture: Image.Image) -> Tensor:
    """What one picture would be augmented with, from each generator that transforms may draw from."""
    drawn = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
    return torch.tensor([*drawn, float(np.asarray(picture).mean())], dtype=torch.float64)


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    stream = np.random.default_rng(0)
    for number in range(COUNT):
        values = stream.integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


def seen(transform: Callable[[Image.Image], Tensor] | View) -> View:
    return transform if isinstance(transform, View) else View(Whole(), transform)


def samples(count: int = COUNT) -> list[Sample]:
    # The label says which picture it is.
    return [Sample(f"{number}.png", number, "") for number in range(count)]


def train(
    root: Path,
    *,
    count: int = COUNT,
    batch_size: int = 3,
    seed: int = 5,
    transform: Callable[[Image.Image], Tensor] | View = draw_from_every_generator,
    **options: Any,
) -> Batches:
    return make_train_batches(
        root, samples(count), seen(transform), batch_size=batch_size, seed=seed, **options
    )


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Whether two lists of batches are equal to the last bit."""
    return len(a) == len(b) and all(
        torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])
        for left, right in zip(a, b, strict=True)
    )


def labels(batches: list[Batch]) -> list[int]:
    return [label for _, batch in batches for label in batch.tolist()]


def drawn_by_label(batches: list[Batch]) -> dict[int, list[float]]:
    """{label: what its sample drew from python, numpy and torch}."""
    return {
        label: picture[:3]
        for pictures, batch in batches
        for picture, label in zip(pictures.tolist(), batch.tolist(), strict=True)
    }


def rng_states() -> tuple[Any, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


# A function of (seed, epoch, sample)


def test_the_same_seed_and_epoch_give_the_same_batches(root: Path) -> None:
    random.seed(1)
    once = list(train(root).epoch(2))
    random.seed(2)
    torch.manual_seed(3)
    assert same(once, list(train(root).epoch(2)))


def test_worker_processes_change_nothing(root: Path) -> None:
    augment = train_view(CONFIG, AugmentSettings(color_jitter=0.4, hflip=0.5))
    alone, helped = (train(root, transform=augment, workers=workers) for workers in (0, 2))
    assert same(list(alone.epoch(0)), list(helped.epoch(0)))
    assert same(list(alone.epoch(3)), list(helped.epoch(3)))
    next(helped.epoch(4))  # an epoch that is abandoned
    assert same(list(alone.epoch(5, first=1)), list(helped.epoch(5, first=1)))


def test_worker_processes_leave_every_generator_alone(root: Path) -> None:
    assert same(list(train(root).epoch(1)), list(train(root, workers=2).epoch(1)))


@given(epoch=st.integers(0, 1000), first=st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_an_epoch_can_begin_at_any_batch(root: Path, epoch: int, first: int) -> None:
    batches = train(root)
    assert same(list(batches.epoch(epoch, first=first)), list(batches.epoch(epoch))[first:])


def test_a_sample_is_augmented_alike_whatever_batch_it_comes_in(root: Path) -> None:
    every, fewer, all_at_once = (
        drawn_by_label(list(train(root, batch_size=size).epoch(7))) for size in (1, 4, COUNT)
    )
    assert every == all_at_once
    assert fewer.items() <= every.items()


def test_another_epoch_has_another_order_and_other_augmentation(root: Path) -> None:
    batches = train(root, batch_size=1)
    first, second = (list(batches.epoch(epoch)) for epoch in (0, 1))
    assert labels(first) != labels(second)
    before, after = drawn_by_label(first), drawn_by_label(second)
    assert all(
        a != b for label in range(COUNT) for a, b in zip(before[label], after[label], strict=True)
    )


def test_another_seed_has_another_order_and_other_augmentation(root: Path) -> None:
    one, other = (list(train(root, batch_size=1, seed=seed).epoch(0)) for seed in (0, 1))
    assert labels(one) != labels(other)
    here, there = drawn_by_label(one), drawn_by_label(other)
    assert all(
        a != b for label in range(COUNT) for a, b in zip(here[label], there[label], strict=True)
    )


def test_no_two_samples_draw_the_same_numbers(root: Path) -> None:
    drawn = [
        numbers
        for epoch in range(3)
        for numbers in drawn_by_label(list(train(root).epoch(epoch))).values()
    ]
    assert len({number for numbers in drawn for number in numbers}) == 3 * len(drawn)


def test_timms_augmentation_differs_between_epochs(root: Path) -> None:
    batches = train(root, transform=train_view(CONFIG), batch_size=COUNT)
    (first,), (second,) = (list(batches.epoch(epoch)) for epoch in (0, 1))
    unshuffled = [pictures[batch_labels.argsort()] for pictures, batch_labels in (first, second)]
    assert first[0].shape == (COUNT, 3, 16, 16)
    assert not torch.equal(*unshuffled)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generators_where_they_were(workers: int, root: Path) -> None:
    before = rng_states()
    list(train(root, workers=workers).epoch(0))
    list(make_eval_batches(root, samples(), seen(to_tensor), batch_size=4, workers=workers).epoch())
    assert rng_states() == before


def test_a_transform_that_fails_leaves_the_global_generators_too(root: Path) -> None:
    def fail(picture: Image.Image) -> Tensor:
        draw_from_every_generator(picture)
        raise KeyError("no such transform")

    before = rng_states()
    with pytest.raises(KeyError):
        list(train(root, transform=fail).epoch(0))
    assert rng_states() == before


def test_two_epochs_read_side_by_side_do_not_disturb_each_other(root: Path) -> None:
    batches = train(root)
    alone = list(batches.epoch(0)), list(batches.epoch(1))
    pairs = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    assert same([left for left, _ in pairs], alone[0])
    assert same([right for _, right in pairs], alone[1])


# Which pictures come


def test_training_drops_the_small_last_batch(root: Path) -> None:
    batches = train(root, batch_size=4)
    epoch = list(batches.epoch(0))
    assert [len(batch_labels) for _, batch_labels in epoch] == [4, 4]
    assert len(batches) == 2
    assert len(set(labels(epoch))) == 8


def test_what_one_epoch_drops_another_brings(root: Path) -> None:
    batches = train(root, batch_size=4)
    assert {label for epoch in range(8) for label in labels(list(batches.epoch(epoch)))} == set(
        range(COUNT)
    )


def test_fewer_pictures_than_a_batch_are_one_batch(root: Path) -> None:
    batches = train(root, count=3, batch_size=8)
    assert [sorted(batch_labels.tolist()) for _, batch_labels in batches.epoch(0)] == [[0, 1, 2]]
    assert len(batches) == 1


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (4, 2), (COUNT, 0), (100, 0)])
def test_evaluation_has_every_picture_once_in_its_order(
    batch_size: int, workers: int, root: Path
) -> None:
    batches = make_eval_batches(
        root, samples(), seen(to_tensor), batch_size=batch_size, workers=workers
    )
    epoch = list(batches.epoch())
    assert labels(epoch) == list(range(COUNT))
    assert len(epoch) == len(batches)
    for number, picture in enumerate(torch.cat([pictures for pictures, _ in epoch])):
        with Image.open(root / f"{number}.png") as original:
            np.testing.assert_array_equal(picture.numpy(), np.asarray(original))


def test_evaluation_is_the_same_in_every_epoch(root: Path) -> None:
    batches = make_eval_batches(root, samples(), eval_view(CONFIG), batch_size=4)
    assert same(list(batches.epoch(0)), list(batches.epoch(9)))


def test_labels_are_integers_and_pictures_floats(root: Path) -> None:
    pictures, batch_labels = next(
        make_eval_batches(root, samples(), eval_view(CONFIG), batch_size=4).epoch()
    )
    assert pictures.shape == (4, 3, 16, 16)
    assert pictures.dtype == torch.float32
    assert batch_labels.dtype == torch.int64


def test_without_augmentation_training_sees_what_evaluation_sees(root: Path) -> None:
    plain = train(
        root, transform=train_view(CONFIG, AugmentSettings(no_aug=True)), batch_size=COUNT
    )
    (pictures, batch_labels), *_ = plain.epoch(0)
    (expected, _), *_ = make_eval_batches(
        root, samples(), eval_view(CONFIG), batch_size=COUNT
    ).epoch()
    assert torch.equal(pictures[batch_labels.argsort()], expected)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_picture_that_broke_after_the_scan_is_named(
    damage: str, root: Path, tmp_path: Path
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes((root / f"{number}.png").read_bytes())
    batches = train(tmp_path, count=2, batch_size=2)
    list(batches.epoch(0))
    if damage == "gone":
        (tmp_path / "1.png").unlink()
    else:
        (tmp_path / "1.png").write_bytes((root / "1.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"1\.png"):
        list(batches.epoch(1))


# Digests


def test_the_order_digest_is_that_of_the_order(root: Path) -> None:
    batches = train(root)
    digests = [batches.order_digest(epoch) for epoch in range(20)]
    assert digests == [
        train(root, batch_size=1, transform=to_tensor).order_digest(epoch) for epoch in range(20)
    ]
    assert len(set(digests)) == 20
    assert train(root, seed=6).order_digest(0) not in digests


def test_the_order_digest_sees_names_and_labels(root: Path) -> None:
    relabelled = [Sample(sample.path, sample.label + 1, "") for sample in samples()]
    renamed = [Sample("x" + sample.path, sample.label, "") for sample in samples()]
    digests = {
        make_train_batches(root, each, seen(to_tensor), batch_size=3, seed=5).order_digest(0)
        for each in (samples(), relabelled, renamed)
    }
    assert len(digests) == 3


def test_asking_for_a_digest_does_not_disturb_an_epoch(root: Path) -> None:
    batches = train(root)
    expected = list(batches.epoch(0))
    running = batches.epoch(0)
    got = [next(running)]
    batches.order_digest(8)
    assert same(got + list(running), expected)


def test_the_batch_digest_sees_every_pixel_and_label() -> None:
    pictures, batch_labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    digest = batch_digest(pictures, batch_labels)
    assert digest == batch_digest(pictures.clone(), batch_labels.clone())
    changed = pictures.clone()
    changed[1, 2, 3, 3] = 1e-7
    assert batch_digest(changed, batch_labels) != digest
    assert batch_digest(pictures, torch.tensor([1, 0])) != digest


def test_the_batch_digest_is_of_values_not_of_memory_layout() -> None:
    pictures, batch_labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    assert batch_digest(pictures, batch_labels) == batch_digest(
        pictures.to(memory_format=torch.channels_last), batch_labels
    )


BROKEN_OFF = """
import socket, time
from multiprocessing import resource_sharer
from arelu_tl.data.loader import _quiet_worker

_quiet_worker(0)
shared = resource_sharer.DupFd(0)  # begins the thread that a batch is fetched from
address, _ = shared._id
for _ in range(20):
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(address)
    caller.close()
time.sleep(0.5)
1 / 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="batches travel by sockets of the file system")
def test_a_parent_that_ends_while_it_fetches_a_batch_makes_no_worker_print_a_traceback() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", BROKEN_OFF], capture_output=True, text=True, timeout=120
    ).stderr
    # What else goes wrong there is still told.
    assert printed.count("Traceback") == 1
    assert "ZeroDivisionError" in printed
