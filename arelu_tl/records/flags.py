"""A yes or no for each picture as a short text, so that every evaluation's row can say which pictures were right."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pack_flags(flags: NDArray[np.bool_]) -> str:
    """``COUNT:BASE64`` of flags (N,), eight a byte: 170 characters for a thousand pictures."""
    return f"{len(flags)}:{base64.b64encode(np.packbits(flags).tobytes()).decode('ascii')}"


def unpack_flags(texts: Sequence[str]) -> NDArray[np.bool_]:
    """The flags (K, N) of K texts of ``pack_flags`` that are of the same N.

    Raises:
        ValueError: one is not such a text, or of another N.
    """
    counts = {text.partition(":")[0] for text in texts}
    count = counts.pop() if counts else ""
    if counts or not count.isdecimal():
        raise ValueError("not packed flags: no count, or several")
    try:
        packed = [binascii.a2b_base64(text[len(count) + 1 :], strict_mode=True) for text in texts]
    except ValueError as error:  # binascii's own among them
        raise ValueError(f"not packed flags: {error}") from None
    width = -(-int(count) // 8)
    if any(len(row) != width for row in packed):
        raise ValueError("not packed flags: their count does not fit them")
    rows = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(texts), width)
    return np.unpackbits(rows, axis=1, count=int(count)).astype(bool)
