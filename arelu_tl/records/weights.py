"""State dicts in safetensors files, with metadata; the only module of records that needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arelu_tl.errors import ArtefactError
from arelu_tl.records.storage import replaced_file

_KEY = "arelu_tl"
# safetensors' dtype names, in the reverse of the order in which it stores tensors.
_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32",
    torch.complex64: "C64", torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
_RANKS = {dtype: rank for rank, dtype in enumerate(_NAMES)}


def save_weights(
    path: Path, state: dict[str, Tensor], card: dict[str, object] | None = None
) -> None:
    """Write a state dict atomically, with the JSON-able ``card`` in the header.

    The bytes are the same as safetensors would write, which first copies all tensors. Here one
    tensor at a time is copied, and only if it is on a GPU or not contiguous.

    Raises:
        StorageError: the file cannot be written.
    """
    # Only one key: safetensors writes several in arbitrary order, and equal models should give
    # equal files.
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"} if card is None else {_KEY: json.dumps(card)}
    }
    ordered = sorted(state.items(), key=lambda item: (-_RANKS[item[1].dtype], item[0].encode()))
    end = 0
    for key, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replaced_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            if tensor.numel():
                # PyTorch uses the CPU's byte order; all its platforms are little-endian, as the
                # file format is.
                file.write(
                    tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                )


def require_finite(
    state: Mapping[str, Tensor], where: str, own: Callable[[], Mapping[str, Tensor]]
) -> None:
    """Raise if weights hold NaN or infinite values, which would look like diverged training later.

    Args:
        where: source of the weights, at the start of the message.
        own: returns the state dict with which their model was built. A tensor may hold infinite
            values if it does so there (such as bounds that limit nothing).

    Raises:
        ArtefactError: a tensor holds NaN or infinite values; the message names the first.
    """
    for name, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all()):
            continue
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if not nan and name in (built := own()) and bool(built[name].isinf().any()):
            continue
        raise ArtefactError(
            f"{where}: {name} holds {nan} NaN and {infinite} infinite of its {tensor.numel()} "
            "numbers: the file is damaged, or was saved from a training that had diverged; use "
            "another"
        )


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, object] | None]:
    """Load (state dict on the CPU, card or None if there is none) from a safetensors file.

    Raises:
        ArtefactError: the file is missing, damaged, or not safetensors.
    """
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        card = json.loads(metadata[_KEY]) if _KEY in metadata else None
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ArtefactError(
            f"{path}: not a sound safetensors file: {' '.join(str(error).split())}"
        ) from None
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ArtefactError(f"{path}: holds something that is not a tensor")
    return state, card
