from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.errors import ImageFileError, ShapeMismatchError, UnsupportedImageError
from pipeline.images.stack import find_pages, read_page

RNG = np.random.default_rng(6)
RAMP = np.add.outer(7 * np.arange(48), np.arange(64)).astype(np.uint16)
GREY8 = (RAMP % 251).astype(np.uint8)
GREY16 = RAMP * 150 + 3
NOISE = RNG.integers(0, 256, (48, 64), dtype=np.uint8)
RGB8 = np.stack([GREY8, GREY8[::-1], NOISE], axis=-1)
RGB16 = RGB8.astype(np.uint16) * 257 - 19


def read_one(path: Path, channel: str | int | None = None) -> np.ndarray:
    (page,) = find_pages([path], channel)
    return read_page(page)


def write(path: Path, data: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, data, **{"photometric": "minisblack", "metadata": None, **options})
    return path


def overwrite(path: Path, code: int, value: object, page: int = 0) -> Path:
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[page].tags[code].overwrite(value)
    return path


def write_packed(path: Path, values: np.ndarray, bits: int) -> Path:
    """Write samples of a few bits, of which tifffile writes none."""
    flags = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(*values.shape, 2), axis=-1)[..., 16 - bits :]
    write(path, np.packbits(flags.reshape(len(values), -1), axis=1))
    overwrite(path, 258, bits)
    return overwrite(path, 256, values.shape[1])


FORMATS = {
    "none": (GREY8, {}),
    "none-16": (GREY16, {}),
    "big-endian": (GREY16, {"byteorder": ">"}),
    "big-endian-lzw": (GREY16, {"byteorder": ">", "compression": "lzw", "predictor": True}),
    "strips": (GREY8, {"rowsperstrip": 5}),
    "tiles": (GREY8, {"tile": (16, 32)}),
    "tiles-over-the-edge": (GREY16[:41, :50], {"tile": (32, 32), "compression": "deflate"}),
    "tile-larger-than-image": (GREY8[:9, :9], {"tile": (64, 64), "compression": "zstd"}),
    "lzw": (GREY8, {"compression": "lzw"}),
    "lzw-predictor": (GREY16, {"compression": "lzw", "predictor": True, "rowsperstrip": 7}),
    "deflate": (GREY16, {"compression": "deflate", "rowsperstrip": 7}),
    "deflate-predictor": (GREY16, {"compression": "deflate", "predictor": True}),
    "zstd": (GREY8, {"compression": "zstd"}),
    "packbits": (GREY8, {"compression": "packbits"}),
    "jpeg-lossless": (NOISE, {"compression": "jpeg", "compressionargs": {"lossless": True}}),
    "bigtiff": (GREY16, {"bigtiff": True}),
    "bigtiff-big-endian": (GREY16, {"bigtiff": True, "byteorder": ">", "tile": (16, 16)}),
    "one-pixel": (GREY8[:1, :1], {}),
    "one-row": (GREY8[:1], {"compression": "lzw"}),
    "constant-zstd": (np.full((3000, 1000), 7, np.uint8), {"compression": "zstd"}),
    "constant-lzw": (np.full((3000, 1000), 7, np.uint8), {"compression": "lzw"}),
    "constant-deflate": (np.zeros((3000, 1000), np.uint8), {"compression": "deflate"}),
    "ome": (GREY8, {"ome": True, "metadata": {"axes": "YX"}}),
    "imagej": (GREY8, {"imagej": True, "metadata": {}}),
    "tifffile": (GREY8, {"metadata": {}}),
}


@pytest.mark.parametrize(("data", "options"), FORMATS.values(), ids=FORMATS.keys())
def test_formats_round_trip(tmp_path, data, options):
    found = read_one(write(tmp_path / "s.tif", data, **options))
    np.testing.assert_array_equal(found, data)
    assert found.dtype == data.dtype
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("tile", [None, (16, 16)], ids=["strips", "tiles"])
def test_jpeg_equals_the_decode_of_tifffile(tmp_path, tile):
    path = write(tmp_path / "s.tif", GREY8, compression="jpeg", tile=tile)
    np.testing.assert_array_equal(read_one(path), tifffile.imread(path))


@pytest.mark.parametrize(("bits", "factor"), [(2, 85), (4, 17), (6, 1), (12, 1)])
def test_few_bits_spread_over_the_range_if_they_fit(tmp_path, bits, factor):
    values = (RAMP % 2**bits).astype(np.uint16)
    found = read_one(write_packed(tmp_path / "s.tif", values, bits))
    np.testing.assert_array_equal(found, values * factor)
    assert found.dtype == (np.uint8 if bits <= 8 else np.uint16)


def test_bilevel_is_0_and_255(tmp_path):
    for compression in (None, "deflate", "packbits"):
        path = write(tmp_path / "s.tif", GREY8 > 99, compression=compression)
        np.testing.assert_array_equal(read_one(path), (GREY8 > 99) * np.uint8(255))


INVERTED = {
    "8": (GREY8, 255 - GREY8, {}),
    "16-lzw": (GREY16, 65535 - GREY16, {"compression": "lzw"}),
    "1": (GREY8 > 99, (GREY8 <= 99) * np.uint8(255), {}),
}


