"""Little folders of pictures, by what lies where."""

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from PIL import Image

from arelu_tl.data.folder import PictureFolder

TEXT = b"this is no picture\n"


@cache
def png(number: int) -> bytes:
    """A 1 x 1 PNG; another number is another picture."""
    out = io.BytesIO()
    Image.new("RGB", (1, 1), (number % 256, number // 256 % 256, number // 65536)).save(out, "PNG")
    return out.getvalue()


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def pictures(*folders: str, each: int = 3, first: int = 0) -> dict[str, bytes]:
    """``each`` different pictures in every folder, from the ``first`` on."""
    names = [f"{folder}/{number}.png" for folder in folders for number in range(each)]
    return {name: png(first + number) for number, name in enumerate(names)}


def paths(folder: PictureFolder, split: str) -> list[str]:
    return [sample.path for sample in folder.splits[split]]


def every_path(folder: PictureFolder) -> list[str]:
    return sorted(path for split in folder.splits for path in paths(folder, split))


SPLIT = pictures("train/cat", "train/dog", "val/cat", "val/dog")
FLAT = pictures("cat", "dog", each=5)
