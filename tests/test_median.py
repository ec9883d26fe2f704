"""Median kernels against SciPy; networks against every input that they can meet."""

from __future__ import annotations

import doctest
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from pipeline import median
from pipeline.errors import ShapeMismatchError

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
FAST = [(1, 1, 1), (1, 3, 3), (1, 5, 5), (3, 3, 3)]
SIZES = [*FAST, (1, 7, 7), (3, 1, 5), (5, 3, 1)]


def filter_tile(volume, z, corner, shape, size, invert=False):
    """What a caller does for one tile of plane `z`: collect the z-window, pad, filter."""
    depth = range(z - size[0] // 2, z + size[0] // 2 + 1)
    stack = volume[[median.reflect(index, len(volume)) for index in depth]]
    padded = np.empty((size[0], shape[0] + size[1] - 1, shape[1] + size[2] - 1), volume.dtype)
    out = np.empty(shape, volume.dtype)
    median.pad_tile(stack, corner, size, invert, padded)
    median.median_tile(padded, size, out)
    return out


@st.composite
def volumes(draw):
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 14), st.integers(1, 14)))
    top = draw(st.sampled_from([3, np.iinfo(dtype).max]))
    return draw(arrays(dtype, shape, elements=st.integers(0, top)))


@settings(max_examples=50, deadline=None)
@given(volume=volumes(), size=st.sampled_from(SIZES), tile=st.integers(1, 15), invert=st.booleans())
def test_tiled_median_equals_whole_volume(volume, size, tile, invert):
    top = np.iinfo(volume.dtype).max
    expected = ndimage.median_filter(top - volume if invert else volume, size, mode="reflect")
    depth, height, width = volume.shape
    for z, y, x in product(range(depth), range(0, height, tile), range(0, width, tile)):
        shape = min(tile, height - y), min(tile, width - x)
        got = filter_tile(volume, z, (y, x), shape, size, invert)
        np.testing.assert_array_equal(got, expected[z, y : y + tile, x : x + tile])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", FAST, ids=str)
def test_rows_longer_than_a_vector(size, dtype):
    rng = np.random.default_rng(1)
    volume = rng.integers(0, np.iinfo(dtype).max, (3, 9, 331), dtype, endpoint=True)
    expected = ndimage.median_filter(volume, size, mode="reflect")[1]
    np.testing.assert_array_equal(filter_tile(volume, 1, (0, 0), (9, 331), size), expected)


@pytest.mark.parametrize(
    ("size", "ones"),
    [((1, 3, 3), 3), ((1, 5, 5), 5), ((3, 3, 3), 9)],
    ids=str,
)
def test_selection_is_right_for_every_window(size, ones):
    # Minimum and maximum commute with thresholding, so a network that is right for all windows of 0 and 1 is right for
    # all values; and columns are sorted first, so of a column of 0 and 1 only the number of ones matters.
    depth, rows, columns = size
    windows = np.array(list(product(range(ones + 1), repeat=columns)))
    column = np.arange(ones)[:, None] < windows.reshape(-1)
    padded = column.reshape(depth, rows, -1).astype(np.uint8)
    out = np.empty((1, padded.shape[2] - columns + 1), np.uint8)
    median.median_tile(padded, size, out)
    np.testing.assert_array_equal(out[0, ::columns], windows.sum(axis=1) > ones * columns // 2)


@pytest.mark.parametrize(
    ("sort", "length"),
    [(median._sort2, 2), (median._sort3, 3), (median._sort5, 5), (lambda *values: median._sort9(values), 9)],
    ids=["2", "3", "5", "9"],
)
def test_sorting_network(sort, length):
    for values in product((0, 1), repeat=length):
        assert list(sort(*values)) == sorted(values)


@pytest.mark.parametrize(("merge", "length"), [(median._merge2, 2), (median._merge3, 3), (median._merge4, 4)])
def test_merging_network(merge, length):
    lists = [(0,) * (length - ones) + (1,) * ones for ones in range(length + 1)]
    for left, right in product(lists, repeat=2):
        assert list(merge(left, right)) == sorted(left + right)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (median._sort2, (2, 1)),
        (median._sort3, (3, 1, 2)),
        (median._sort5, (3, 5, 1, 2, 4)),
        (median._sort9, ((9, 3, 5, 1, 8, 2, 4, 7, 6),)),
        (median._merge2, ((2, 3), (1, 4))),
        (median._merge3, ((2, 3, 6), (1, 4, 5))),
        (median._merge4, ((2, 3, 6, 7), (1, 4, 5, 8))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_network_as_plain_python(function, arguments):
    got = function.py_func(*arguments)
    assert list(got) == list(range(1, len(got) + 1))


@pytest.mark.parametrize("size", FAST[1:], ids=str)
def test_kernel_as_plain_python(size):
    padded = np.random.default_rng(2).integers(0, 256, (size[0], 2 + size[1], 3 + size[2]), np.uint8)
    expected, got = np.empty((2, 3, 4), np.uint8)
    median.median_tile(padded, size, expected)
    median._KERNELS[size].py_func(padded, got)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 3), (1, 7, 7)], ids=str)
