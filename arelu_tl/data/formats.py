"""Which files are pictures, judged by their content; and what can read those that Pillow cannot."""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

# A file with such a name counts as a picture without being opened; decoding decides later.
_ENDINGS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c", ".mpo",
    ".tga", ".ico", ".icns", ".pcx", ".dds", ".dib", ".psd", ".qoi",
})  # fmt: skip
# In bytes: enough for every signature here and in Pillow.
HEAD = 1024
# Formats that run another program (EPS: Ghostscript), or whose pixels Pillow cannot read.
_NEVER = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
# The most common formats. Their signatures are long enough to skip the readers of all others.
_PLAIN = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF"}
# Formats with no signature, or one of two bytes: a file counts only if it decodes completely.
_VAGUE = frozenset(
    {"DIB", "GBR", "IM", "IMT", "IPTC", "PCD", "PCX", "PPM", "SGI", "SPIDER", "TGA", "XBM"}
)
# More pixels than any picture in one of these formats has.
_MOST_VAGUE = 1 << 26
# Twice what the largest camera delivers; a header that claims more is an attack or an error.
MAX_PIXELS = 300_000_000
# Pillow's own limit applies to the whole process, and refuses 200-megapixel pictures of phones.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


@dataclass(frozen=True)
class _Other:
    """A format that Pillow does not read by itself.

    Attributes:
        name: of the format, with the software that reads it.
        endings: file name endings.
        signed: whether a file's first bytes are those of the format.
        plug_in: (module, function) that registers the format with Pillow; with "" as function,
            importing the module is enough.
    """

    name: str
    endings: tuple[str, ...]
    signed: Callable[[bytes], bool]
    plug_in: tuple[str, str] | None = None


def _brands(head: bytes) -> frozenset[bytes]:
    """The brands of an ISO media file (HEIC, AVIF, films): the formats that it claims to be."""
    if head[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return frozenset({head[8:12], *(head[at : at + 4] for at in range(16, end, 4))})


def _is_svg(head: bytes) -> bool:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return text.startswith(b"<svg") or (
        text.startswith((b"<?xml", b"<!DOCTYPE svg", b"<!--")) and b"<svg" in text
    )


_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
_RAW_ENDINGS = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f",
)  # fmt: skip
_RAW = (
    b"II*\0\x10\0\0\0CR",
    b"FUJIFILMCCD-RAW",
    b"IIRO",
    b"IIRS",
    b"MMOR",
    b"IIU\0",
    b"FOVb",
    b"\0MRM",
)
_CONVERT = "convert to PNG or JPEG"

_OTHERS = (
    _Other(
        "HEIC (pip install pillow-heif)", (".heic", ".heif", ".hif"),
        lambda head: bool(_brands(head) & _HEIC),
        ("pillow_heif", "register_heif_opener"),
    ),
    _Other(
        "AVIF (pip install --upgrade pillow)", (".avif", ".avifs"),
        lambda head: bool(_brands(head) & {b"avif", b"avis"}),
        ("pillow_avif", ""),
    ),
    _Other(
        "JPEG XL (pip install pillow-jxl-plugin)", (".jxl",),
        lambda head: head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
        ("pillow_jxl", ""),
    ),
    _Other(
        f"camera raw ({_CONVERT}; rawpy reads it)", _RAW_ENDINGS,
        lambda head: head.startswith(_RAW) or head[6:14] == b"HEAPCCDR" or b"crx " in _brands(head),
    ),
    _Other(
        f"JPEG XR ({_CONVERT}; imagecodecs reads it)", (".jxr", ".wdp"),
        lambda head: head.startswith(b"II\xbc\x01"),
    ),
    _Other(
        f"OpenEXR ({_CONVERT}; OpenEXR reads it)", (".exr",),
        lambda head: head.startswith(b"v/1\x01"),
    ),
    _Other(
        f"Radiance HDR ({_CONVERT}; imageio reads it)", (),
        lambda head: head.startswith((b"#?RADIANCE", b"#?RGBE")),
    ),
    _Other(
        f"DICOM ({_CONVERT}; pydicom reads it)", (".dcm",), lambda head: head[128:132] == b"DICM"
    ),
    _Other(f"SVG drawing ({_CONVERT}; cairosvg reads it)", (".svg", ".svgz"), _is_svg),
    _Other(
        f"EPS drawing ({_CONVERT}; Ghostscript reads it)", (".eps",),
        lambda head: head.startswith(b"\xc5\xd0\xd3\xc6")
        or (head.startswith(b"%!PS") and b"EPSF" in head[:40]),
    ),
    _Other(
        f"Windows metafile ({_CONVERT}; LibreOffice reads it)", (".wmf", ".emf"),
        lambda head: head.startswith(b"\xd7\xcd\xc6\x9a")
        or (head.startswith(b"\1\0\0\0") and head[40:44] == b" EMF"),
    ),
)  # fmt: skip
_CAMERA_RAW = _OTHERS[3].name
# The first bytes of such files may also be those of any TIFF, or of any archive.
_UNSIGNED = (*_RAW_ENDINGS, ".svgz")
_CLAIMED = _ENDINGS.union(*(other.endings for other in _OTHERS))


