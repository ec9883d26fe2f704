from __future__ import annotations

import os
import pickle
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skimage.io
import tifffile
from PIL import Image

from pipeline.errors import (
    ConfigError,
    ImageFileError,
    MissingInputError,
    PipelineError,
    ShapeMismatchError,
    UnsupportedImageError,
)
from pipeline.images.stack import Page, find_pages, read_page

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile" / "grayscale.png"
GREY = (np.add.outer(7 * np.arange(24), np.arange(32)) % 251).astype(np.uint8)
NOISE = np.random.default_rng(8).integers(0, 256, (24, 32), dtype=np.uint8)


def write(path: Path, value: int = 0) -> Path:
    """Write a slice that holds one value; the tests of the order read it back."""
    path.parent.mkdir(exist_ok=True)
    data = np.full((4, 6), value, np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, data)
    else:
        Image.fromarray(data).save(path)
    return path


def values(*sources: str | Path) -> list[int]:
    return [int(read_page(page)[0, 0]) for page in find_pages(sources)]


def test_folder_is_read_in_natural_order_and_without_other_files(tmp_path):
    for number in (10, 2, 1, 100):
        write(tmp_path / f"slice_{number}.png", number)
    write(tmp_path / "SLICE_3.PNG", 3)
    for name in ("Thumbs.db", "notes.txt", ".hidden.png", "._slice_1.png"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "folder.png").mkdir()
    assert values(tmp_path) == [1, 2, 3, 10, 100]
    assert values(str(tmp_path)) == [1, 2, 3, 10, 100]


def test_pattern_is_expanded_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        write(tmp_path / f"slice_{number}.png", number)
    write(tmp_path / "other_5.png", 5)
    (tmp_path / "slice_3.txt").write_text("no image")
    assert values(tmp_path / "slice_*") == [1, 2, 10]
    assert values(f"{tmp_path}/slice_?.png") == [1, 2]
    assert values(f"{tmp_path}/**/slice_*.png") == [1, 2, 10]


def test_files_that_the_shell_expanded_are_sorted(tmp_path):
    files = [write(tmp_path / f"slice_{number}.png", number) for number in (1, 10, 2)]
    assert values(*files) == [1, 2, 10]
    assert values(*map(str, reversed(files))) == [1, 2, 10]


def test_folders_that_the_shell_expanded_are_sorted(tmp_path):
    for number in (1, 2, 10):
        write(tmp_path / f"run{number}" / "slice.png", number)
    assert values(*sorted(tmp_path.iterdir())) == [1, 2, 10]


def test_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    assert values(write(tmp_path / "scan[1].png", 9)) == [9]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    write(tmp_path / "s.png", 4)
    monkeypatch.chdir(tmp_path)
    (page,) = find_pages(["s.png"])
    assert page.path == tmp_path / "s.png"


def test_stacks_in_files_follow_each_other(tmp_path):
    for start in (0, 10):
        data = np.arange(start, start + 3, dtype=np.uint8)[:, None, None] * np.ones((4, 6), np.uint8)
        tifffile.imwrite(tmp_path / f"part{start}.tif", data, photometric="minisblack")
    write(tmp_path / "part9.png", 99)
    assert values(tmp_path) == [0, 1, 2, 99, 10, 11, 12]


AMBIGUOUS = {
    "leading-zero": ("slice_2.png", "slice_02.png"),
    "suffix": ("a.png", "a.tif"),
    "case": ("A1.png", "a1.png"),
}


