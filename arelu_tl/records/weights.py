"""safetensors files of state dicts, with metadata; the only module of records that needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from arelu_tl.errors import ArtefactError
from arelu_tl.records.storage import write_bytes

_KEY = "arelu_tl"


def detached(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict on the CPU, each tensor with a memory of its own, as safetensors wants it.

    A module that a model holds under two names appears twice in its state dict, and both entries share one memory.
    """
    seen: set[int] = set()
    result = {}
    for key, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.data_ptr())
        result[key] = plain
    return result


def save_weights(path: Path, state: dict[str, Tensor], card: dict[str, object] | None = None) -> None:
    """Write a state dict, with a JSON-able description in the header; the file is whole or absent.

    Raises:
        StorageError: the disk refuses.
    """
    # One key only: safetensors writes several in an order of its own, and equal models shall be equal files.
    metadata = {"format": "pt"} if card is None else {_KEY: json.dumps(card)}
    write_bytes(path, save(detached(state), metadata=metadata))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, object] | None]:
    """(state dict on the CPU, the description or None where there is none).

    Raises:
        ArtefactError: missing, damaged, or not safetensors.
    """
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        card = json.loads(metadata[_KEY]) if _KEY in metadata else None
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ArtefactError(f"{path}: not a sound safetensors file: {' '.join(str(error).split())}") from None
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ArtefactError(f"{path}: holds something that is not a tensor")
    return state, card
