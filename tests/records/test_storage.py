"""Files are whole or absent, folders belong to one process, and a crash costs at most the row being written."""

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arelu_tl.errors import AreluTlError, ArtefactError, StorageError
from arelu_tl.records.runs import run_name
from arelu_tl.records.storage import (
    RowWriter,
    claim_folder,
    hold_folder,
    make_folder,
    read_json,
    read_rows,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def fail_with(number: int) -> Any:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


# Whole files


def test_written_content_replaces_the_old_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"\x00new\r\n")
    assert path.read_bytes() == b"\x00new\r\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("step", "number"), [("replace", errno.ENOSPC), ("fsync", errno.EIO)])
def test_the_old_content_survives_a_failure(
    step: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail_with(number))
        with pytest.raises(StorageError, match=r"summary\.json") as caught:
            write_bytes(path, b"new")
    assert os.strerror(number) in str(caught.value)
    assert path.read_bytes() == b"old"
    write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer"


@pytest.mark.parametrize("write", [lambda path: write_bytes(path, b"x"), RowWriter, make_folder])
def test_a_parent_that_is_a_file_is_a_storage_error_that_names_the_path(
    write: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(StorageError, match="below"):
        write(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_bytes() == b"in the way"


def test_a_storage_error_is_an_error_of_the_system_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write"):
        write_bytes(tmp_path / "nowhere" / "file", b"x")


def test_a_reader_sees_one_content_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {letter * 200_000 for letter in (b"a", b"b")}
    write_bytes(path, b"a" * 200_000)
    done = threading.Event()

    def read() -> set[bytes]:
        seen = {path.read_bytes()}
        while not done.is_set():
            seen.add(path.read_bytes())
        return seen

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for _ in range(10):
            for content in contents:
                write_bytes(path, content)
        done.set()
    assert reading.result() <= contents


@given(json_values)
@settings(deadline=None, max_examples=30)
def test_json_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_a_file_name_that_is_no_text_reads_back_from_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_json(tmp_path / "dataset.json", {"path": name})
    assert read_json(tmp_path / "dataset.json") == {"path": name}
    write_text(tmp_path / "split.csv", name)
    assert (tmp_path / "split.csv").read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_are_refused_and_leave_the_file_alone(
    number: float, tmp_path: Path
) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": number})
    assert read_json(path) == {"loss": 1.0}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1,}', b"\xff\xfe\x00", b'{"a": 1}{"b"'])
def test_damaged_json_is_an_artefact_error_that_names_the_file(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"summary\.json"):
        read_json(tmp_path / "summary.json")


def test_missing_json_is_an_artefact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="missing"):
        read_json(tmp_path / "summary.json")


def test_a_checksum_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert (
        sha256_file(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# Claimed folders


def test_unnamed_folders_are_numbered(tmp_path: Path) -> None:
    names = [claim_folder(tmp_path / "runs", None, "study").name for _ in range(3)]
    assert names == ["study-1", "study-2", "study-3"]


def test_a_name_is_taken_as_it_is_and_numbered_when_taken(tmp_path: Path) -> None:
    names = [claim_folder(tmp_path, "herbs", "study").name for _ in range(3)]
    assert names == ["herbs", "herbs-2", "herbs-3"]


def test_a_claimed_folder_is_new_and_empty_whatever_stands_there(tmp_path: Path) -> None:
    (tmp_path / "study-1").write_bytes(b"a file")
    (tmp_path / "study-2").mkdir()
    (tmp_path / "study-2" / "kept").touch()
    claimed = claim_folder(tmp_path, None, "study")
    assert claimed.name == "study-3"
    assert list(claimed.iterdir()) == []
    assert (tmp_path / "study-2" / "kept").exists()


@pytest.mark.parametrize("name", [None, "herbs"])
def test_claims_at_the_same_time_never_share_a_folder(name: str | None, tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def claim(_: int) -> list[Path]:
        start.wait()
        return [claim_folder(tmp_path, name, "study") for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        claimed = [path for paths in pool.map(claim, range(8)) for path in paths]
    assert len(set(claimed)) == 40
    assert set(claimed) == set(tmp_path.iterdir())


def test_a_parent_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(StorageError, match="runs"):
        claim_folder(tmp_path / "runs", None, "study")


def test_a_folder_that_the_disk_refuses_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "mkdir", fail_with(errno.ENOSPC))
    with pytest.raises(StorageError, match=re.escape(os.strerror(errno.ENOSPC))):
        claim_folder(tmp_path, None, "study")


# Rows


def write_rows(path: Path, *rows: dict[str, Any], keep: int | None = None) -> int:
    writer = RowWriter(path, keep=keep)
    for row in rows:
        writer.append(row)
    length = writer.length()
    writer.close()
    return length


def test_rows_can_be_followed_while_they_are_written(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "rows")
    for step in range(3):
        writer.append({"step": step})
        assert read_rows(tmp_path / "rows") == [{"step": s} for s in range(step + 1)]
        assert writer.length() == (tmp_path / "rows").stat().st_size
    writer.close()


def test_rows_are_appended_to_those_before(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", {"step": 0})
    write_rows(tmp_path / "rows", {"step": 1})
    assert read_rows(tmp_path / "rows") == [{"step": 0}, {"step": 1}]


@given(
    before=st.lists(json_values, max_size=3),
    lost=st.lists(json_values, max_size=3),
    after=st.lists(json_values, max_size=3),
)
@settings(deadline=None, max_examples=25)
def test_a_resumed_log_goes_on_from_where_the_checkpoint_was(
    tmp_path_factory: pytest.TempPathFactory, before: list[Any], lost: list[Any], after: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows"
    length = write_rows(path, *({"is": value} for value in before))
    write_rows(path, *({"is": value} for value in lost))
    write_rows(path, *({"is": value} for value in after), keep=length)
    assert [row["is"] for row in read_rows(path)] == before + after


def test_a_torn_last_row_is_cut_away_on_resuming(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    length = write_rows(path, {"step": 0})
    with open(path, "ab") as file:
        file.write(b'{"step": 1, "lo')
    write_rows(path, {"step": 1}, keep=length)
    assert read_rows(path) == [{"step": 0}, {"step": 1}]


def test_a_log_shorter_than_its_checkpoint_says_is_not_filled_with_zeros(tmp_path: Path) -> None:
    """A power cut can lose rows that were flushed but not yet on the disk, while the checkpoint after them is."""
    path = tmp_path / "rows"
    length = write_rows(path, {"step": 0})
    with contextlib.suppress(AreluTlError):
        write_rows(path, {"step": 2}, keep=length + 20)
    assert b"\0" not in path.read_bytes()
    assert read_rows(path)[0] == {"step": 0}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_row_with_a_number_that_json_lacks_is_refused_whole(
    number: float, tmp_path: Path
) -> None:
    writer = RowWriter(tmp_path / "rows")
    writer.append({"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        writer.append({"step": 1, "loss": number})
    writer.append({"loss": 2.0})
    writer.close()
    assert read_rows(tmp_path / "rows") == [{"loss": 1.0}, {"loss": 2.0}]


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=3), max_size=4),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_a_log_torn_anywhere_reads_as_its_whole_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows"
    write_rows(path, *rows)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    assert read_rows(path) == rows[: content[:cut].count(b"\n")]


@pytest.mark.parametrize("line", [b"{", b"", b"[1]", b"3", b"\xff", b'{"a": 1} {"b": 2}'])
def test_a_whole_line_that_is_no_row_is_an_artefact_error_with_its_number(
    line: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ArtefactError, match=r"metrics\.jsonl, line 2"):
        read_rows(path)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_log_that_cannot_be_read_is_an_artefact_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot read"):
        read_rows(tmp_path / name)


def test_an_empty_log_has_no_rows(tmp_path: Path) -> None:
    assert write_rows(tmp_path / "rows") == 0
    assert read_rows(tmp_path / "rows") == []


def test_rows_are_one_json_object_a_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", {"name": "line\nbreak \u2028"}, {"name": "ü"})
    lines = (tmp_path / "rows").read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [{"name": "line\nbreak \u2028"}, {"name": "ü"}]


# Names of runs


@pytest.mark.parametrize(
    ("lr", "written"),
    [
        (1e-4, "0.0001"),
        (0.1, "0.1"),
        (1.0, "1"),
        (3e-5, "0.00003"),
        (100, "100"),
        (1e22, "1" + 22 * "0"),
        (1e-7, "0.0000001"),
    ],
)
def test_a_run_is_named_by_arm_rate_and_seed(lr: float, written: str) -> None:
    assert run_name("arelu", lr, 3) == f"arelu-lr{written}-s3"


@given(
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_a_runs_name_holds_the_rate_exactly_and_without_exponent(lr: float, seed: int) -> None:
    name = re.fullmatch(r"arelu-lr(\d+(?:\.\d*[1-9])?)-s(\d+)", run_name("arelu", lr, seed))
    assert name is not None
    assert float(name[1]) == lr
    assert int(name[2]) == seed


def test_a_key_can_be_left_unread_and_only_the_key(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"step": 1, "sites": {"a": [1.0, 2.0], 'b", "sites": {"': [0.0]}},
        {"step": 2},
        {"sites": {"a": [1.0]}, "step": 3},
        {"note": 'x, "sites": {', "step": {"a": {}}},
        {"step": 5, "sites": {"a": [1.0]}, "later": {"b": 2}},
        {"inside": {"step": 6, "sites": {"a": [1.0]}}},
        {"name": "half a pair \ud800"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(path) == rows
    without = [{key: value for key, value in row.items() if key != "sites"} for row in rows]
    assert read_rows(path, without="sites") == without
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    assert read_rows(path, without="sites") == without


def test_a_held_folder_keeps_other_processes_out_until_its_holder_dies(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from arelu_tl.records.storage import hold_folder\n"
        "with hold_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(
                StorageError, match=rf"is being trained by another process \(PID {holder.pid}\)"
            ),
            hold_folder(tmp_path, what="being trained"),
        ):
            pass
        threading.Timer(0.3, holder.kill).start()
        with hold_folder(tmp_path, patience=30) as held:
            assert held
    with hold_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_trained_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", fail_with(errno.EBADF))
    with hold_folder(tmp_path) as held:
        assert not held


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"), hold_folder(tmp_path / "nowhere"):
        pass
