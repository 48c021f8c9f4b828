"""Pictures and runs that several tests share. Everything is real: files on disk, timm models, trained weights."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import SHARED, begin_server
from PIL import Image

# Under pytest-xdist there is a width of 80, to which commands would break what they write into a pipe.
os.environ.pop("COLUMNS", None)

# The longest files first, so that they do not begin when all others have ended.
_LONGEST = (
    "test_end_to_end.py", "test_export.py", "test_storage_faults.py", "test_cli.py", "test_routing.py", "test_security.py",
    "test_arms.py", "test_launch.py", "test_bad_input.py", "test_fold.py", "test_sweep.py", "test_rehearsal.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        # Of several test processes only this one runs no tests, and they share a server that it starts while they import torch.
        os.environ[SHARED] = str(begin_server())
    else:
        import torch

        # Tiny models spend more time handing work to a second thread than doing it.
        torch.set_num_threads(1)
    # pytest-xdist would begin with the files of the most tests, which are not those that take long.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's cache of pictures, here or in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """A function that writes ROOT/SPLIT/CLASS/*.png; a class is a colour, so that it can be learnt in a few steps."""

    def make(classes: int = 3, train: int = 8, val: int = 4, size: int = 40) -> Path:
        root = tmp_path_factory.mktemp("pictures")
        stream = np.random.default_rng(0)
        for label in range(classes):
            colour = np.array([255 * (label % 3 == c) for c in range(3)]) // (1 + label // 3)
            for split, count in (("train", train), ("val", val)):
                folder = root / split / f"class {label}"
                folder.mkdir(parents=True)
                for number in range(count):
                    noise = stream.integers(0, 120, (size, size, 3))
                    Image.fromarray(np.clip(colour + noise - 60, 0, 255).astype(np.uint8)).save(
                        folder / f"{number}.png"
                    )
        return root

    return make
