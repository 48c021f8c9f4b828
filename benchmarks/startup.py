"""How long commands take that train nothing, beside importing what they cannot do without.

    python benchmarks/startup.py [--rounds 7]

Whole processes, in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tables import Rows, markdown, spread

PYTHON = [sys.executable, "-c"]
OURS = [sys.executable, "-m", "arelu_tl"]
_TRAIN = [
    "--model",
    "test_resnet",
    "--no-pretrained",
    "--img-size",
    "32",
    "--epochs",
    "1",
    "-j",
    "0",
    "--name",
    "m",
]


def rows(rounds: int = 7) -> Rows:
    """A row a command: seconds, and how much more than the bare imports that it stands beside."""
    with tempfile.TemporaryDirectory() as place:
        _trained(Path(place))
        commands = {
            "arelu-tl --help": [*OURS, "--help"],
            "arelu-tl finetune --help": [*OURS, "finetune", "--help"],
            "arelu-tl finetune --lr none (an error)": [*OURS, "finetune", "data", "--lr", "none"],
            "arelu-tl compare (two runs)": [*OURS, "compare", "runs/m", "--output", "compared"],
            "python -c 'import torch, timm'": [*PYTHON, "import torch, timm"],
            "arelu-tl inspect resnet18": [*OURS, "inspect", "resnet18", "--no-pretrained"],
            "python -c 'import onnxruntime, numpy, PIL.Image'": [
                *PYTHON,
                "import onnxruntime, numpy, PIL.Image",
            ],
            "arelu-tl predict model.onnx picture.png": [
                *OURS,
                "predict",
                "model.onnx",
                "picture.png",
            ],
        }
        bare = {"arelu-tl inspect resnet18": "python -c 'import torch, timm'"}
        bare["arelu-tl predict model.onnx picture.png"] = (
            "python -c 'import onnxruntime, numpy, PIL.Image'"
        )
        for command in commands.values():  # once for the disk
            _seconds(command, place)
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                taken[name].append(_seconds(command, place))
    more = {
        name: spread([ours - theirs for ours, theirs in zip(taken[name], taken[base], strict=True)])
        for name, base in bare.items()
    }
    return [
        {
            "command": f"`{name}`",
            "seconds": spread(values)["median"],
            "more than the imports above": more[name]["median"] if name in more else None,
        }
        | {key: spread(values)[key] for key in ("least", "greatest")}
        for name, values in taken.items()
    ]


def _seconds(command: list[str], place: str) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    ended = time.perf_counter()
    if done.returncode != (2 if "none" in command else 0):
        raise RuntimeError(f"{command}: {done.stderr}")
    return ended - began


def _trained(place: Path) -> None:
    """A folder of pictures, a study of one arm on it, and its export."""
    stream = np.random.default_rng(0)
    for label in "ab":
        folder = place / "data" / label
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(stream.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    Image.fromarray(stream.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        place / "picture.png"
    )
    for command in (
        ["finetune", "data", *_TRAIN],
        ["export", "runs/m", "--format", "onnx", "--output", "model.onnx"],
    ):
        subprocess.run([*OURS, *command], cwd=place, capture_output=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    print(markdown(rows(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
