"""The table of supported architectures: it says what surgery does, for every one of them."""

from __future__ import annotations

import pytest
import timm

from arelu_tl.explain.sites.survey import survey
from arelu_tl.explain.sites.survey_table import SurveyRow, read_survey

# Of whatever release the table is, it must hold for the one that is installed: else scripts/survey_timm.py makes it anew.
_, ROWS = read_survey()
TABLE = {row.name: row for row in ROWS}
# One of each way in which a ReLU can be there; the slow suite asks about all of them.
FAMILIES = [
    "mobilenetv2_100", "efficientvit_b0", "legacy_seresnet18", "xception41p",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_says_what_surgery_does(name: str) -> None:
    assert survey(name) == TABLE[name]


def test_no_architecture_is_refused() -> None:
    assert [row.name for row in ROWS if row.refusal] == []
    assert len(ROWS) >= 634


def test_every_site_is_of_one_kind() -> None:
    assert [row.name for row in ROWS if row.module + row.shared + row.functional != row.sites] == []


def test_an_architecture_without_relu_has_no_sites() -> None:
    assert survey("test_vit") == SurveyRow("test_vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_every_architecture_converts_with_none_left_and_parameters_of_its_own(name: str) -> None:
    assert survey(name) == TABLE[name]


@pytest.mark.slow
def test_the_table_misses_no_architecture() -> None:
    others = [name for name in timm.list_models() if name not in TABLE]
    assert [name for name in others if survey(name) != SurveyRow(name)] == []
