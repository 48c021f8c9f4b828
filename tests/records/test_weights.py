"""Files of weights are safetensors', to the last byte, and written without a copy of what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from arelu_tl.records.weights import load_weights, save_weights

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.int32, torch.uint32,
    torch.float32, torch.complex64, torch.float64, torch.int64, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
CARD = {"classes": ['a"b', "\u00e4\u4e2d", "\x07\t\n", "\U0001f600"], "top1": 0.5}


@pytest.mark.parametrize("card", [None, CARD], ids=["bare", "with a card"])
def test_a_file_is_what_safetensors_would_have_written(
    tmp_path: Path, card: dict[str, object] | None
) -> None:
    torch.manual_seed(0)
    state = {
        f"{n % 3}.{dtype}": (torch.randn(n + 1, 3) * 9).abs().to(dtype)
        for n, dtype in enumerate(DTYPES)
    }
    state |= {
        "none": torch.zeros(0, 4),
        "one": torch.tensor(3),
        'odd "\u00e9\n': torch.ones(2, 3, 4, 4),
    }
    save_weights(tmp_path / "w", state, card)
    metadata = {"format": "pt"} if card is None else {"arelu_tl": json.dumps(card)}
    assert (tmp_path / "w").read_bytes() == save(state, metadata=metadata)


def test_any_layout_and_what_two_names_share_read_back(tmp_path: Path) -> None:
    plain = torch.arange(240.0).reshape(2, 5, 4, 6)
    state = {
        "plain": plain,
        "again": plain,
        "part": plain[:, 1:3],
        "last": plain.contiguous(memory_format=torch.channels_last),
    }
    state |= {"turned": plain.permute(3, 2, 1, 0), "learnt": torch.nn.Parameter(plain)}
    save_weights(tmp_path / "w", state)
    loaded, card = load_weights(tmp_path / "w")
    assert card is None
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