@pytest.mark.parametrize("names", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_files_without_an_order_are_refused(tmp_path, names):
    for name in names:
        write(tmp_path / name)
    with pytest.raises(ConfigError, match="same place in the z order") as error:
        find_pages([tmp_path])
    assert all(name in str(error.value) for name in names)


def test_file_that_is_named_twice_is_refused(tmp_path):
    path = write(tmp_path / "s.png")
    for sources in ([path, path], [tmp_path, path], [path, f"{tmp_path}/../{tmp_path.name}/*.png"]):
        with pytest.raises(ConfigError, match=r"s.png: is named twice; name each file once"):
            find_pages(sources)


MISSING: dict[str, tuple[Callable[[Path], str], str]] = {
    "file": (lambda folder: f"{folder}/none.png", "none.png: no such file or folder"),
    "pattern": (lambda folder: f"{folder}/none*.png", r"none\*.png: the pattern holds no image: it is empty"),
    "empty-folder": (lambda folder: f"{folder}/empty", "empty: the folder holds no image: it is empty"),
    "no-images": (
        lambda folder: f"{folder}/text",
        "text: the folder holds no image: none of its 1 entries ends in .png",
    ),
    "only-folders": (lambda folder: f"{folder}", "name the folder empty in it"),
    "no-images-match": (lambda folder: f"{folder}/text/*", "the pattern holds no image: none of its 1 entries"),
}


@pytest.mark.parametrize(("source", "match"), MISSING.values(), ids=MISSING.keys())
def test_missing_sources_are_refused(tmp_path, source, match):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    with pytest.raises(MissingInputError, match=match):
        find_pages([source(tmp_path)])


def test_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ImageFileError, match=r"cannot be read \(File name too long\)"):
        find_pages([tmp_path / ("x" * 300)])


def test_no_source_is_refused():
    with pytest.raises(MissingInputError, match="got no source"):
        find_pages([])


