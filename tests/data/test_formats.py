"""A file is a picture by its content, whatever it is called; of one that Pillow cannot read it is said what would read it."""

import io
import os
import pickle
import sqlite3
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from arelu_tl.data.decode import UndecodableError, open_picture
from arelu_tl.data.folder import scan_folder
from arelu_tl.data.formats import is_picture, unreadable
from arelu_tl.data.listing import natural_key
from arelu_tl.errors import DataError
from arelu_tl.records.settings import ScanSettings

Image.init()
# Pillow's own way to write a format, where that is not just its name.
_MODES = {"MSP": "1", "XBM": "1", "BLP": "P", "SPIDER": "F"}
# Not read at all, or only by running another program.
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
# ICNS is written in ten sizes, which takes a second.
READ_AND_WRITTEN = sorted(set(Image.SAVE) & set(Image.OPEN) - _NOT_READ - {"ICNS"})


def noise(size: tuple[int, int] = (48, 48)) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    noise().convert(_MODES.get(kind, "RGB")).save(out, kind)
    return out.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["picture", "picture.txt", "picture.7"])
@pytest.mark.parametrize("kind", READ_AND_WRITTEN)
def test_what_pillow_reads_is_a_picture_whatever_it_is_called(
    kind: str, name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, encoded(kind))
    assert is_picture(path)
    assert open_picture(path).size == (48, 48)


def test_the_formats_of_phones_cameras_and_the_web_are_among_them() -> None:
    assert {
        "AVIF",
        "BMP",
        "DDS",
        "GIF",
        "ICO",
        "JPEG",
        "JPEG2000",
        "PCX",
        "PNG",
        "PPM",
        "TGA",
        "TIFF",
        "WEBP",
    } <= {*READ_AND_WRITTEN}


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "text")
    return out.getvalue()


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros((4, 4)))
    return out.getvalue()


