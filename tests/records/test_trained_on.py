"""The marks of training pictures: eight bytes each, known again whatever the order, and damaged ones refused."""

import hashlib
from typing import Any

import pytest

from arelu_tl.errors import ArtefactError
from arelu_tl.records.trained_on import TrainedOn

DIGESTS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]


def test_a_record_knows_its_pictures_and_no_others() -> None:
    record = TrainedOn.of(reversed(DIGESTS[:1000]))
    assert record == TrainedOn.of(DIGESTS[:1000] * 2)
    assert len(record.content) == 8 * 1000
    assert [digest in record for digest in DIGESTS] == [True] * 1000 + [False] * 1000
    assert TrainedOn.read(record.content, "") == TrainedOn.from_text(record.to_text(), "") == record


@pytest.mark.parametrize("content", [b"1234567", b"bbbbbbbbaaaaaaaa", b"aaaaaaaaaaaaaaaa"])
def test_what_is_no_sorted_list_of_marks_is_refused(content: bytes) -> None:
    with pytest.raises(ArtefactError, match="m: its record of the training pictures is damaged"):
        TrainedOn.read(content, "m")


@pytest.mark.parametrize("text", [None, 5, ["a"], "no base64!", "YWJj", "\udcff"])
def test_text_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(ArtefactError, match="m: its record of the training pictures is damaged"):
        TrainedOn.from_text(text, "m")