def test_broken_link_in_a_folder_is_not_passed_over(tmp_path):
    write(tmp_path / "s_1.png")
    (tmp_path / "s_2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(MissingInputError, match=r"s_2.png: no such file; was it moved, or is it a broken link"):
        find_pages([tmp_path])


NOT_IMAGES = {
    "empty": (b"", ImageFileError, "s.png: is empty"),
    "text": (b"not an image at all", UnsupportedImageError, "s.png: is not a PNG, JPEG, BMP or TIFF image"),
    "png-magic-only": (b"\x89PNG\r\n\x1a\n", ImageFileError, "s.png: cannot be decoded .*re-export it or leave it out"),
    "jpeg-magic-only": (b"\xff\xd8\xff\xe0", ImageFileError, "s.png: cannot be decoded"),
    "bmp-magic-only": (b"BM123456", ImageFileError, "s.png: cannot be decoded"),
    "tiff-magic-only": (b"II*\0", ImageFileError, "s.png: cannot be decoded"),
    "bigtiff-magic-only": (b"MM\0+\0\x08\0\0", ImageFileError, "s.png: cannot be decoded"),
}


@pytest.mark.parametrize(("content", "error", "match"), NOT_IMAGES.values(), ids=NOT_IMAGES.keys())
def test_files_that_are_no_images_are_refused(tmp_path, content, error, match):
    path = tmp_path / "s.png"
    path.write_bytes(content)
    with pytest.raises(error, match=match):
        find_pages([path])


@pytest.mark.parametrize(
    ("other", "match"),
    [(np.zeros((4, 7), np.uint8), r"uint8 \(4, 7\)"), (np.zeros((4, 6), np.uint16), r"uint16 \(4, 6\)")],
    ids=["shape", "dtype"],
)
def test_slices_that_differ_are_refused(tmp_path, other, match):
    write(tmp_path / "s_1.png")
    Image.fromarray(other).save(tmp_path / "s_2.png")
    with pytest.raises(ShapeMismatchError, match=rf"s_2.png: is {match}, s_1.png is uint8 \(4, 6\)"):
        find_pages([tmp_path])


def test_page_is_a_small_value(tmp_path):
    (page,) = find_pages([write(tmp_path / "s.png", 7)])
    assert page == Page(tmp_path / "s.png", 0, 1, (4, 6), "uint8")
    assert page.name == "s.png"
    copy = pickle.loads(pickle.dumps(page))
    assert copy == page
    np.testing.assert_array_equal(read_page(copy), np.full((4, 6), 7))


def test_file_that_changed_after_it_was_found_is_refused(tmp_path):
    path = write(tmp_path / "s.png")
    (page,) = find_pages([path])
    Image.fromarray(np.zeros((4, 7), np.uint8)).save(path)
    with pytest.raises(ImageFileError, match=r"s.png: got uint8 \(4, 7\), its header declared uint8 \(4, 6\)"):
        read_page(page)
    path.unlink()
    with pytest.raises(MissingInputError, match=r"s.png: no such file"):
        read_page(page)


def test_cost_of_a_page_does_not_grow_with_the_file(tmp_path):
    def seconds(count: int) -> float:
        path = tmp_path / f"s{count}.tif"
        tifffile.imwrite(path, np.zeros((count, 4, 6), np.uint8), photometric="minisblack", metadata=None)
        page = find_pages([path])[-1]
        best = 1e9
        for _ in range(5):
            start = time.perf_counter()
            read_page(page)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(1000) < 20 * seconds(2)  # walking the pages would cost 500 times


FORMATS: dict[str, Callable[[Path], None]] = {
    "png": lambda path: Image.fromarray(NOISE).save(path, "PNG"),
    "png-16": lambda path: Image.fromarray(NOISE.astype(np.uint16) * 257).save(path, "PNG"),
    "png-palette": lambda path: Image.fromarray(GREY).quantize(16).save(path, "PNG"),
    "jpeg": lambda path: Image.fromarray(NOISE).save(path, "JPEG"),
    "jpeg-progressive": lambda path: Image.fromarray(NOISE).save(path, "JPEG", progressive=True),
    "jpeg-rgb": lambda path: Image.fromarray(np.dstack([NOISE, GREY, NOISE])).save(path, "JPEG"),
    "bmp": lambda path: Image.fromarray(NOISE).save(path, "BMP"),
    "bmp-palette": lambda path: Image.fromarray(GREY).quantize(16).save(path, "BMP"),
    "tiff": lambda path: tifffile.imwrite(path, NOISE),
    "tiff-big-endian": lambda path: tifffile.imwrite(path, NOISE.astype(np.uint16), byteorder=">", rowsperstrip=5),
    "tiff-tiles": lambda path: tifffile.imwrite(path, NOISE, tile=(16, 16)),
    "tiff-white-is-zero": lambda path: tifffile.imwrite(path, NOISE, photometric="miniswhite"),
    "tiff-bilevel": lambda path: tifffile.imwrite(path, NOISE > 99),
    "tiff-lzw": lambda path: tifffile.imwrite(path, GREY, compression="lzw", predictor=True, rowsperstrip=5),
    "tiff-deflate": lambda path: tifffile.imwrite(path, GREY, compression="deflate", rowsperstrip=5),
    "tiff-zstd": lambda path: tifffile.imwrite(path, GREY, compression="zstd", tile=(16, 16)),
    "tiff-packbits": lambda path: tifffile.imwrite(path, GREY, compression="packbits", rowsperstrip=5),
    "tiff-jpeg": lambda path: tifffile.imwrite(path, GREY, compression="jpeg", rowsperstrip=16),
    "tiff-rgb": lambda path: tifffile.imwrite(path, np.dstack([NOISE, GREY, NOISE]), photometric="rgb"),
    "tiff-palette": lambda path: tifffile.imwrite(
        path, NOISE, photometric="palette", colormap=np.arange(768, dtype=np.uint16).reshape(3, 256) * 80
    ),
    "bigtiff": lambda path: tifffile.imwrite(path, NOISE, bigtiff=True, rowsperstrip=5),
    "stack": lambda path: tifffile.imwrite(path, np.stack([GREY, NOISE, GREY]), photometric="minisblack"),
    "stack-plain": lambda path: tifffile.imwrite(
        path, np.stack([GREY, NOISE, GREY]), photometric="minisblack", metadata=None, compression="lzw"
    ),
    "stack-one-directory": lambda path: tifffile.imwrite(
        path, np.stack([GREY, NOISE, GREY]), imagej=True, truncate=True, metadata={"axes": "ZYX"}
    ),
    "stack-imagej": lambda path: tifffile.imwrite(
        path, np.stack([GREY, NOISE, GREY]), imagej=True, metadata={"axes": "ZYX"}
    ),
    "stack-ome": lambda path: tifffile.imwrite(path, np.stack([GREY, NOISE, GREY]), ome=True, metadata={"axes": "ZYX"}),
}
COLOURED = ("jpeg-rgb", "tiff-rgb", "tiff-palette")


def read_or_refuse(path: Path, channel: str | None) -> np.ndarray | None:
    """Return the slices of a damaged file, or None if it is refused; anything else is a failure of the test."""
    try:
        pages = find_pages([path], channel)
        slices = [read_page(page) for page in pages]
    except PipelineError as error:
        assert path.name in str(error)  # noqa: PT017 - reading or refusing are both right
        return None
    assert {(slice_.shape, slice_.dtype.name) for slice_ in slices} == {(pages[0].shape, pages[0].dtype)}
    return np.stack(slices)


def truncations(data: bytes, rng: np.random.Generator) -> list[bytes]:
    sizes = {*range(24), *range(len(data) - 24, len(data)), *rng.integers(0, len(data), 24).tolist()}
    return [data[:size] for size in sorted(sizes) if 0 <= size < len(data)]


def byte_flips(data: bytes, rng: np.random.Generator) -> list[bytes]:
    flipped = []
    for number in range(60):
        copy = bytearray(data)
        # Half of them in the first and last bytes, where headers and directories are.
        reach = len(data) if number % 2 else min(len(data), 400)
        for place in rng.integers(-reach // 2, reach // 2, 1 + number % 3):
            copy[place] = rng.integers(256)
        flipped.append(bytes(copy))
    return flipped


@pytest.mark.parametrize("damage", [truncations, byte_flips])
@pytest.mark.parametrize(("name", "save"), FORMATS.items(), ids=FORMATS.keys())
def test_damaged_file_is_read_or_refused_quietly(tmp_path, capfd, name, save, damage):
    path = tmp_path / "slice_7.img"
    save(path)
    data = path.read_bytes()
    channel = "luminance" if name in COLOURED else None
    expected = read_or_refuse(path, channel)
    assert expected is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for damaged in damage(data, np.random.default_rng(len(data))):
            path.write_bytes(damaged)
            found = read_or_refuse(path, channel)
            if found is not None and damage is truncations:
                np.testing.assert_array_equal(found, expected)
    assert not [str(warning.message) for warning in caught]
    assert capfd.readouterr() == ("", "")


def test_slices_are_decoded_in_threads_and_damage_stays_with_its_slice(tmp_path, capfd):
    for number in range(40):
        tifffile.imwrite(tmp_path / f"s_{number}.tif", NOISE + number, compression="lzw", rowsperstrip=3)
    pages = find_pages([tmp_path])
    for number in range(0, 40, 5):
        path = tmp_path / f"s_{number}.tif"
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[273].overwrite(file.pages[0].dataoffsets[:-1])

    def attempt(page: Page) -> np.ndarray | str:
        try:
            return read_page(page)
        except ImageFileError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, pages))
    for number, result in enumerate(results):
        if number % 5:
            np.testing.assert_array_equal(result, NOISE + number)
        else:
            assert f"s_{number}.tif: cannot be decoded" in result
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not TILE.exists(), reason="the shared KESM tile is not here")
def test_real_tile_equals_the_read_of_scikit_image():
    (page,) = find_pages([TILE])
    np.testing.assert_array_equal(read_page(page), skimage.io.imread(TILE))


def test_a_pipe_is_no_image_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "s1.tif")
    with pytest.raises(UnsupportedImageError, match=r"^s1\.tif: is no regular file; leave it out$"):
        find_pages([tmp_path])
