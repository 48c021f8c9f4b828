"""Record which pictures a model was trained on: a mark of each, the first 8 bytes of its SHA-256.

A picture that is not one of n training pictures matches one with probability n / 2^64: 5e-14 for a
million. Marks do not reveal what a picture shows, but anyone who has a picture can check whether it
was used in training, as ``evaluate`` does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from arelu_tl.errors import ArtefactError

# The key of the marks (as text) in an ONNX file's metadata, a pt2 file's extra files and an
# exported folder's config.json.
TRAINED_ON = "trained_on"
_BYTES = 8


@dataclass(frozen=True)
class TrainedOn:
    """The marks of a model's training pictures.

    Attributes:
        content: the concatenated marks, in ascending order.
        gone: number of further training pictures whose content is no longer known.
    """

    content: bytes = field(repr=False)
    gone: int = 0

    @classmethod
    def of(cls, digests: Iterable[str], gone: int = 0) -> TrainedOn:
        """Make a record from digests.

        Args:
            digests: SHA-256 in hex of each picture's bytes.
            gone: see the class.
        """
        return cls(b"".join(sorted({_mark(digest) for digest in digests})), gone)

    @classmethod
    def read(cls, content: bytes, source: object) -> TrainedOn:
        """Read a record from ``content``; ``source`` names its file in an error message.

        Raises:
            ArtefactError: ``content`` is not a sorted list of marks.
        """
        marks = [content[at : at + _BYTES] for at in range(0, len(content), _BYTES)]
        if len(content) % _BYTES or any(one >= other for one, other in pairwise(marks)):
            raise ArtefactError(f"{source}: its record of the training pictures is damaged")
        return cls(content)

    @classmethod
    def from_text(cls, text: object, source: object) -> TrainedOn:
        """Read a record from the result of ``to_text``; raises like ``read``."""
        try:
            content = base64.b64decode(text if isinstance(text, str) else "?", validate=True)
        except (binascii.Error, ValueError):
            content = b"?"
        return cls.read(content, source)

    def to_text(self) -> str:
        """Return the marks in base64: 10.7 bytes per picture."""
        return base64.b64encode(self.content).decode()

    def __contains__(self, digest: str) -> bool:
        return _mark(digest) in self._marks

    @cached_property
    def _marks(self) -> frozenset[bytes]:
        return frozenset(
            self.content[at : at + _BYTES] for at in range(0, len(self.content), _BYTES)
        )


def _mark(digest: str) -> bytes:
    return bytes.fromhex(digest[: 2 * _BYTES])