def is_picture(file: os.DirEntry[str] | Path) -> bool:
    """Whether a file is a picture by its name or its content, even one that Pillow cannot read.

    A file named ``*.jpg``, ``*.heic`` or the like is not opened. False for anything that is not a
    file or cannot be read.
    """
    claimed = Path(file.name).suffix.lower() in _CLAIMED
    try:
        if not file.is_file():
            # A broken link counts, so that opening it reports the error. A pipe would block.
            return claimed and file.is_symlink() and not Path(file).exists()
        if claimed:
            return True
        with open(file, "rb") as opened:
            head = opened.read(HEAD)
    except OSError:
        return False
    if not head:
        return False
    return bool(_plain(head)) or _other(head) is not None or _opens(file, head)


def _opens(file: os.DirEntry[str] | Path, head: bytes) -> bool:
    """Whether Pillow reads the header, and for formats with a weak signature the whole file."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(file, formats=formats_of(head)) as picture,
        ):
            if picture.format in _VAGUE:
                if picture.width * picture.height > _MOST_VAGUE:
                    return False
                picture.load()
    except Exception:  # noqa: BLE001  a plug-in may raise anything on a file that is no picture
        return False
    return True


def formats_of(head: bytes) -> tuple[str, ...]:
    """Pillow's formats to try for a file with these first bytes; never one that runs a program."""
    if plain := _plain(head):
        return (plain,)
    _load_plug_ins()
    return tuple(name for name in Image.ID if name not in _NEVER)


def _plain(head: bytes) -> str:
    return next((name for signature, name in _PLAIN.items() if head.startswith(signature)), "")


def _other(head: bytes) -> _Other | None:
    return next((other for other in _OTHERS if other.signed(head)), None)


def unreadable(content: bytes, name: str = "") -> str:
    """Name the format of a file that Pillow cannot read here, and what can read it.

    Returns "" if an unsupported format is not the reason.

    Args:
        content: the file's bytes, or the first ``HEAD`` of them.
        name: the file's name; its ending identifies formats without a signature.
    """
    head = content[:HEAD]
    if not head or _plain(head):
        return ""
    found = _other(head)
    if found is None and (ending := Path(name).suffix.lower()) in _UNSIGNED:
        found = next(other for other in _OTHERS if ending in other.endings)
    if found is None or (found.plug_in is not None and _plug_in(*found.plug_in)):
        return ""
    return found.name


def thumbnail_only(picture: Image.Image) -> str:
    """Why Pillow sees only a thumbnail, as in a camera's raw file; "" if it sees the picture."""
    tags = getattr(picture, "tag_v2", {})  # of TIFF, the container of most raw files
    reduced, dng = 254, 50706
    return (
        _CAMERA_RAW if picture.format == "TIFF" and (tags.get(reduced) == 1 or dng in tags) else ""
    )


_loading = threading.Lock()


@functools.cache
def _load_plug_ins() -> None:
    with _loading:
        Image.init()


@functools.cache
def _plug_in(module: str, function: str) -> bool:
    """Register a format with Pillow, if the module for it is installed."""
    # An older Pillow warns when asked for a feature that it does not know.
    if module == "pillow_avif" and "avif" in features.modules and features.check("avif"):
        return True
    with _loading:
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            return False
        if function:
            getattr(loaded, function)()
    return True
