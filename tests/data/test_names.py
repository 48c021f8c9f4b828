"""Names that a reader, or some disks, cannot tell apart."""

import unicodedata

from arelu_tl.data.listing import same_but_for_case, same_letters

COMPOSED, APART = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def test_accents_written_in_two_ways_look_the_same_and_do_not_differ_in_case() -> None:
    assert same_letters([COMPOSED, "e", APART]) == [[COMPOSED, APART]]
    assert same_but_for_case([COMPOSED, "e", APART]) == []


def test_case_is_another_matter_than_accents() -> None:
    assert same_but_for_case(["Cat", "dog", "cat", COMPOSED.upper(), APART]) == [
        ["Cat", "cat"],
        [COMPOSED.upper(), APART],
    ]
    assert same_letters(["Cat", "cat"]) == []
