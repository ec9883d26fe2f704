from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageFileError, UnsupportedImageError
from pipeline.images import pixels as pixels_module
from pipeline.images.pixels import luminance
from pipeline.images.stack import find_pages, read_page

RNG = np.random.default_rng(5)
RAMP = np.add.outer(7 * np.arange(48), np.arange(64)).astype(np.uint16)
GREY8 = (RAMP % 251).astype(np.uint8)
GREY16 = RAMP * 150 + 3
NOISE = RNG.integers(0, 256, (48, 64), dtype=np.uint8)
RGB8 = np.stack([GREY8, GREY8[::-1], NOISE], axis=-1)
RGB16 = RGB8.astype(np.uint16) * 257 - 19
OPAQUE = np.full_like(GREY8, 255)


def read_one(path: Path, channel: str | int | None = None) -> np.ndarray:
    (page,) = find_pages([path], channel)
    return read_page(page)


def write(path: Path, image: np.ndarray | Image.Image, **options: object) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def png_chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def write_png(path: Path, bits: int, width: int, rows: list[bytes], extra: bytes = b"", height: int = 0) -> Path:
    header = struct.pack(">IIBBBBB", width, height or len(rows), bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def palette_image(colours: np.ndarray) -> Image.Image:
    image = Image.frombytes("P", (64, 48), GREY8.tobytes())
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


GREYS = {
    "png-8": ("s.png", GREY8, {}),
    "png-16": ("s.png", GREY16, {}),
    "png-1": ("s.png", GREY8 > 99, {}),
    "bmp-8": ("s.bmp", GREY8, {}),
    "bmp-1": ("s.bmp", GREY8 > 99, {}),
    "suffix-lies": ("s.tif", NOISE, {"format": "BMP"}),
}


@pytest.mark.parametrize(("name", "data", "options"), GREYS.values(), ids=GREYS.keys())
def test_grey_images_round_trip(tmp_path, name, data, options):
    expected = data.astype(np.uint8) * 255 if data.dtype == bool else data
    found = read_one(write(tmp_path / name, data, **options))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_spreads_over_the_range(tmp_path, bits):
    packed = RNG.integers(0, 256, (5, 64 * bits // 8), dtype=np.uint8)
    path = write_png(tmp_path / "s.png", bits, 64, [row.tobytes() for row in packed])
    values = np.unpackbits(packed, axis=1).reshape(5, 64, bits) @ (1 << np.arange(bits)[::-1])
    np.testing.assert_array_equal(read_one(path), values * (255 // (2**bits - 1)))


@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_equals_the_decode_of_pillow(tmp_path, quality):
    path = write(tmp_path / "s.jpg", GREY8, quality=quality)
    np.testing.assert_array_equal(read_one(path), np.asarray(Image.open(path)))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_colour_jpeg_equals_the_decode_of_pillow(tmp_path, mode):
    path = write(tmp_path / "s.jpg", Image.fromarray(RGB8).convert(mode), quality=95)
    np.testing.assert_array_equal(read_one(path, "green"), np.asarray(Image.open(path).convert("RGB"))[..., 1])


def test_broken_exif_block_is_passed_over_without_a_warning(tmp_path):
    path = write(tmp_path / "s.jpg", GREY8, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x1a\x01\x05\0")
    np.testing.assert_array_equal(read_one(path), read_one(write(tmp_path / "t.jpg", GREY8)))


COLOURS = {
    "png-8": ("s.png", RGB8),
    "png-rgba-8": ("s.png", np.dstack([RGB8, OPAQUE])),
    "png-16": ("s.png", RGB16),
    "png-rgba-16": ("s.png", np.dstack([RGB16, OPAQUE.astype(np.uint16) * 257])),
    "bmp": ("s.bmp", RGB8),
}


@pytest.mark.parametrize(("name", "data"), COLOURS.values(), ids=COLOURS.keys())
def test_colour_needs_a_channel_and_gives_it_exactly(tmp_path, name, data):
    path = tmp_path / name
    if data.dtype == np.uint16:
        path.write_bytes(imagecodecs.png_encode(data))
    else:
        write(path, data)
    with pytest.raises(UnsupportedImageError, match=r"is a colour image.*--channel red\|green\|blue\|luminance"):
        find_pages([path])
    for number, channel in enumerate(("red", "green", "blue")):
        np.testing.assert_array_equal(read_one(path, channel), data[..., number])
        np.testing.assert_array_equal(read_one(path, number), data[..., number])
        np.testing.assert_array_equal(read_one(path, str(number)), data[..., number])
    wide = data.astype(int)
    luma = (299 * wide[..., 0] + 587 * wide[..., 1] + 114 * wide[..., 2] + 500) // 1000
    np.testing.assert_array_equal(read_one(path, "luminance"), luma)


def test_luminance_of_16_bit_white_is_white():
    white = np.full((70, 2, 3), 65535, np.uint16)  # more rows than one strip of the loop
    np.testing.assert_array_equal(luminance(white), white[..., 0])


@pytest.mark.parametrize("channel", ["infrared", 3, "3", -1], ids=str)
def test_channel_that_colour_does_not_have_is_refused(tmp_path, channel):
    with pytest.raises(UnsupportedImageError, match=r"got --channel .*red\|green\|blue"):
        find_pages([write(tmp_path / "s.png", RGB8)], channel)


def test_channel_of_a_grey_image_may_only_be_0(tmp_path):
    path = write(tmp_path / "s.png", GREY8)
    np.testing.assert_array_equal(read_one(path, 0), GREY8)
    with pytest.raises(UnsupportedImageError, match=r"s.png: has one channel, not 'red'; leave out --channel"):
        find_pages([path], "red")


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_palette_of_greys_is_mapped(tmp_path, suffix):
    greys = np.repeat(RNG.permutation(256)[:, None], 3, axis=1)
    found = read_one(write(tmp_path / f"s{suffix}", palette_image(greys)))
    np.testing.assert_array_equal(found, greys[GREY8, 0])


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_palette_of_colours_is_colour(tmp_path, suffix):
    colours = RNG.integers(0, 256, (256, 3))
    path = write(tmp_path / f"s{suffix}", palette_image(colours))
    with pytest.raises(UnsupportedImageError, match=r"colour"):
        find_pages([path])
    np.testing.assert_array_equal(read_one(path, "blue"), colours[GREY8, 2])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_ignored_only_where_it_is_opaque(tmp_path, dtype):
    top = np.iinfo(dtype).max
    data = np.dstack([GREY8.astype(dtype), np.full(GREY8.shape, top, dtype)])
    path = tmp_path / "s.png"
    path.write_bytes(imagecodecs.png_encode(data))
    np.testing.assert_array_equal(read_one(path), GREY8)
    data[3, 4, 1] = top - 1
    path.write_bytes(imagecodecs.png_encode(data))
    with pytest.raises(UnsupportedImageError, match=r"s.png: has transparent pixels; flatten it"):
        read_one(path)


CHUNKS = {
    "transparency": (png_chunk(b"tRNS", b"\0\1"), "transparent"),
    "animation": (png_chunk(b"acTL", bytes(8)), "animation"),
}


@pytest.mark.parametrize(("chunk", "match"), CHUNKS.values(), ids=CHUNKS.keys())
def test_png_with_more_than_grey_is_refused(tmp_path, chunk, match):
    path = write_png(tmp_path / "s.png", 8, 64, [row.tobytes() for row in GREY8], extra=chunk)
    with pytest.raises(UnsupportedImageError, match=match):
        find_pages([path])


def lying_bmp() -> bytes:
    file = io.BytesIO()
    Image.fromarray(GREY8).save(file, "BMP")
    data = bytearray(file.getvalue())
    data[18:26] = struct.pack("<ii", 2**28, 2**28)
    return bytes(data)


def lying_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(GREY8).save(file, "JPEG")
    data = bytearray(file.getvalue())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


@pytest.mark.parametrize("build", [lying_bmp, lying_jpeg])
def test_header_that_declares_more_than_the_file_can_hold_is_refused(tmp_path, build):
    path = tmp_path / "s.img"
    path.write_bytes(build())
    with pytest.raises(ImageFileError, match=r"s.img: cannot be decoded \(the header declares .* bytes"):
        find_pages([path])


def test_png_header_that_declares_more_than_the_file_can_hold_is_refused(tmp_path):
    path = write_png(tmp_path / "s.png", 8, 2**31 - 1, [GREY8[0].tobytes()], height=2**31 - 1)
    with pytest.raises(ImageFileError, match=r"the header declares"):
        find_pages([path])


def test_slice_above_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels_module, "MAX_SLICE_BYTES", 1000)
    with pytest.raises(UnsupportedImageError, match=r"cut it into smaller images"):
        find_pages([write(tmp_path / "s.png", GREY8)])


def test_image_above_the_pixel_limit_of_pillow_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in (".png", ".jpg", ".bmp"):
        assert read_one(write(tmp_path / f"s{suffix}", GREY8)).shape == GREY8.shape


def test_png_whose_data_end_early_but_properly_is_refused(tmp_path):
    path = write_png(tmp_path / "s.png", 8, 64, [row.tobytes() for row in GREY8[:40]], height=48)
    with pytest.raises(ImageFileError, match="Not enough image data"):
        read_one(path)


def test_png_with_harmless_extra_data_is_read_without_a_log_message(tmp_path, caplog, capfd):
    path = write_png(tmp_path / "s.png", 8, 64, [row.tobytes() for row in GREY8], height=48)
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    size = struct.unpack(">I", data[start - 8 : start - 4])[0]
    chunk = png_chunk(b"IDAT", data[start : start + size] + b"extra")
    path.write_bytes(data[: start - 8] + chunk + png_chunk(b"IEND", b""))
    np.testing.assert_array_equal(read_one(path), GREY8)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("lost", [1, 2, 3, 40, 400])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_truncated_image_is_refused_or_complete(tmp_path, suffix, lost):
    path = write(tmp_path / f"s{suffix}", NOISE)
    expected = read_one(path)
    path.write_bytes(path.read_bytes()[:-lost])
    try:
        found = read_one(path)
    except ImageFileError as error:
        assert "cannot be decoded" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert lost <= 12  # the IEND chunk of a PNG
        np.testing.assert_array_equal(found, expected)


def test_jpeg_that_ends_in_zeros_is_refused(tmp_path):
    path = write(tmp_path / "s.jpg", NOISE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(ImageFileError, match=r"s.jpg: cannot be decoded \(the JPEG stream has no end\)"):
        read_one(path)