@pytest.mark.parametrize(("data", "expected", "options"), INVERTED.values(), ids=INVERTED.keys())
def test_white_is_zero_is_inverted(tmp_path, data, expected, options):
    path = write(tmp_path / "s.tif", data, photometric="miniswhite", **options)
    np.testing.assert_array_equal(read_one(path), expected)


def test_white_is_zero_of_12_bits_is_inverted_within_12_bits(tmp_path):
    path = overwrite(write_packed(tmp_path / "s.tif", GREY16 % 4096, 12), 262, 0)
    np.testing.assert_array_equal(read_one(path), 4095 - GREY16 % 4096)


@pytest.mark.parametrize("scale", [257, 256, 1], ids=["257", "256", "8-bit"])
def test_palette(tmp_path, scale):
    greys = np.tile(RNG.permutation(256).astype(np.uint16), (3, 1))
    path = write(tmp_path / "grey.tif", GREY8, photometric="palette", colormap=greys * np.uint16(scale))
    np.testing.assert_array_equal(read_one(path), greys[0][GREY8])
    colours = RNG.permuted(greys, axis=1)
    path = write(tmp_path / "colour.tif", GREY8, photometric="palette", colormap=colours * np.uint16(scale))
    with pytest.raises(UnsupportedImageError, match=r"colour.*--channel red\|green\|blue\|luminance"):
        find_pages([path])
    np.testing.assert_array_equal(read_one(path, "green"), colours[1][GREY8])


COLOURS = {
    "contiguous": (RGB8, {"planarconfig": "contig"}),
    "planar": (RGB8, {"planarconfig": "separate"}),
    "planar-tiles": (RGB16, {"planarconfig": "separate", "tile": (16, 16), "compression": "lzw"}),
    "16": (RGB16, {"compression": "deflate", "byteorder": ">"}),
    "opaque": (np.dstack([RGB8, np.full_like(GREY8, 255)]), {"extrasamples": ["unassalpha"]}),
}


@pytest.mark.parametrize(("data", "options"), COLOURS.values(), ids=COLOURS.keys())
def test_colour_needs_a_channel(tmp_path, data, options):
    stored = np.moveaxis(data, -1, 0) if options.get("planarconfig") == "separate" else data
    path = write(tmp_path / "s.tif", stored, photometric="rgb", **options)
    with pytest.raises(UnsupportedImageError, match=r"--channel red\|green\|blue\|luminance"):
        find_pages([path])
    for number, channel in enumerate(("red", "green", "blue")):
        np.testing.assert_array_equal(read_one(path, channel), data[..., number])
    wide = data.astype(int)
    luma = (299 * wide[..., 0] + 587 * wide[..., 1] + 114 * wide[..., 2] + 500) // 1000
    np.testing.assert_array_equal(read_one(path, "luminance"), luma)


def test_colour_jpeg_equals_the_decode_of_tifffile(tmp_path):
    path = write(tmp_path / "s.tif", RGB8, photometric="rgb", compression="jpeg")
    np.testing.assert_array_equal(read_one(path, 1), tifffile.imread(path)[..., 1])


def test_alpha_of_grey_is_ignored_only_where_it_is_opaque(tmp_path):
    data = np.dstack([GREY8, np.full_like(GREY8, 255)])
    options = {"extrasamples": ["unassalpha"], "planarconfig": "contig"}
    np.testing.assert_array_equal(read_one(write(tmp_path / "s.tif", data, **options)), GREY8)
    data[0, 0, 1] = 254
    with pytest.raises(UnsupportedImageError, match=r"has transparent pixels; flatten it"):
        read_one(write(tmp_path / "s.tif", data, **options))


def test_samples_without_a_meaning_are_channels(tmp_path):
    data = RNG.integers(0, 256, (5, 48, 64), dtype=np.uint8)
    path = write(tmp_path / "s.tif", data, planarconfig="separate")
    with pytest.raises(UnsupportedImageError, match=r"has 5 channels, expected one; choose --channel 0 to 4"):
        find_pages([path])
    with pytest.raises(UnsupportedImageError, match=r"got --channel luminance, the image has --channel 0 to 4"):
        find_pages([path], "luminance")
    np.testing.assert_array_equal(read_one(path, 3), data[3])


REFUSED = {
    "float32": (np.float32, "float32"),
    "float16": (np.float16, "float16"),
    "int8": (np.int8, "int8"),
    "int16": (np.int16, "int16"),
    "uint32": (np.uint32, "uint32"),
    "int32": (np.int32, "int32"),
    "uint64": (np.uint64, "uint64"),
    "complex64": (np.complex64, "complex64"),
}


@pytest.mark.parametrize(("dtype", "found"), REFUSED.values(), ids=REFUSED.keys())
def test_pixels_that_are_not_8_or_16_bit_integers_are_refused(tmp_path, dtype, found):
    path = write(tmp_path / "s.tif", GREY8.astype(dtype))
    with pytest.raises(UnsupportedImageError, match=rf"s.tif: has pixels of type {found}.*Image > Type > 16-bit"):
        find_pages([path])