def test_views_are_filtered_as_copies_are(size):
    image = np.random.default_rng(3).integers(0, 65536, (1, 20, 30), np.uint16)
    scratch, result = np.zeros((4, 40, 50), np.uint16), np.zeros((30, 40), np.uint16)
    padded, out = scratch[1:2, 3 : 22 + size[1], 5 : 34 + size[2]], result[2:22, 4:34]
    median.pad_tile(image, (0, 0), size, False, padded)
    median.median_tile(padded, size, out)
    np.testing.assert_array_equal(out, ndimage.median_filter(image[0], size[1:], mode="reflect"))
    assert np.count_nonzero(result) == np.count_nonzero(out)
    assert np.count_nonzero(scratch) == np.count_nonzero(padded)


def test_threads_do_not_meet():
    image = np.random.default_rng(4).integers(0, 256, (1, 64, 256), np.uint8)
    expected = ndimage.median_filter(image, (1, 5, 5), mode="reflect")[0]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: filter_tile(image, 0, (0, 0), (64, 256), (1, 5, 5)), range(16)))
    for got in results:
        np.testing.assert_array_equal(got, expected)


@settings(deadline=None)
@given(length=st.integers(1, 6), radius=st.integers(0, 20))
def test_reflect_is_the_rule_of_numpy_symmetric_padding(length, radius):
    got = [median.reflect(index, length) for index in range(-radius, length + radius)]
    assert got == np.pad(np.arange(length), radius, mode="symmetric").tolist()


@settings(deadline=None)
@given(
    plane=arrays(np.uint16, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 65535)),
    radii=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    data=st.data(),
)
def test_padding_beyond_every_edge(plane, radii, data):
    (y, y_end), (x, x_end) = (
        data.draw(
            st.integers(0, side - 1).flatmap(lambda a, side=side: st.tuples(st.just(a), st.integers(a + 1, side)))
        )
        for side in plane.shape
    )
    size = (1, 2 * radii[0] + 1, 2 * radii[1] + 1)
    padded = np.empty((1, y_end - y + 2 * radii[0], x_end - x + 2 * radii[1]), np.uint16)
    median.pad_tile(plane[None], (y, x), size, False, padded)
    whole = np.pad(plane, [(radius, radius) for radius in radii], mode="symmetric")
    np.testing.assert_array_equal(padded[0], whole[y : y_end + 2 * radii[0], x : x_end + 2 * radii[1]])


@pytest.mark.parametrize(("size", "fast"), [*((size, True) for size in FAST), ((1, 7, 7), False), ((3, 1, 5), False)])
def test_is_fast(size, fast):
    assert median.is_fast(size) is fast


@pytest.mark.parametrize(
    ("stack", "start", "padded", "message"),
    [
        ((1, 8, 8), (0, 0), (1, 11, 10), r"tile: got voxels 0 to 9 of an axis of 8"),
        ((1, 8, 8), (0, 5), (1, 10, 6), r"tile: got voxels 5 to 9 of an axis of 8"),
        ((1, 8, 8), (-1, 0), (1, 10, 10), r"tile: got voxels -1 to 7"),
        ((1, 8, 8), (0, 0), (1, 2, 10), r"padded must be window - 1 longer"),
        ((3, 8, 8), (0, 0), (1, 10, 10), r"padded: got uint8 \(1, 10, 10\), stack is uint8 \(3, 8, 8\)"),
        ((3, 8, 8), (0, 0), (3, 10, 10), r"the window \(1, 3, 3\)"),
    ],
    ids=["too tall", "too far right", "too high", "smaller than its halo", "planes", "window"],
)
def test_pad_tile_refuses(stack, start, padded, message):
    with pytest.raises(ShapeMismatchError, match=message):
        median.pad_tile(np.zeros(stack, np.uint8), start, (1, 3, 3), False, np.zeros(padded, np.uint8))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 9, 9), np.uint8), ((3, 10, 10), np.uint8), ((1, 10, 10), np.uint16)], ids=str
)
def test_median_tile_refuses(shape, dtype):
    with pytest.raises(ShapeMismatchError, match=r"need uint8 \(1, 10, 10\); pad the tile with pad_tile"):
        median.median_tile(np.zeros(shape, dtype), (1, 3, 3), np.zeros((8, 8), np.uint8))


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not part of the repository")
def test_real_tile():
    image_module = pytest.importorskip("PIL.Image")
    image = np.asarray(image_module.open(TILE / "grayscale.png"))
    for size in FAST[:3]:
        got = filter_tile(image[None], 0, (0, 0), image.shape, size, invert=True)
        np.testing.assert_array_equal(got, ndimage.median_filter(255 - image, size[1:], mode="reflect"))


def test_examples():
    assert doctest.testmod(median).failed == 0
