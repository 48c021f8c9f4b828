"""Every kind of picture file becomes the RGB picture that a person sees, or an UndecodableError that says why not."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from arelu_tl.data.decode import MAX_PIXELS, UndecodableError, open_picture

WHITE = (255, 255, 255)
FUZZ = settings(deadline=None, max_examples=80, derandomize=True)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def noise(size: tuple[int, int] = (11, 9)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixels(source: Path | bytes) -> np.ndarray:
    picture = open_picture(source)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def refusal(content: bytes) -> str | None:
    """Why the content is no picture, or None where it is one."""
    try:
        open_picture(content)
    except UndecodableError as error:
        return str(error)
    return None


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_of_size(width: int, height: int) -> bytes:
    """A greyscale PNG whose header claims a size and whose data ends after a few pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


WHOLE = {
    "JPEG": encode(noise(), "JPEG"),
    "PNG": encode(noise(), "PNG"),
    "palette PNG": encode(noise().convert("P"), "PNG", transparency=0),
    "GIF": encode(noise(), "GIF"),
    "WebP": encode(noise(), "WEBP", lossless=True),
    "TIFF": encode(noise(), "TIFF"),
    "LZW TIFF": encode(noise(), "TIFF", compression="tiff_lzw"),
    "BMP": encode(noise(), "BMP"),
    "PPM": encode(noise(), "PPM"),
}


@pytest.mark.parametrize("kind", ["PNG", "WebP", "TIFF", "LZW TIFF", "BMP", "PPM"])
def test_a_lossless_rgb_picture_keeps_its_pixels(kind: str) -> None:
    np.testing.assert_array_equal(pixels(WHOLE[kind]), np.asarray(noise()))


def test_a_file_and_its_content_decode_alike(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(WHOLE["PNG"])
    np.testing.assert_array_equal(pixels(path), pixels(WHOLE["PNG"]))


def test_a_missing_file_stays_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "nowhere.png")


def test_alpha_is_laid_over_white() -> None:
    picture = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 255, 51)):
        picture.putpixel((x, 0), (200, 100, 0, alpha))
    np.testing.assert_array_equal(
        pixels(encode(picture, "PNG"))[0], [WHITE, (200, 100, 0), (244, 224, 204)]
    )


def test_grey_with_alpha_is_laid_over_white() -> None:
    picture = Image.new("LA", (3, 1))
    for x, alpha in enumerate((0, 255, 51)):
        picture.putpixel((x, 0), (0, alpha))
    np.testing.assert_array_equal(pixels(encode(picture, "PNG"))[0, :, 0], [255, 0, 204])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(kind: str) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.putpixel((1, 0), 1)
    np.testing.assert_array_equal(
        pixels(encode(picture, kind, transparency=0))[0], [WHITE, (200, 0, 0)]
    )


def test_a_palette_with_graded_transparency_is_laid_over_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 0, 0, 0])
    picture.putpixel((1, 0), 1)
    np.testing.assert_array_equal(
        pixels(encode(picture, "PNG", transparency=bytes([51, 255])))[0, :, 0], [204, 0]
    )


@pytest.mark.parametrize(("mode", "clear", "other"), [("RGB", (1, 2, 3), (9, 9, 9)), ("L", 5, 9)])
def test_a_colour_declared_transparent_becomes_white(mode: str, clear: Any, other: Any) -> None:
    picture = Image.new(mode, (2, 1), clear)
    picture.putpixel((1, 0), other)
    np.testing.assert_array_equal(
        pixels(encode(picture, "PNG", transparency=clear))[0], [WHITE, (9, 9, 9)]
    )


def test_sixteen_bit_grey_declared_transparent_becomes_white() -> None:
    picture = Image.fromarray(np.array([[0, 65535, 32896]], dtype=np.uint16))
    np.testing.assert_array_equal(
        pixels(encode(picture, "PNG", transparency=0))[0, :, 0], [255, 255, 128]
    )


def test_sixteen_bit_grey_is_scaled_by_its_range_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(
        pixels(encode(Image.fromarray(values), "PNG"))[0, :, 0], [0, 1, 128, 255]
    )


def test_a_dark_sixteen_bit_picture_stays_dark() -> None:
    values = np.full((2, 2), 2570, dtype=np.uint16)
    assert set(pixels(encode(Image.fromarray(values), "PNG")).ravel().tolist()) == {10}


