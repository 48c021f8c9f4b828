"""safetensors files of state dicts, with metadata; the only module of records that needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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


def require_finite(state: Mapping[str, Tensor], where: str, own: Callable[[], Mapping[str, Tensor]]) -> None:
    """Look through weights before they are used: a NaN in them would come out as a training's that diverged.

    Args:
        where: they come from, as the message begins.
        own: gives what the model that they are for was built with; where that has infinities (bounds that bind nothing), so may
            they.

    Raises:
        ArtefactError: a tensor holds NaN or an infinity; the first such is named.
    """
    for name, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all()):
            continue
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if not nan and name in (built := own()) and bool(built[name].isinf().any()):
            continue
        raise ArtefactError(
            f"{where}: {name} holds {nan} NaN and {infinite} infinite of its {tensor.numel()} numbers: the file is damaged, or "
            "was saved from a training that had diverged; use another"
        )


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