TAGS = {
    "unknown-compression": (259, 34887, UnsupportedImageError, "has TIFF compression 34887; save it"),
    "float-predictor": (317, 3, UnsupportedImageError, "has TIFF predictor 3"),
    "lab": (262, 8, UnsupportedImageError, "photometric interpretation 8"),
    "wide": (256, 2_000_000, ImageFileError, "cannot be decoded"),
    "no-rows": (257, 0, ImageFileError, "cannot be decoded"),
    "strip-outside": (273, 10**6, ImageFileError, "1 of 1 strips or tiles are missing or end outside the file"),
    "strip-hole": (273, 0, ImageFileError, "1 of 1 strips or tiles are missing"),
    "strip-empty": (279, 0, ImageFileError, "1 of 1 strips or tiles are missing"),
    "strip-too-long": (279, 10**6, ImageFileError, "1 of 1 strips or tiles are missing or end outside the file"),
    "strip-too-short": (279, 9, ImageFileError, "cannot be decoded"),
}


@pytest.mark.parametrize(("code", "value", "error", "match"), TAGS.values(), ids=TAGS.keys())
def test_odd_tags_are_refused(tmp_path, code, value, error, match):
    path = write(tmp_path / "s.tif", GREY8, compression="lzw", predictor=True)
    with pytest.raises(error, match=match):
        read_one(overwrite(path, code, value))


def test_tiny_file_that_declares_terabytes_is_refused_before_allocation(tmp_path):
    path = write(tmp_path / "s.tif", GREY8[:4, :4], compression="deflate")
    for code, value in ((256, 2_000_000), (257, 1_900_000), (278, 1_900_000)):
        overwrite(path, code, value)
    with pytest.raises(ImageFileError, match=r"the header declares 3,800,000,000,000 bytes of pixels"):
        find_pages([path])


def test_tile_that_declares_terabytes_is_refused_before_allocation(tmp_path):
    path = write(tmp_path / "s.tif", GREY8[:4, :4], compression="deflate", tile=(16, 16))
    for code, value in ((322, 2_000_000), (323, 1_900_000)):
        overwrite(path, code, value)
    with pytest.raises(ImageFileError, match=r"the header declares 3,800,000,000,000 bytes of pixels"):
        find_pages([path])


def test_hole_among_strips_is_refused(tmp_path):
    path = write(tmp_path / "s.tif", GREY8, rowsperstrip=8)
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    overwrite(path, 273, (*offsets[:2], 0, *offsets[3:]))
    with pytest.raises(ImageFileError, match=r"1 of 6 strips or tiles are missing"):
        find_pages([path])


def test_jpeg_segment_without_an_end_is_refused(tmp_path):
    path = write(tmp_path / "s.tif", NOISE, compression="jpeg")
    with tifffile.TiffFile(path) as file:
        (size,) = file.pages[0].databytecounts
    overwrite(path, 279, size // 2)
    with pytest.raises(ImageFileError, match=r"has no end"):
        read_one(path)


def test_pages_that_differ_are_refused(tmp_path):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as file:
        for data in (GREY8, GREY8, GREY8[:40]):
            file.write(data, photometric="minisblack", metadata=None)
    with pytest.raises(ShapeMismatchError, match=r"s.tif#2: is uint8 \(40, 64\), s.tif#0 is uint8 \(48, 64\)"):
        find_pages([path])


def test_thumbnails_and_masks_are_no_slices(tmp_path):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GREY8, photometric="minisblack", metadata=None)
        file.write(GREY8[::4, ::4], photometric="minisblack", metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read_one(path), GREY8)


@pytest.mark.parametrize("target", ["outside", "circle"])
def test_broken_chain_of_pages_is_refused(tmp_path, target):
    path = write(tmp_path / "s.tif", np.stack([GREY8] * 4))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[2]
        link = page.offset + 2 + 12 * len(page.tags)
        struct.pack_into("<I", data, link, len(data) + 8 if target == "outside" else file.pages[1].offset)
    path.write_bytes(data)
    with pytest.raises(ImageFileError, match=r"s.tif: cannot be decoded .*the link after page 3 leads to byte"):
        find_pages([path])


def test_lost_tag_is_an_error_and_not_a_log_message(tmp_path, caplog, capfd):
    path = write(tmp_path / "s.tif", GREY8, description="x" * 100)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        struct.pack_into("<I", data, file.pages[0].tags[270].offset + 8, 10**6)
    path.write_bytes(data)
    with pytest.raises(ImageFileError, match=r"TiffTag 270"):
        find_pages([path])
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_log_of_other_users_of_tifffile_is_left_alone(caplog):
    tifffile.logger().error("not ours")
    assert [record.message for record in caplog.records] == ["not ours"]


def test_zero_pages_are_refused(tmp_path):
    path = tmp_path / "s.tif"
    path.write_bytes(b"II*\0\0\0\0\0")
    with pytest.raises(ImageFileError, match=r"s.tif: cannot be decoded"):
        find_pages([path])
