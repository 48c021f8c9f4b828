"""Pictures kept: the same batches to the last bit, shared by every process, bounded, and never wrong pixels."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from arelu_tl.data import cache as cache_module
from arelu_tl.data import gate as gate_module
from arelu_tl.data import store as store_module
from arelu_tl.data.cache import open_cache
from arelu_tl.data.folder import PictureFolder, scan_folder
from arelu_tl.data.loader import eval_view, make_eval_batches, make_train_batches, train_view
from arelu_tl.data.recipe import Recipe, Reduced, Whole
from arelu_tl.data.store import PictureStore
from arelu_tl.errors import ConfigError, StorageError
from arelu_tl.records.settings import AugmentSettings, ScanSettings

CONFIG = {
    "input_size": (3, 16, 16),
    "interpolation": "bilinear",
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "crop_pct": 0.8,
}
ROOM = 10**9
RECIPE = Reduced(12)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's cache folder and a memory of our own. The name is short: workers hand batches over through sockets below the
    temporary folder, and a socket's whole name has at most 107 bytes, which pytest's own folders come near."""
    with tempfile.TemporaryDirectory(prefix="arelu-test-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        monkeypatch.setattr(cache_module, "MEMORY", Path(folder) / "shm")
        (Path(folder) / "shm").mkdir()
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
            noise(90, 70, 3).save(target / "photo.jpg", quality=80)
            exif = Image.Exif()
            exif[0x0112] = 6
            noise(52, 64, 3).save(target / "turned.jpg", exif=exif)
            noise(20, 20, 3).convert("P").save(target / "palette.png")
            noise(20, 23, 4).save(target / "transparent.png")
            Image.fromarray(stream.integers(0, 2**16, (19, 21), dtype=np.uint16)).save(
                target / "wide.png"
            )
            noise(25, 25).save(target / "grey.jpg")
            noise(1, 1, 3).save(target / "dot.bmp")
    return folder


def recipes(**augmentation: Any) -> dict[str, Recipe]:
    return {
        "train": train_view(CONFIG, AugmentSettings(**augmentation)).recipe,
        "val": eval_view(CONFIG).recipe,
    }


def batches(
    root: Path, folder: PictureFolder, workers: int = 0, **augmentation: Any
) -> list[torch.Tensor]:
    train, val = (folder.splits[split] for split in ("train", "val"))
    view, other = train_view(CONFIG, AugmentSettings(**augmentation)), eval_view(CONFIG)
    learning = make_train_batches(
        root, train, view, batch_size=4, seed=3, workers=workers, cache=folder.cache
    )
    checking = make_eval_batches(
        root, val, other, batch_size=5, workers=workers, cache=folder.cache
    )
    return [pictures for each in (learning.epoch(2), checking.epoch()) for pictures, _ in each]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def picture(seed: int = 0, width: int = 6, height: int = 5) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def digest(number: int) -> str:
    return f"{number:064x}"


def equal(one: Image.Image | None, other: Image.Image) -> bool:
    return (
        one is not None
        and one.mode == other.mode
        and one.size == other.size
        and one.tobytes() == other.tobytes()
    )


def files(store: PictureStore) -> list[Path]:
    return sorted(store.root.glob("*/*/*"))


# The same batches


@pytest.mark.parametrize(
    "augmentation", [{}, {"no_aug": True}, {"scale": (0.08, 1.0), "re_prob": 0.5}], ids=str
)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_batches_are_the_same_to_the_last_bit(
    root: Path, kind: Any, workers: int, augmentation: dict[str, Any]
) -> None:
    plain = batches(root, scan_folder(root), **augmentation)
    with open_cache(kind, ROOM) as cache:
        folder = scan_folder(root, cache=cache, recipes=recipes(**augmentation))
        assert folder == scan_folder(root)
        # From the cache and from nowhere else: the files of this folder do not exist.
        kept = batches(Path("nowhere"), pickle.loads(pickle.dumps(folder)), workers, **augmentation)
    assert same(plain, kept)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_gate_did_not_keep_the_first_look_does(root: Path, workers: int) -> None:
    plain = batches(root, scan_folder(root))
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        folder = scan_folder(root, cache=cache)
        assert files(cache) == []
        assert same(plain, batches(root, folder, workers))
        assert len(files(cache)) == 32
        assert same(plain, batches(Path("nowhere"), folder, workers))


def test_off_keeps_nothing(root: Path, place: Path) -> None:
    with open_cache("off", ROOM) as cache:
        assert cache is None
        scan_folder(root, cache=cache, recipes=recipes())
        assert [path.name for path in place.iterdir()] == ["shm"]


def test_a_file_that_changed_since_the_scan_is_not_kept_as_what_it_was(
    root: Path, tmp_path: Path
) -> None:
    picture(1).save(tmp_path / "x.png")
    folder = scan_folder(root)
    sample = replace(folder.splits["train"][0], path="x.png")
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        list(
            make_eval_batches(
                tmp_path, [sample], eval_view(CONFIG), batch_size=1, cache=cache
            ).epoch()
        )
        assert files(cache) == []


# The gate


def counted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the gate decodes from now on."""
    decoded: list[bytes] = []
    for kind in (Whole, Reduced):

        def opened(self: Any, content: bytes, before: Any = kind.open) -> Image.Image:
            decoded.append(content)
            return before(self, content)

        monkeypatch.setattr(kind, "open", opened)
    monkeypatch.setattr(gate_module, "Whole", Whole)
    return decoded


def test_what_is_known_to_be_good_is_not_decoded_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_cache("disk", ROOM) as cache:
        first = scan_folder(root, cache=cache, recipes=recipes())
    decoded = counted(monkeypatch)
    with open_cache("disk", ROOM) as cache:
        assert scan_folder(root, cache=cache, recipes=recipes()) == first
        assert decoded == []
        scan_folder(root, cache=cache, recipes=recipes(scale=(0.9, 1.0)))
        assert len(decoded) == 16
    scan_folder(root)
    assert len(decoded) == 16 + 48


def test_a_file_damaged_since_is_found(root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            for name in ("photo.jpg", "turned.jpg"):
                target = tmp_path / split / label / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((root / split / label / name).read_bytes())
    with open_cache("disk", ROOM) as cache:
        scan_folder(tmp_path, cache=cache, recipes=recipes())
    bad = tmp_path / "train/a/photo.jpg"
    bad.write_bytes(bad.read_bytes()[:-900])
    with open_cache("disk", ROOM) as cache:
        folder = scan_folder(
            tmp_path, ScanSettings(on_bad_image="skip"), cache=cache, recipes=recipes()
        )
    assert [each.path for each in folder.rejected] == ["train/a/photo.jpg"]


def test_a_split_of_ours_is_known_before_the_gate(root: Path) -> None:
    with open_cache("disk", ROOM) as cache:
        flat = scan_folder(
            root / "train", ScanSettings(val_fraction=0.5), cache=cache, recipes=recipes()
        )
        assert flat.layout == "flat"
        assert flat == scan_folder(root / "train", ScanSettings(val_fraction=0.5))
        kept = batches(Path("nowhere"), flat)
    assert same(
        kept, batches(root / "train", scan_folder(root / "train", ScanSettings(val_fraction=0.5)))
    )


# Never wrong pixels


@pytest.mark.parametrize("at", [0, 8, 30, 56, 60, 64, 70, -1])
def test_an_altered_byte_anywhere_is_noticed_and_mended(at: int) -> None:
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        cache.put(RECIPE, digest(1), picture())
        (path,) = files(cache)
        content = bytearray(path.read_bytes())
        content[at] ^= 4
        path.write_bytes(content)
        assert cache.get(RECIPE, digest(1)) is None
        assert cache.used() == 0
        cache.put(RECIPE, digest(1), picture())
        assert equal(cache.get(RECIPE, digest(1)), picture())


@pytest.mark.parametrize("length", [0, 1, 67, 68, 100, -1])
def test_a_short_file_is_noticed(length: int) -> None:
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        cache.put(RECIPE, digest(1), picture())
        (path,) = files(cache)
        path.write_bytes(path.read_bytes()[:length])
        assert cache.get(RECIPE, digest(1)) is None


def test_another_pictures_file_is_noticed() -> None:
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        cache.put(RECIPE, digest(1), picture(1))
        cache.put(RECIPE, digest(2), picture(2))
        one, other = files(cache)
        one.write_bytes(other.read_bytes())
        assert cache.get(RECIPE, digest(1)) is None
        cache.put(Reduced(13), digest(2), picture(3))
        os.replace(other, next(path for path in files(cache) if path != other))
        assert cache.get(Reduced(13), digest(2)) is None


def test_training_goes_on_with_a_damaged_cache(root: Path) -> None:
    plain = batches(root, scan_folder(root))
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        folder = scan_folder(root, cache=cache, recipes=recipes())
        for path in files(cache)[::2]:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert same(plain, batches(root, folder))
        assert same(plain, batches(Path("nowhere"), folder))


# Limit and room


def test_it_ends_at_its_limit_and_the_rest_is_decoded(root: Path) -> None:
    plain = batches(root, scan_folder(root))
    with open_cache("disk", 6000) as cache:
        assert cache is not None
        folder = scan_folder(root, cache=cache, recipes=recipes())
        assert 0 < len(files(cache)) < 32
        assert cache.used() == sum(path.stat().st_size for path in files(cache)) <= 6000
        assert same(plain, batches(root, folder, workers=2))
        assert cache.used() <= 6000


def test_the_longest_unused_make_room_and_those_in_use_do_not() -> None:
    size = len(store_module._pack(RECIPE, digest(0), picture()))
    with open_cache("disk", 4 * size) as cache:
        assert cache is not None
        for number in range(4):
            cache.put(RECIPE, digest(number), picture(number))
            os.utime(cache._path(RECIPE, digest(number)), (1000 + number, 1000 + number))
    with open_cache("disk", 4 * size) as cache:
        assert cache is not None
        assert cache.holds(RECIPE, digest(0))
        assert equal(cache.get(RECIPE, digest(1)), picture(1))
        for number in (7, 8, 9):
            cache.put(RECIPE, digest(number), picture(number))
        left = [number for number in range(10) if cache.get(RECIPE, digest(number)) is not None]
        assert left == [0, 1, 7, 8]
        assert cache.full
        assert cache.used() == 4 * size


def test_a_lower_limit_holds_for_what_was_there_before() -> None:
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        for number in range(10):
            cache.put(RECIPE, digest(number), picture(number))
    with open_cache("disk", 400) as cache:
        assert cache is not None
        assert cache.used() == sum(path.stat().st_size for path in files(cache)) <= 400


def test_a_full_disk_costs_the_cache_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def refuse(self: Path, content: bytes, before: Any = Path.write_bytes) -> int:
        written.append(self)
        if len(written) > 3:
            before(self, content[:10])
            raise OSError(28, "No space left on device")
        return int(before(self, content))

    plain = batches(root, scan_folder(root))
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        monkeypatch.setattr(Path, "write_bytes", refuse)
        folder = scan_folder(root, cache=cache, recipes=recipes(), threads=1)
        assert len(files(cache)) == 3
        assert cache.used() == sum(path.stat().st_size for path in files(cache))
        assert same(plain, batches(root, folder))


def test_a_machine_without_the_folder_decodes(root: Path) -> None:
    folder = replace(scan_folder(root), cache=PictureStore(Path("/nowhere/at/all"), ROOM))
    assert same(batches(root, scan_folder(root)), batches(root, folder))


# Several at once


def test_threads_do_not_disturb_each_other() -> None:
    pictures = {digest(n): picture(n, n % 7 + 1, n % 5 + 1) for n in range(200)}
    with open_cache("disk", ROOM) as cache, ThreadPoolExecutor(8) as pool:
        assert cache is not None
        list(pool.map(lambda name: cache.put(RECIPE, name, pictures[name]), pictures))
        assert all(equal(cache.get(RECIPE, name), each) for name, each in pictures.items())
        assert cache.used() == sum(path.stat().st_size for path in files(cache))


FILL = """
    import sys
    import numpy as np
    from PIL import Image
    from arelu_tl.data.cache import open_cache
    from arelu_tl.data.recipe import Reduced
    with open_cache("disk", int(sys.argv[1])) as cache:
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(300):
            pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
            cache.put(Reduced(12), f"{number:064x}", Image.fromarray(pixels))
"""


def filler(limit: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(FILL), str(limit)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("limit", [ROOM, 20_000])
def test_processes_fill_it_together(limit: int) -> None:
    processes = [filler(limit) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n")
        assert process.returncode == 0
    with open_cache("disk", limit) as cache:
        assert cache is not None
        kept = [cache.get(RECIPE, digest(number)) for number in range(300)]
        assert all(
            equal(each, picture(number)) for number, each in enumerate(kept) if each is not None
        )
        assert sum(each is not None for each in kept) == len(files(cache))
        assert cache.used() == sum(path.stat().st_size for path in files(cache)) <= limit
        assert len(files(cache)) == 300 if limit == ROOM else 0 < len(files(cache)) < 300


def test_a_writer_killed_midway_leaves_nothing_that_is_read(root: Path) -> None:
    code = """
        import os, signal
        from pathlib import Path
        from PIL import Image
        from arelu_tl.data.cache import open_cache
        from arelu_tl.data.recipe import Reduced
        before = Path.write_bytes
        def die(self, content):
            before(self, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        with open_cache("disk", 10**9) as cache:
            cache.put(Reduced(12), f"{1:064x}", Image.new("RGB", (9, 9), "red"))
            cache.note_good(f"{1:064x}", b"noted")
            descriptor = os.open(cache._verdicts, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, b"00000000000")
            Path.write_bytes = die
            cache.put(Reduced(12), f"{2:064x}", Image.new("RGB", (9, 9), "blue"))
    """
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == -signal.SIGKILL
    )
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        assert cache.verdict(digest(1)) == b"noted"
        assert cache.verdict(digest(2)) is None
        assert equal(cache.get(RECIPE, digest(1)), Image.new("RGB", (9, 9), "red"))
        assert cache.get(RECIPE, digest(2)) is None
        assert len(files(cache)) == 1
        assert cache.used() == files(cache)[0].stat().st_size
        cache.note_good(digest(3), b"noted")
        cache.note_good(digest(4), b"noted")
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        # The half line has swallowed the one behind it, and no more.
        assert (cache.verdict(digest(3)), cache.verdict(digest(4))) == (None, b"noted")


# Where


def test_on_disk_the_next_study_finds_it_and_nobody_else_may_look(place: Path) -> None:
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        cache.put(RECIPE, digest(1), picture())
        assert cache.root == place / "arelu-tl" / "pictures"
        assert cache.root.stat().st_mode & 0o777 == 0o700
    with open_cache("auto", ROOM) as cache:
        assert cache is not None
        assert equal(cache.get(RECIPE, digest(1)), picture())


def test_in_memory_it_is_shared_and_gone_with_the_last_who_uses_it(place: Path) -> None:
    def study() -> None:
        with open_cache("ram", ROOM) as first:
            assert first is not None
            with open_cache("ram", ROOM) as second:
                assert second is not None
                second.put(RECIPE, digest(1), picture())
            assert equal(first.get(RECIPE, digest(1)), picture())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study()
    assert list((place / "shm").iterdir()) == []


def test_what_a_killed_study_left_in_memory_goes_with_the_next(place: Path) -> None:
    left = place / "shm" / f"arelu-tl-pictures-{os.getuid()}"
    left.mkdir(mode=0o700)
    (left / "usage").write_text("123")
    with open_cache("ram", ROOM) as cache:
        assert cache is not None
        assert cache.used() == 0
    assert list((place / "shm").iterdir()) == []


def test_a_folder_in_memory_that_is_somebody_elses_is_refused(place: Path) -> None:
    (place / "elsewhere").mkdir()
    (place / "shm" / f"arelu-tl-pictures-{os.getuid()}").symlink_to(place / "elsewhere")
    with pytest.raises(StorageError, match="somebody else"), open_cache("ram", ROOM):
        pass


def test_a_system_without_memory_folder_says_so(place: Path) -> None:
    (place / "shm").rmdir()
    with pytest.raises(ConfigError, match="`cache='disk'`"), open_cache("ram", ROOM):
        pass


def test_a_cache_folder_that_cannot_be_made_says_so_and_auto_does_without(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "file"))
    with pytest.raises(StorageError, match="`cache='off'`"), open_cache("disk", ROOM):
        pass
    with open_cache("auto", ROOM) as cache:
        assert cache is not None
        assert cache.root.parent == place / "shm"
    (place / "shm").rmdir()
    with open_cache("auto", ROOM) as cache:
        assert cache is None


def test_a_study_holds_on_while_another_ends(place: Path) -> None:
    code = "from arelu_tl.data.cache import open_cache\nwith open_cache('disk', 10**9) as c: print(c.used())"
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        beside = cache._path(RECIPE, digest(5)).with_name("half.tmp")
        beside.parent.mkdir(parents=True)
        beside.write_bytes(b"being written")
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert beside.exists()
    with open_cache("disk", ROOM):
        assert not beside.exists()


def test_a_thousand_are_read_in_no_time() -> None:
    with open_cache("disk", ROOM) as cache:
        assert cache is not None
        cache.put(RECIPE, digest(1), picture(1, 300, 225))
        began = time.perf_counter()
        for _ in range(1000):
            assert cache.get(RECIPE, digest(1)) is not None
        assert time.perf_counter() - began < 5
