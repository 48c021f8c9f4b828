"""Every kind of picture that is none, and every odd kind that is one, against every command that opens pictures."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ONE_EPOCH, run_alone, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_onnx import write_tiny_onnx

from arelu_tl.data.cache import open_cache
from arelu_tl.data.decode import open_picture
from arelu_tl.data.folder import scan_folder
from arelu_tl.data.loader import eval_view, make_eval_batches, make_train_batches, train_view
from arelu_tl.data.preprocess import Preprocessing
from arelu_tl.data.recipe import Evaluated
from arelu_tl.errors import DataError
from arelu_tl.records.settings import AugmentSettings, ScanSettings


@cache
def noise(number: int) -> Image.Image:
    """A picture that is like no other."""
    squares = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((48, 40), Image.Resampling.BICUBIC)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of 70 bytes whose header claims ten thousand megapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


BAD: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "empty file"),
    "text.jpg": (b"this is a letter, not a picture\n", "not a picture"),
    "half.jpg": (saved(noise(900), "JPEG")[:-200], "truncated"),
    "half.png": (saved(noise(901), "PNG")[:400], ""),
    "bomb.png": (bomb(), "pixels"),
    "page.png": (b"<!doctype html><title>404</title>", "not a picture"),
    "cut header.tif": (saved(noise(902), "TIFF")[:6], ""),
}


def rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return saved(noise(910), "JPEG", exif=exif.tobytes(), quality=95)


def palette_with_alpha() -> bytes:
    picture = noise(911).quantize(32)
    return saved(picture, "PNG", transparency=bytes(range(0, 256, 8)))


def sixteen_bits() -> bytes:
    return saved(
        Image.fromarray(np.asarray(noise(912).convert("L")).astype(np.uint16) * 257), "PNG"
    )


ODD: dict[str, bytes] = {
    "cmyk.jpg": saved(noise(913).convert("CMYK"), "JPEG", quality=95),
    "sixteen.png": sixteen_bits(),
    "palette.png": palette_with_alpha(),
    "rotated.jpg": rotated(),
    "film.gif": saved(
        noise(914).quantize(64), "GIF", save_all=True, append_images=[noise(915).quantize(64)]
    ),
    "alpha.webp": saved(noise(916).convert("RGBA"), "WEBP", lossless=True),
    "grey.jpg": saved(noise(917).convert("L"), "JPEG"),
}


def write(root: Path) -> Path:
    """ROOT/{train,val}/{a,b} of pictures that are all different."""
    for s, split in enumerate(("train", "val")):
        for c, label in enumerate("ab"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for n in range(3):
                noise(100 * s + 10 * c + n).save(folder / f"{n}.png")
    return root


@pytest.fixture(scope="module", params=BAD)
def bad(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of pictures, one of them bad, and a model."""
    here = tmp_path_factory.mktemp("bad")
    (write(here / "data") / "val" / "b" / request.param).write_bytes(BAD[request.param][0])
    write_tiny_onnx(here / "m.onnx", classes=["a", "b", "c"])
    return here