def test_floats_are_scaled_from_least_to_most() -> None:
    values = np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(
        pixels(encode(Image.fromarray(values), "TIFF"))[0, :, 1], [0, 128, 255]
    )


def test_a_constant_float_picture_decodes() -> None:
    assert pixels(
        encode(Image.fromarray(np.full((2, 2), 7.0, dtype=np.float32)), "TIFF")
    ).shape == (2, 2, 3)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_ink_becomes_the_colour_it_prints(kind: str) -> None:
    magenta_and_yellow = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    np.testing.assert_allclose(pixels(encode(magenta_and_yellow, kind))[4, 4], (255, 0, 0), atol=2)


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes_become_rgb_of_the_same_brightness(mode: str) -> None:
    picture = Image.new("RGB", (8, 8), WHITE).convert(mode)
    kind = "JPEG" if mode == "YCbCr" else "PNG"
    np.testing.assert_allclose(pixels(encode(picture, kind)), 255, atol=1)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_270),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_90),
    ],
)
def test_exif_rotation_is_applied(orientation: int, undo: Image.Transpose) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(
        pixels(encode(noise(), "PNG", exif=exif)), np.asarray(noise().transpose(undo))
    )


def test_a_camera_jpeg_lying_on_its_side_stands_up() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_picture(encode(Image.new("RGB", (40, 20)), "JPEG", exif=exif)).size == (20, 40)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    np.testing.assert_array_equal(pixels(content)[0, 0], (255, 0, 0))


def test_the_name_does_not_matter_only_the_content(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(WHOLE["PNG"])
    np.testing.assert_array_equal(pixels(path), np.asarray(noise()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 not found</html>", "not a picture"),
        (b"\xff\xd8\xff\xe0", "."),
        (WHOLE["JPEG"][: len(WHOLE["JPEG"]) // 2], "."),
        (WHOLE["PNG"][:-40], "truncated"),
    ],
    ids=["empty", "text", "four bytes of a JPEG", "half a JPEG", "PNG without its last rows"],
)
def test_what_is_no_whole_picture_is_refused_with_a_reason(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(UndecodableError, match=reason):
        open_picture(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [20_000, 100_000, 2**31 - 1])
def test_a_header_that_claims_a_huge_picture_is_refused_before_its_memory_is_taken(
    side: int,
) -> None:
    assert side * side > MAX_PIXELS
    with pytest.raises(UndecodableError, match="pixels"):
        open_picture(png_of_size(side, side))


def test_the_size_of_a_200_megapixel_camera_is_not_refused() -> None:
    assert MAX_PIXELS > 16_320 * 12_240
    with pytest.raises(
        UndecodableError, match="truncated"
    ):  # what is wrong with this file is its end, not its size
        open_picture(png_of_size(16_320, 12_240))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF
@FUZZ
@given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_a_picture_cut_anywhere_decodes_whole_or_is_refused(kind: str, data: st.DataObject) -> None:
    content = WHOLE[kind]
    part = content[: data.draw(st.integers(0, len(content) - 1))]
    reason = refusal(part)
    if reason is None:
        np.testing.assert_array_equal(pixels(part), pixels(content))
    else:
        assert reason.isprintable()
        assert reason


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF
@FUZZ
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    damage=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_raise_nothing_but_undecodable(
    kind: str, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE[kind])
    for place, value in damage:
        content[place % len(content)] = value
    assert refusal(bytes(content)) is None or refusal(bytes(content))


def test_a_tiff_whose_directory_is_damaged_is_refused() -> None:
    as_numbers, as_bytes = b"\x11\x01\x04\x00", b"\x11\x01\x07\x00"  # StripOffsets
    damaged = encode(noise(), "TIFF").replace(as_numbers, as_bytes)
    assert damaged != encode(noise(), "TIFF")
    with pytest.raises(UndecodableError):
        open_picture(damaged)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_under_a_jpg_name_is_refused(tmp_path: Path) -> None:
    content = encode(noise((40, 40)), "AVIF")
    at = content.index(b"mdat") + 4
    path = tmp_path / "saved-from-the-web.jpg"
    path.write_bytes(content[:at] + bytes(len(content) - at))
    with pytest.raises(UndecodableError):
        open_picture(path)
