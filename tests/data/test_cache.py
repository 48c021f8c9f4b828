"""Pictures decoded once: the same batches to the last bit, from any process, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from arelu_tl.data import PictureCache, make_eval_batches, make_train_batches, open_picture, scan_folder, train_transform
from arelu_tl.data import cache as cache_module
from arelu_tl.records.storage import hold_folder

CONFIG = {"input_size": (3, 16, 16), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of our own, to see what is left in it. Its name is short: workers hand batches over through sockets
    below it, and a socket's whole name has at most 107 bytes, which pytest's own folders come near."""
    with tempfile.TemporaryDirectory(prefix="arelu-test-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures of every kind that is decoded in its own way, in train, val and test."""
    folder = tmp_path_factory.mktemp("kinds")
    stream = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            target = folder / split / label
            target.mkdir(parents=True)

            def noise(*shape: int) -> Image.Image:
                return Image.fromarray(stream.integers(0, 256, shape, dtype=np.uint8))

            noise(24, 31, 3).save(target / "plain.png")
            noise(40, 20, 3).save(target / "photo.jpg", quality=80)
            exif = Image.Exif()
            exif[0x0112] = 6
            noise(22, 34, 3).save(target / "turned.jpg", exif=exif)
            noise(20, 20, 3).convert("P").save(target / "palette.png")
            noise(20, 23, 4).save(target / "transparent.png")
            Image.fromarray(stream.integers(0, 2**16, (19, 21), dtype=np.uint16)).save(target / "wide.png")
            noise(25, 25).save(target / "grey.jpg")
            noise(1, 1, 3).save(target / "dot.bmp")
    return folder


def batches(root: Path, folder: Any, workers: int = 0) -> list[torch.Tensor]:
    train = make_train_batches(
        root, folder.splits["train"], train_transform(CONFIG), batch_size=4, seed=3, workers=workers, decoded=folder.decoded
    )
    val = make_eval_batches(
        root, folder.splits["val"], train_transform(CONFIG, no_aug=True), batch_size=5, workers=workers, decoded=folder.decoded
    )
    return [pictures for each in (train.epoch(2), val.epoch()) for pictures, _ in each]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_to_the_last_bit(root: Path, workers: int) -> None:
    plain = batches(root, scan_folder(root))
    with PictureCache() as cache:
        folder = scan_folder(root, cache=cache)
        assert folder == scan_folder(root)
        # From the cache and from nowhere else: the files of this folder do not exist.
        kept = batches(Path("nowhere"), pickle.loads(pickle.dumps(folder)), workers)
    assert len(plain) == len(kept)
    assert all(torch.equal(one, other) for one, other in zip(plain, kept, strict=True))


def test_every_training_and_validation_picture_is_kept_as_it_was_decoded_and_no_other(root: Path) -> None:
    with PictureCache() as cache:
        folder = scan_folder(root, cache=cache)
        assert folder.decoded is not None
        for split in ("train", "val"):
            for sample in folder.splits[split]:
                picture = folder.decoded.get(sample.digest)
                assert picture is not None
                assert picture.mode == "RGB"
                np.testing.assert_array_equal(np.asarray(picture), np.asarray(open_picture(root / sample.path)))
        assert all(folder.decoded.get(sample.digest) is None for sample in folder.splits["test"])


def test_another_process_reads_it(root: Path) -> None:
    code = "import pickle, sys; pictures, digest = pickle.load(sys.stdin.buffer); print(pictures.get(digest).size)"
    with PictureCache() as cache:
        folder = scan_folder(root, cache=cache)
        (sample,) = (each for each in folder.splits["val"] if each.path == "val/a/turned.jpg")
        given = pickle.dumps((folder.decoded, sample.digest))
        told = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=True)
    assert told.stdout.decode().split() == ["(22,", "34)"]


def test_it_ends_at_its_limit_and_the_rest_is_decoded(root: Path) -> None:
    plain = batches(root, scan_folder(root))
    with PictureCache(limit=6000) as cache:
        folder = scan_folder(root, cache=cache)
        assert 0 < cache.pictures.path.stat().st_size <= 6000
        assert 0 < len(cache.pictures.index) < 32
        kept = batches(root, folder)
    assert all(torch.equal(one, other) for one, other in zip(plain, kept, strict=True))


def test_a_full_disk_costs_the_cache_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.write, []

    def refuse(descriptor: int, content: Any) -> int:
        written.append(1)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, content)

    plain = batches(root, scan_folder(root))
    with PictureCache() as cache:
        monkeypatch.setattr(cache_module.os, "write", refuse)
        folder = scan_folder(root, cache=cache, threads=1)
        assert len(cache.pictures.index) == 3
        kept = batches(root, folder)
    assert all(torch.equal(one, other) for one, other in zip(plain, kept, strict=True))


def test_threads_do_not_write_into_each_other() -> None:
    stream = np.random.default_rng(0)
    pictures = {str(n): stream.integers(0, 256, (n % 7 + 1, n % 5 + 1, 3), dtype=np.uint8) for n in range(200)}
    with PictureCache() as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: cache.add(name, Image.fromarray(pictures[name])), [*pictures, *pictures]))
        for name, pixels in pictures.items():
            kept = cache.pictures.get(name)
            assert kept is not None
            np.testing.assert_array_equal(np.asarray(kept), pixels)
        assert cache.pictures.path.stat().st_size == sum(pixels.size for pixels in pictures.values())


def test_it_is_private_and_gone_after_an_interrupt(place: Path) -> None:
    cache = PictureCache()

    def study() -> None:
        with cache:
            cache.add("x", Image.new("RGB", (2, 2), "red"))
            picture = cache.pictures.get("x")
            assert picture is not None
            assert picture.getpixel((1, 1)) == (255, 0, 0)
            assert (cache.pictures.path.parent.stat().st_mode & 0o777) == 0o700
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study()
    assert list(place.iterdir()) == []
    assert cache.pictures.get("x") is None


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(place: Path) -> None:
    dead, young, living = (place / f"arelu-tl-pictures-{name}" for name in ("dead", "young", "living"))
    for folder in (dead, young, living):
        folder.mkdir()
        (folder / "pixels").write_bytes(b"123")
    for folder in (dead, living):
        os.utime(folder, (0, 0))
    with hold_folder(living), PictureCache():
        assert (dead.exists(), young.exists(), living.exists()) == (False, True, True)
