"""What is executed, or taken for this user's own, lies where nobody else can write; elsewhere it is not looked at."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import Watching, grid

from arelu_tl.activation import fused, native
from arelu_tl.activation.functional import arelu
from arelu_tl.data.cache import open_cache
from arelu_tl.errors import StorageError
from arelu_tl.experiment.sweep import sweep
from arelu_tl.private import make_private, who_else_writes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
ROOM = 10**9
compiled = pytest.mark.skipif(
    fused.kernel_state().startswith("portable"), reason=fused.kernel_state()
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    return tmp_path / "home" / "cache"


def opened_to_all(folder: Path) -> None:
    folder.chmod(0o777)


def opened_to_a_group(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives a folder to a group that it is not in")
    os.chown(folder, -1, 12345)
    folder.chmod(0o770)


def given_away(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives a folder away")
    os.chown(folder, 12345, -1)


OPENINGS: list[Callable[[Path], None]] = [opened_to_all, opened_to_a_group, given_away]


def test_what_is_missing_is_made_for_this_user_alone(cache: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(cache / "a")
    finally:
        os.umask(before)
    assert [mode(p) for p in (tmp_path / "home", cache, cache / "a")] == [0o700] * 3
    cache.chmod(0o755)
    make_private(cache / "a")
    assert mode(cache) == 0o755
    assert who_else_writes(cache / "a") == ""
    (cache / "file").write_text("")
    for taken in (cache / "file", cache / "file" / "b"):
        with pytest.raises((FileExistsError, NotADirectoryError)):
            make_private(taken)


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("at", [".", "..", "../.."])
def test_whoever_could_change_or_exchange_it_is_named(
    opening: Callable[[Path], None], at: str, cache: Path
) -> None:
    make_private(cache)
    folder = (cache / at).resolve()
    opening(folder)
    assert str(folder) in who_else_writes(cache)


def test_others_may_add_to_a_sticky_folder_above_but_not_to_the_folder_itself(cache: Path) -> None:
    make_private(cache)
    cache.parent.chmod(0o1777)
    assert who_else_writes(cache) == ""
    cache.chmod(0o1777)
    assert "others can write" in who_else_writes(cache)


def test_a_link_is_as_safe_as_where_it_lies_and_where_it_leads(cache: Path, tmp_path: Path) -> None:
    make_private(cache)
    open_place = tmp_path / "open"
    open_place.mkdir()
    (open_place / "link").symlink_to(cache)
    assert who_else_writes(open_place / "link") == ""
    open_place.chmod(0o777)
    assert str(open_place) in who_else_writes(open_place / "link")


# Compiled kernels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def build(cache: Path) -> Callable[[], tuple[str, Path]]:
    """(what it is, where it was loaded from) of a kernel that is built anew or found."""

    def built() -> tuple[str, Path]:
        library, state = native.build(fused.SOURCE, [fused.BODY])
        assert library is not None
        return state, Path(library._name)

    return built


@compiled
@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("above", [False, True])
def test_a_kernel_is_never_loaded_from_where_others_can_write(
    opening: Callable[[Path], None], above: bool, cache: Path, build: Callable[[], tuple[str, Path]]
) -> None:
    state, path = build()
    folder = cache / "arelu-tl"
    assert (path.parent, mode(folder), mode(path), native.not_kept()) == (folder, 0o700, 0o700, "")
    path.write_bytes(b"somebody else's")
    opening(cache if above else folder)
    again, elsewhere = build()
    assert again == state  # a resumed run is not told that it began elsewhere
    assert elsewhere.parent not in (folder, *folder.parents)
    assert mode(elsewhere.parent) == 0o700
    assert str(cache if above else folder) in native.not_kept()


@compiled
def test_a_kernel_that_others_can_write_to_is_built_anew(
    cache: Path, build: Callable[[], tuple[str, Path]]
) -> None:
    _, path = build()
    sound = path.read_bytes()
    for spoil in (
        lambda: path.chmod(0o777),
        lambda: os.chown(path, 12345, -1) if os.geteuid() == 0 else path.chmod(0o707),
    ):
        path.unlink()  # it is mapped into this process
        path.write_bytes(b"somebody else's")
        spoil()
        assert build()[1] == path
        assert (path.read_bytes() == sound, mode(path)) == (True, 0o700)


def test_where_no_folder_can_be_made_it_works_all_the_same(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("")
    assert native.build(fused.SOURCE, [fused.BODY])[1] == fused.kernel_state()
    assert native.not_kept()
    assert arelu(torch.tensor([-2.0]), torch.tensor([0.5]), torch.tensor([0.0])).tolist() == [-1.0]


@compiled
def test_a_study_says_that_its_kernel_is_built_anew(cache: Path, make_folder: Any) -> None:
    make_private(cache)
    cache.chmod(0o777)
    seen = Watching()
    sweep(
        grid(make_folder(), cache.parent, arms=["relu"], lrs=[1e-3], epochs=1, cache="off"),
        observer=seen,
    )
    (told,) = [note for note in seen.notes if "built anew" in note]
    assert f"others can write to {cache} (chmod go-w)" in told


@compiled
def test_the_folder_one_stands_in_is_no_cache(
    build: Callable[[], tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert build()[1].parent == tmp_path / "home" / ".cache" / "arelu-tl"


# Pictures ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("at", ["pictures", "pictures/..", "pictures/../.."])
def test_no_picture_is_taken_from_where_others_can_write(
    opening: Callable[[Path], None], at: str, cache: Path
) -> None:
    with open_cache("disk", ROOM) as kept:
        assert kept is not None
        assert [mode(p) for p in (kept.root, kept.root.parent, cache)] == [0o700] * 3
    folder = (cache / "arelu-tl" / at).resolve()
    opening(folder)
    with pytest.raises(StorageError) as caught, open_cache("disk", ROOM):
        pass
    assert str(folder) in str(caught.value)
    with open_cache("auto", ROOM) as other:
        assert other is None or other.root != kept.root
