"""Tables of foreign text: nothing that a spreadsheet or a terminal acts on, and every cell as it was when read back."""

import csv
import io
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arelu_tl.errors import ArtefactError
from arelu_tl.records.csv_table import UNSEEN, csv_text, escape, read_table, unescape
from arelu_tl.records.storage import write_text

# Names of files as Python has them: any bytes but the two that no name holds.
names = st.binary(min_size=1).map(lambda b: os.fsdecode(b.replace(b"\0", b"0").replace(b"/", b"_")))
cells = (
    st.text()
    | names
    | st.sampled_from(
        ["=1+1", "'=1", "-1", "+1e-3", "@x", "\\n", "\\\\x1b", "a\r\nb", "\x1b[31m", "-x", ""]
    )
)


@given(cells)
def test_a_cell_is_read_as_it_was_written(text: str) -> None:
    assert unescape(escape(text)) == text


@given(cells)
def test_a_cell_is_visible_and_no_formula(text: str) -> None:
    shown = escape(text)
    assert not {unicodedata.category(c) for c in shown} & UNSEEN
    if shown.startswith(("=", "+", "-", "@")):
        assert float(shown) == float(text)


@given(st.lists(st.tuples(cells, cells), max_size=5))
def test_a_table_is_read_as_it_was_written(rows: list[tuple[str, str]]) -> None:
    text = csv_text(["path", "label"], rows)
    assert len(text.splitlines()) == 1 + len(rows)
    assert len(list(csv.reader(io.StringIO(text)))) == 1 + len(rows)


@pytest.mark.parametrize(
    "cell",
    [
        "dogs/a.png",
        "b,c\"d'",
        "=cmd()",
        "\x1b[31mred\nnext",
        os.fsdecode(b"\xff\xfe"),
        "e\u0301",
        " ",
    ],
)
def test_a_file_is_read_as_it_was_written(cell: str, tmp_path: Path) -> None:
    write_text(tmp_path / "t.csv", csv_text(["path", "label"], [[cell, "x"], ["y", cell]]))
    assert read_table(tmp_path / "t.csv") == [
        {"path": cell, "label": "x"},
        {"path": "y", "label": cell},
    ]


@pytest.mark.parametrize("content", [b"", b"a,b\n1\n", b"a,b\n\xff,1\n"])
def test_what_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_table(tmp_path / "t.csv")