COMMANDS: dict[str, tuple[list[str], int]] = {
    "check": (["check", "data", "--quiet", "--json"], 1),
    "finetune": (["finetune", "data", *ONE_EPOCH], 1),
    "sweep": (["sweep", "data", *ONE_EPOCH, "--name", "s"], 1),
    "predict": (["predict", "m.onnx", "data/val/b"], 2),
    "evaluate": (["evaluate", "m.onnx", "data", "--quiet"], 3),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_picture_is_named_in_one_line_and_nothing_is_left_behind(
    command: str, bad: Path
) -> None:
    (name,) = (path.name for path in (bad / "data/val/b").iterdir() if path.name in BAD)
    before = sorted(bad.rglob("*"))
    words, lines = COMMANDS[command]
    done = run_command(*words, cwd=bad)
    assert done.returncode == 2, done.stderr
    # predict and evaluate go on with the others, and say at their end that one was left out; evaluate also that nothing tells
    # what this model was trained on.
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert "Traceback" not in done.stderr
    told = done.stdout if command == "check" else done.stderr
    assert name in told
    assert BAD[name][1] in told
    assert sorted(bad.rglob("*")) == before


def test_check_says_all_that_is_wrong_and_passes_what_is_allowed(tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    for name, (content, _) in BAD.items():
        (root / "train" / "a" / name).write_bytes(content)
    (root / "val" / "b" / "copy.png").write_bytes((root / "train" / "b" / "0.png").read_bytes())
    (root / "train" / "b" / "round").symlink_to("..")
    done = run_command("check", root, "--output", tmp_path / "report", "--json", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith("for 3 reasons, told above")
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "report" / "check.json").read_text())
    assert not told["accepted"]
    words = ("circle", "decoded", "`allow_duplicates`")
    assert [[word in problem for word in words] for problem in told["problems"]] == np.eye(
        3, dtype=bool
    ).tolist()
    rejected = (tmp_path / "report" / "rejected.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in rejected] == [
        "path",
        *(f"train/a/{name}" for name in sorted(BAD, key=str.casefold)),
    ]
    duplicates = (tmp_path / "report" / "duplicates.csv").read_text().splitlines()
    assert duplicates[1:] == ["1,train/b/0.png,train,b,bytes", "1,val/b/copy.png,val,b,bytes"]
    allowed = ["--on-bad-image", "skip", "--allow-duplicates", "--follow-links"]
    passed = run_command("check", root, *allowed, cwd=tmp_path)
    assert passed.returncode == 0, passed.stderr
    assert "can be trained on" in passed.stdout
    assert "flatter" in passed.stdout
    trained = run_command(
        "finetune", root, *ONE_EPOCH, "--no-baseline", *allowed, "--name", "x", cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    found = json.loads((tmp_path / "runs" / "x" / "dataset.json").read_text())
    assert found == {
        key: value for key, value in told.items() if key not in ("data", "accepted", "problems")
    } | {
        "format": 1,
        "links": [{"path": "train/b/round", "leads": "loop", "followed": False}],
        "fingerprint": found["fingerprint"],
    }


@pytest.mark.parametrize("what", ["nothing there", "a file", "no classes", "unknown split"])
def test_check_refuses_what_it_cannot_look_at(what: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    if what == "a file":
        root.write_text("x")
    elif what != "nothing there":
        root.mkdir()
    done = run_command(
        "check", root, *(["--val-split", "x"] if what == "unknown split" else []), cwd=tmp_path
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) in ([root], [])


def test_check_writes_over_nothing_but_its_own_report(tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("x")
    assert run_command("check", root, "--output", tmp_path / "full", cwd=tmp_path).returncode == 5
    for _ in range(2):
        done = run_command("check", ".", "--output", "report", cwd=root)
        assert done.returncode == 0, done.stderr


def test_check_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom arelu_tl.cli.app import main\ntry:\n    main(['check', sys.argv[1]])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(*({'torch', 'timm', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(tmp_path / "data"))], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "", done.stdout + done.stderr


@pytest.mark.slow
def test_a_bad_picture_is_told_alike_by_a_process_of_its_own(tmp_path: Path) -> None:
    (write(tmp_path / "data") / "train" / "a" / "bomb.png").write_bytes(bomb())
    told = [run("finetune", "data", *ONE_EPOCH, cwd=tmp_path) for run in (run_alone, run_command)]
    assert told[0].stderr == told[1].stderr
    assert {each.returncode for each in told} == {2}


# Odd pictures that are pictures

DATA = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.5, 0.6, 0.7),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write(tmp_path_factory.mktemp("odd") / "data")
    for split in ("train", "val"):
        for name, content in ODD.items():
            (root / split / "a" / name).write_bytes(content)
    return root


@pytest.mark.parametrize("cached", [False, True])
def test_odd_pictures_are_the_same_pixels_in_training_validation_and_prediction(
    odd: Path, cached: bool
) -> None:
    recipes = {"train": Evaluated(DATA), "val": Evaluated(DATA)}
    with open_cache("disk" if cached else "off", 10**9) as cache:
        folder = scan_folder(odd, ScanSettings(allow_duplicates=True), cache=cache, recipes=recipes)
        seen: dict[str, dict[str, np.ndarray]] = {}
        for split, samples in folder.splits.items():
            chosen = [sample for sample in samples if Path(sample.path).name in ODD]
            make: Callable[..., Any] = make_eval_batches if split == "val" else make_train_batches
            view = (
                eval_view(DATA)
                if split == "val"
                else train_view(DATA, AugmentSettings(no_aug=True))
            )
            options = {} if split == "val" else {"seed": 3}
            batches = make(odd, chosen, view, batch_size=len(chosen), cache=cache, **options)
            (pictures, _), *_ = batches.epoch()
            order = range(len(chosen)) if split == "val" else batches._order.indices(0)
            seen[split] = {
                Path(chosen[i].path).name: picture.numpy()
                for i, picture in zip(order, pictures, strict=True)
            }
    for name in ODD:
        predicted = Preprocessing(DATA)(open_picture(odd / "val" / "a" / name))
        np.testing.assert_array_equal(seen["train"][name], seen["val"][name])
        np.testing.assert_array_equal(predicted, seen["val"][name])


def test_odd_pictures_pass_every_command(odd: Path, tmp_path: Path) -> None:
    write_tiny_onnx(tmp_path / "m.onnx", classes=["a", "b", "c"])
    for words in (
        ["check", odd, "--allow-duplicates"],
        ["predict", "m.onnx", odd],
        ["evaluate", "m.onnx", odd],
    ):
        done = run_command(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()


# Classes of different sizes


def test_balance_changes_the_training_of_both_arms_alike_and_no_evaluation(tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    for n in range(30):
        noise(1000 + n).save(root / "train" / "a" / f"more {n}.png")
    told = {}
    for name, more in (("plain", []), ("balanced", ["--balance"])):
        done = run_command(
            "finetune", root, *ONE_EPOCH, *more, "--lr", "1e-3", "--name", name, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert "--balance" in done.stderr
        runs = [tmp_path / "runs" / name / f"{arm}-lr0.001-s0" for arm in ("relu", "arelu")]
        told[name] = [
            [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            for run in runs
        ]
    for plain, balanced in zip(told["plain"], told["balanced"], strict=True):
        before = [
            next(row for row in rows if row["split"] == "val" and row["step"] == 0)
            for rows in (plain, balanced)
        ]
        assert before[0]["loss"] == before[1]["loss"]
        trained = [
            next(row for row in rows if row["split"] == "train") for rows in (plain, balanced)
        ]
        assert trained[0]["loss"] != trained[1]["loss"]


# Whatever lies there

names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))
files = st.dictionaries(
    st.lists(
        names | st.sampled_from(["train", "val", "a", "b", "1.png", "x.jpg"]),
        min_size=1,
        max_size=4,
    ).map("/".join),
    st.sampled_from([saved(noise(1), "PNG"), saved(noise(2), "PNG"), b"", b"text"])
    | st.sampled_from(["..", ".", "../..", "a", "nowhere"]),
    max_size=12,
)


@given(files=files, follow=st.booleans())
@settings(deadline=None, max_examples=150)
def test_whatever_lies_in_a_folder_it_is_read_or_refused_in_one_line(
    files: dict[str, bytes | str], follow: bool
) -> None:
    # Links lead up, and more is written by way of them: all of it below a folder that goes with the example.
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "up" / "and up" / "root"
        root.mkdir(parents=True)
        lay_out(root, files)
        read_or_refused(root, follow)


def lay_out(root: Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.symlink_to(content)
        except OSError:  # a file where a folder is wanted, say
            continue


def read_or_refused(root: Path, follow: bool) -> None:
    problems: list[str] = []
    try:
        folder = scan_folder(root, ScanSettings(follow_links=follow), problems=problems)
    except DataError:  # nothing to look at
        return
    json.dumps(folder.to_json())
    listed = [sample.path for samples in folder.splits.values() for sample in samples]
    assert all((root / path).is_file() for path in listed)
    if not follow:
        assert all(
            Path(os.path.realpath(root / path)).is_relative_to(os.path.realpath(root))
            for path in listed
        )
    if problems:
        with pytest.raises(DataError, match=re.escape(problems[0])):
            scan_folder(root, ScanSettings(follow_links=follow))
    else:
        assert scan_folder(root, ScanSettings(follow_links=follow)) == folder
