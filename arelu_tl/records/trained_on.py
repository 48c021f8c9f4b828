"""Which pictures a model was trained on: of each file the first 8 bytes of its SHA-256, its mark, and nothing else.

A picture that is none of n is taken for one of them with probability n / 2^64: 5e-14 where a million were trained on. Marks say
nothing of what a picture shows; whoever has a picture can tell whether it was trained on, as ``evaluate`` does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from arelu_tl.errors import ArtefactError

# The entry of an ONNX file's metadata, a pt2 file's extra files and a folder's config.json that holds them as text.
TRAINED_ON = "trained_on"
_BYTES = 8


@dataclass(frozen=True)
class TrainedOn:
    """Attributes:
    content: the marks in ascending order, one after the other.
    gone: how many pictures there were beside them whose content is not known any more.
    """

    content: bytes = field(repr=False)
    gone: int = 0

    @classmethod
    def of(cls, digests: Iterable[str], gone: int = 0) -> TrainedOn:
        """
        Args:
            digests: SHA-256 in hex of each picture's bytes.
        """
        return cls(b"".join(sorted({_mark(digest) for digest in digests})), gone)

    @classmethod
    def read(cls, content: bytes, source: object) -> TrainedOn:
        """What ``content``, of the file or artefact ``source``, holds.

        Raises:
            ArtefactError: that is no sorted list of marks.
        """
        marks = [content[at : at + _BYTES] for at in range(0, len(content), _BYTES)]
        if len(content) % _BYTES or any(one >= other for one, other in pairwise(marks)):
            raise ArtefactError(f"{source}: its record of the training pictures is damaged")
        return cls(content)

    @classmethod
    def from_text(cls, text: object, source: object) -> TrainedOn:
        """What ``to_text`` gave; raises as ``read`` does."""
        try:
            content = base64.b64decode(text if isinstance(text, str) else "?", validate=True)
        except (binascii.Error, ValueError):
            content = b"?"
        return cls.read(content, source)

    def to_text(self) -> str:
        """The marks in base64: 10.7 bytes a picture."""
        return base64.b64encode(self.content).decode()

    def __contains__(self, digest: str) -> bool:
        return _mark(digest) in self._marks

    @cached_property
    def _marks(self) -> frozenset[bytes]:
        return frozenset(self.content[at : at + _BYTES] for at in range(0, len(self.content), _BYTES))


def _mark(digest: str) -> bytes:
    return bytes.fromhex(digest[: 2 * _BYTES])
