"""What counts as a checkpoint that can be gone on from: whatever stands in its files, the answer is a yes, a no, or one line."""

from __future__ import annotations

import errno
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arelu_tl.errors import ArtefactError
from arelu_tl.records.storage import sha256_file
from arelu_tl.training.checkpoint import (
    MANIFEST,
    MODEL,
    STATE,
    load_checkpoint,
    load_checkpoint_model,
    newest_checkpoint,
    save_checkpoint,
    write_state,
)


def test_the_newest_two_are_kept_and_the_newest_whole_one_is_taken(tmp_path: Path) -> None:
    weights = {"a": torch.arange(3.0)}
    for step in (3, 10, 20):
        save_checkpoint(tmp_path, step, weights, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-20"]
    newest, damaged = newest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest.name, damaged) == ("step-20", [])
    for file in (tmp_path / "step-20").iterdir():
        file.write_bytes(b"damaged")
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-10", [tmp_path / "step-20"])
    save_checkpoint(tmp_path, 12, weights, {"step": 12})  # the run went back and took another way
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-12"]
    save_checkpoint(tmp_path, 20, weights, {"step": 20})
    loaded, state = load_checkpoint(tmp_path / "step-20")
    assert torch.equal(loaded["a"], weights["a"])
    assert state == {"step": 20}


# Memory and a full disk -----------------------------------------------------------------------------------------------------


def large(count: int = 8) -> dict[str, torch.Tensor]:
    """Tensors of 4 MB, half of them with channels side by side, as training on the processor has its weights."""
    made = {str(n): torch.full((1000, 10, 10, 10), float(n)) for n in range(count)}
    return {
        k: t.contiguous(memory_format=torch.channels_last) if int(k) % 2 else t
        for k, t in made.items()
    }


def test_nothing_is_held_twice_while_it_is_written(tmp_path: Path) -> None:
    """A copy of one tensor at a time is what a change of its layout costs, and a GPU's tensors."""
    weights, moments = large(), large()
    tracemalloc.start()
    try:
        path = save_checkpoint(tmp_path, 3, weights, {"optimizer": {"state": moments}})
        traced = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert traced < next(iter(moments.values())).nbytes
    loaded, state = load_checkpoint(path)
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert all(torch.equal(state["optimizer"]["state"][key], moments[key]) for key in moments)


class _FullDisk(io.RawIOBase):
    """Takes some bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("room", [0, 5_000_000, 20_000_000])
def test_a_disk_that_fills_up_under_a_state_is_what_it_is(room: int) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_state(_FullDisk(room), {"optimizer": large()})
    assert caught.value.errno == errno.ENOSPC


# The manifest ------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with step-3 and step-7, both whole; the tests rewrite step-7's manifest alone."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (3, 7):
        save_checkpoint(folder, step, {"a": torch.arange(3.0)}, {"step": step})
    return folder


def with_manifest(folder: Path, content: bytes) -> tuple[Path, bool]:
    """(step-7 with that manifest, whether it was taken)."""
    newest = folder / "step-7"
    (newest / MANIFEST).write_bytes(content)
    taken, damaged = newest_checkpoint(folder)
    assert (taken, damaged) in ((newest, []), (folder / "step-3", [newest]))
    return newest, taken == newest


@settings(deadline=None, database=None, max_examples=150)
@given(content=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_manifest_is_passed_over_for_the_older_checkpoint(
    saved: Path, content: bytes
) -> None:
    newest, taken = with_manifest(saved, content)
    assert not taken
    for load in (load_checkpoint, load_checkpoint_model):
        with pytest.raises(ArtefactError):
            load(newest)


@settings(deadline=None, database=None, max_examples=150)
@given(data=st.data())
def test_a_sound_manifest_with_one_thing_changed_is_never_taken_for_another_state(
    saved: Path, data: st.DataObject
) -> None:
    manifest: dict[str, Any] = {
        "step": 7,
        "sha256": {name: sha256_file(saved / "step-7" / name) for name in (MODEL, STATE)},
    }
    sound = json.dumps(manifest)
    place = data.draw(st.sampled_from(["step", "sha256", MODEL, STATE]))
    inside = manifest if place in manifest else manifest["sha256"]
    if data.draw(st.booleans(), label="lost"):
        del inside[place]
    else:
        inside[place] = data.draw(JSON)
    changed = json.dumps(manifest)
    newest, taken = with_manifest(saved, changed.encode())
    assert taken == (changed == sound)
    if not taken:
        with pytest.raises(ArtefactError):
            load_checkpoint_model(newest)


def test_a_manifest_nested_without_end_is_passed_over(saved: Path) -> None:
    assert not with_manifest(saved, b"[" * 100_000)[1]


def test_a_checkpoint_renamed_to_another_step_is_passed_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, {"a": torch.arange(3.0)}, {"step": 3}).rename(tmp_path / "step-9")
    assert newest_checkpoint(tmp_path) == (None, [tmp_path / "step-9"])


def test_a_state_that_is_no_table_is_one_line_though_its_hash_fits(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, {"a": torch.arange(3.0)}, {"step": 3})
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    (path / STATE).write_bytes(buffer.getvalue())
    hashes = {name: sha256_file(path / name) for name in (MODEL, STATE)}
    (path / MANIFEST).write_text(json.dumps({"step": 3, "sha256": hashes}))
    with pytest.raises(ArtefactError, match=STATE):
        load_checkpoint(path)
