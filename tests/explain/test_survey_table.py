"""The table of timm's architectures: what is written reads back, and what is shipped is whole."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arelu_tl.explain.sites.survey_table import SurveyRow, read_survey, write_survey

names = st.from_regex(r"[a-z0-9_]{1,12}(\.[a-z0-9_]{1,8})?", fullmatch=True)
count = st.integers(0, 10**6)
sentence = st.text(
    st.characters(min_codepoint=32, exclude_categories=("C", "Z"), include_characters=" "),
    max_size=40,
).map(lambda text: " ".join(text.split()))
rows = st.builds(SurveyRow, names, count, count, count, count, count, count, count, sentence)


@given(
    st.lists(rows, max_size=8), st.from_regex(r"[0-9]+\.[0-9]+(\.[0-9]+)?(\.dev0)?", fullmatch=True)
)
@settings(deadline=None, max_examples=60)
def test_a_written_table_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, table: list[SurveyRow], release: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.tsv"
    write_survey(table, release, path)
    assert read_survey(path) == (release, table)


@pytest.mark.parametrize("refusal", ["two\nlines", "a\ttab"])
def test_a_refusal_of_several_lines_does_not_break_the_table(tmp_path: Path, refusal: str) -> None:
    write_survey([SurveyRow("resnet18", refusal=refusal)], "1.0", tmp_path / "table.tsv")
    assert read_survey(tmp_path / "table.tsv")[1][0].name == "resnet18"


def test_a_table_names_its_columns_and_where_it_comes_from(tmp_path: Path) -> None:
    write_survey([SurveyRow("resnet18", 17, 17)], "1.0.31", tmp_path / "table.tsv")
    origin, columns, row = (tmp_path / "table.tsv").read_text().splitlines()
    assert origin == "# timm 1.0.31: written by scripts/survey_timm.py"
    assert columns.split("\t")[:2] == ["name", "sites"]
    assert row.split("\t") == ["resnet18", "17", "17", "0", "0", "0", "0", "0", ""]


def test_the_shipped_table_is_sorted_out() -> None:
    release, table = read_survey()
    assert release.startswith("1.")
    assert len({row.name for row in table}) == len(table) > 600
    by_name = {row.name: row for row in table}
    assert by_name["resnet18"].sites == 17
    converted = [row for row in table if row.sites]
    assert all(row.sites == row.module + row.shared + row.functional for row in converted)
    assert [row.name for row in converted if row.refusal] == []
