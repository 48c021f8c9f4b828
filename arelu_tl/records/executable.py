"""Files that are programs to those who load them."""

from __future__ import annotations

from pathlib import Path

from arelu_tl.errors import ArtefactError

# torch.load, torch.export.load and pickle.load run what such a file tells them to.
EXECUTABLE_ENDINGS = (".pt2", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


def refuse_executable(path: Path) -> None:
    """
    Raises:
        ArtefactError: ``path`` names a file of a kind that is never loaded because loading it can execute code.
    """
    if path.suffix.lower() in EXECUTABLE_ENDINGS and not path.is_dir():
        raise ArtefactError(
            f"{path}: files of this kind can execute code when they are loaded, and are never loaded here: "
            "name the run, an exported safetensors folder or an .onnx file"
        )