NO_PICTURES = {
    "empty": b"",
    "text": b"a sentence\n",
    "BMW": b"BMW is a maker of cars\n",
    "P5": b"P5 and P6 are the runs that failed\n",
    "header": b"#define SIZE 3\nint x;\n",
    "comment": b"/* a program */\nint main(void) { return 0; }\n",
    "GIF": b"GIF is a format\n",
    "key: value": b"Name: somebody\r\nSize: 3\r\n",
    "json": b'{"a": [1, 2]}',
    "xml": b"<?xml version='1.0'?><annotation><object/></annotation>",
    "html": b"<!doctype html><html><body><svg></svg></body></html>",
    "csv": b"path,label\na,b\n",
    "utf-16": "text".encode("utf-16"),
    "npy": _npy(),
    "zip": _zip(),
    "pickle": pickle.dumps({"a": 1}),
    "zeros": bytes(4096),
    "ones": b"\1" * 4096,
    "twos": b"\2" * 4096,
    "little integers": np.arange(4096, dtype=np.int32).tobytes(),
    "forties": np.full(1024, 40, np.int32).tobytes(),
    "floats": np.linspace(0, 1, 4096, dtype=np.float32).tobytes(),
    "film": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(64),
    "postscript": b"%!PS-Adobe-3.0\n%%Pages: 3\n",
    "pdf": b"%PDF-1.4\n",
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_none_is_none(kind: str, tmp_path: Path) -> None:
    assert not is_picture(write(tmp_path / "file", NO_PICTURES[kind]))
    assert not is_picture(write(tmp_path / "file.dat", NO_PICTURES[kind]))


def test_a_database_is_no_picture(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as database:
        database.execute("create table t (a)")
    assert not is_picture(tmp_path / "x.db")


@given(st.binary(min_size=1, max_size=200))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_bytes_at_random_raise_nothing(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "at random"
    path.write_bytes(content)
    assert is_picture(path) in (True, False)


def test_what_is_no_file_is_no_picture_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("pipe", "pipe.jpg"):
        os.mkfifo(tmp_path / name)
        assert not is_picture(tmp_path / name)
        (tmp_path / f"to {name}").symlink_to(name)
        assert not is_picture(tmp_path / f"to {name}")
    assert not is_picture(tmp_path)
    assert not is_picture(tmp_path / "nowhere")


def test_a_link_to_a_picture_that_is_gone_is_left_for_the_gate_to_name(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").symlink_to("gone.jpg")
    assert is_picture(tmp_path / "1.jpg")


def test_a_folder_of_all_formats_is_read_whole(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    names = []
    for number, kind in enumerate(READ_AND_WRITTEN):
        picture = Image.fromarray(stream.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            (48, 48)
        )
        names.append(f"{'ab'[number % 2]}/{number}")
        (tmp_path / names[-1]).parent.mkdir(exist_ok=True)
        with (tmp_path / names[-1]).open("wb") as file:
            picture.convert(_MODES.get(kind, "RGB")).save(file, kind)
    folder = scan_folder(tmp_path, ScanSettings(allow_duplicates=True))
    found = [sample.path for samples in folder.splits.values() for sample in samples]
    assert sorted(found, key=natural_key) == sorted(names, key=natural_key)


# What runs another program, or has no pixels


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["1.jpg", "1.eps", "1"])
def test_no_picture_runs_another_program(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    trace = tmp_path / "ran"
    ghostscript = write(tmp_path / "bin" / "gs", f"#!/bin/sh\necho 9.9; touch '{trace}'\n".encode())
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = write(tmp_path / name, EPS)
    assert is_picture(path)
    with pytest.raises(UndecodableError, match="EPS drawing"):
        open_picture(path)
    assert not trace.exists()


# What Pillow cannot read


def media(brand: bytes, *more: bytes) -> bytes:
    """The head of an ISO media file."""
    content = b"ftyp" + brand + bytes(4) + b"".join(more)
    return (len(content) + 4).to_bytes(4, "big") + content + bytes(64)


def raw_as_tiff(tags: dict[int, int]) -> bytes:
    """A TIFF as cameras write them: a thumbnail first."""
    out = io.BytesIO()
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    noise((16, 12)).save(out, "TIFF", tiffinfo=directory)
    return out.getvalue()


UNREAD = {
    "HEIC": (media(b"heic", b"mif1", b"heic"), "pip install pillow-heif"),
    "HEIC, as phones write it": (media(b"mif1", b"mif1", b"heic", b"hevc"), "pip install pillow-heif"),
    "JPEG XL": (b"\xff\x0a" + bytes(60), "pip install pillow-jxl-plugin"),
    "JPEG XL in a box": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "pip install pillow-jxl-plugin"),
    "Canon": (b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "camera raw .*rawpy"),
    "Canon, new": (media(b"crx ", b"crx ", b"isom"), "camera raw .*rawpy"),
    "Fuji": (b"FUJIFILMCCD-RAW 0201" + bytes(60), "camera raw .*rawpy"),
    "Olympus": (b"IIRO" + bytes(60), "camera raw .*rawpy"),
    "a thumbnail first": (raw_as_tiff({254: 1}), "camera raw .*rawpy"),
    "DNG": (raw_as_tiff({50706: 1}), "camera raw .*rawpy"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawing .*cairosvg"),
    "SVG, declared": (b"<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "SVG drawing .*cairosvg"),
    "EXR": (b"v/1\x01" + bytes(60), "OpenEXR"),
    "DICOM": (bytes(128) + b"DICM" + bytes(60), "pydicom"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_a_picture_that_pillow_cannot_read_is_named_with_what_can(
    kind: str, tmp_path: Path
) -> None:
    content, reason = UNREAD[kind]
    for name in ("1.jpg", "1"):
        path = write(tmp_path / name, content)
        assert is_picture(path)
        with pytest.raises(UndecodableError, match=reason):
            open_picture(path)


@pytest.mark.parametrize("ending", [".nef", ".ARW", ".svgz"])
def test_where_a_signature_says_nothing_the_ending_of_what_cannot_be_read_does(
    ending: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"1{ending}", b"II*\0\xff\xff\xff\0")
    assert is_picture(path)
    with pytest.raises(UndecodableError, match=r"camera raw|SVG"):
        open_picture(path)


def test_what_is_called_heic_and_is_text_needs_no_package() -> None:
    assert unreadable(b"text", "1.heic") == ""
    assert unreadable(b"", "1.nef") == ""
    assert unreadable(encoded("PNG"), "1.nef") == ""


def test_pictures_that_cannot_be_read_are_counted_with_what_reads_them(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "a" / f"{number}.heic", UNREAD["HEIC"][0])
        for name in "ab":
            write(tmp_path / name / f"{number}.png", encoded("PNG") + bytes([number]))
    with pytest.raises(
        DataError,
        match=r"4 of 12 .*4 files, HEIC \(pip install pillow-heif\): a/0\.heic, .* and 1 more",
    ):
        scan_folder(tmp_path, ScanSettings(allow_duplicates=True))
    folder = scan_folder(tmp_path, ScanSettings(allow_duplicates=True, on_bad_image="skip"))
    assert [each.path for each in folder.rejected] == [f"a/{number}.heic" for number in range(4)]


def test_a_plug_in_is_used_where_it_is_installed_and_only_when_it_is_needed(tmp_path: Path) -> None:
    """The plug-in here reads a PNG behind the head of a HEIC."""
    plug_in = """
        from PIL import Image, ImageFile, PngImagePlugin

        class Heif(PngImagePlugin.PngImageFile):
            format = "HEIF"
            def _open(self):
                self.fp.seek(int.from_bytes(self.fp.read(4), "big") + 64)
                super()._open()

        def register_heif_opener():
            Image.register_open("HEIF", Heif, lambda head: head[4:12] == b"ftypheic")
    """
    write(tmp_path / "pillow_heif.py", textwrap.dedent(plug_in).encode())
    write(tmp_path / "1.heic", media(b"heic", b"heic") + encoded("PNG"))
    write(tmp_path / "1.png", encoded("PNG"))
    code = """
        import sys
        from pathlib import Path
        from arelu_tl.data.decode import open_picture
        plain = open_picture(Path("1.png"))
        assert "pillow_heif" not in sys.modules
        assert open_picture(Path("1.heic")).tobytes() == plain.tobytes()
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
