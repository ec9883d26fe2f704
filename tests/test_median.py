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

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import median

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
FAST = [(1, 1, 1), (1, 3, 3), (1, 5, 5), (3, 3, 3)]
SIZES = [*FAST, (1, 7, 7), (3, 1, 5), (5, 3, 1)]


def filter_tile(volume, z, corner, shape, size, invert=False):
    """What a caller does for one tile of plane `z`: collect the z-window, filter."""
    depth = range(z - size[0] // 2, z + size[0] // 2 + 1)
    stack = volume[[median.reflect(index, len(volume)) for index in depth]]
    out = np.empty(shape, volume.dtype)
    median.median_tile(stack, corner, size, invert, out)
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


@pytest.mark.parametrize("invert", [False, True], ids=["as it is", "inverted"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", FAST, ids=str)
def test_tile_at_every_edge_and_inside(size, dtype, invert):
    rng = np.random.default_rng(6)
    top = np.iinfo(dtype).max
    volume = rng.integers(0, top, (3, 23, 181), dtype, endpoint=True)
    expected = ndimage.median_filter(top - volume if invert else volume, size, mode="reflect")[1]
    for height, width in ((1, 1), (2, 70), (7, 64), (8, 131)):
        for y, x in product((0, 1, 2, 9, 22 - height, 23 - height), (0, 1, 2, 25, 180 - width, 181 - width)):
            got = filter_tile(volume, 1, (y, x), (height, width), size, invert)
            np.testing.assert_array_equal(got, expected[y : y + height, x : x + width])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 40)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_plane_smaller_than_the_window(size, shape):
    volume = np.random.default_rng(7).integers(0, 256, (2, *shape), np.uint8)
    expected = ndimage.median_filter(volume, size, mode="reflect")
    for z in range(2):
        np.testing.assert_array_equal(filter_tile(volume, z, (0, 0), shape, size), expected[z])


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
    stack = column.reshape(depth, rows, -1).astype(np.uint8)
    out = np.empty((1, stack.shape[2] - columns + 1), np.uint8)
    median.median_tile(stack, (rows // 2, columns // 2), size, False, out)
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
        (median._sort_row, (np.array([9, 3, 1, 2]), np.uint64(1))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_network_as_plain_python(function, arguments):
    got = function.py_func(*arguments)
    assert list(got) == list(range(1, len(got) + 1))


def test_joined_rows_as_plain_python():
    joined = median._join.py_func((1, 5, 9), (2, 3, 8))
    assert joined == median._join((1, 5, 9), (2, 3, 8)) == (2, 3, 5, 8)
    assert median._median_with.py_func(joined, (0, 4, 7)) == median._median_with(joined, (0, 4, 7)) == 4


@pytest.mark.parametrize("invert", [False, True], ids=["as it is", "inverted"])
@pytest.mark.parametrize("size", FAST, ids=str)
def test_kernel_as_plain_python(size, invert):
    planes = tuple(np.random.default_rng(2).integers(0, 256, (size[0], 5 + size[1], 3 + size[2]), np.uint8))
    run = median._KERNELS[size]
    arguments = planes, size[1] // 2, size[2] // 2, invert
    expected, got = np.empty((2, 6, 4), np.uint8)
    run(*arguments, expected)
    getattr(run, "py_func", run)(*arguments, got)
    np.testing.assert_array_equal(got, expected)


def test_band_as_plain_python():
    flat = np.random.default_rng(8).integers(0, 256, 60, np.uint8)
    starts = tuple(10 * row for row in range(6))
    expected, got = np.empty((2, 4, 8), np.uint8)
    median._filter_band(flat, starts, np.uint8(255), expected)
    median._filter_band.py_func(flat, starts, np.uint8(255), got)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got, ndimage.median_filter(255 - flat.reshape(6, 10), 3)[1:-1, 1:-1])


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_flip_as_plain_python(dtype, invert):
    out = np.empty((1, 1), dtype)
    assert median._flip.py_func(out, invert) == median._flip(out, invert) == (np.iinfo(dtype).max if invert else 0)


@pytest.mark.parametrize("corner", [(0, 0), (5, 6)], ids=["edge", "inside"])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 3), (3, 3, 3), (1, 7, 7)], ids=str)
def test_views_are_filtered_as_copies_are(size, corner):
    larger, result = np.random.default_rng(3).integers(0, 65536, (4, 70, 80), np.uint16), np.zeros((30, 40), np.uint16)
    stack, out = larger[1 : 1 + size[0], 3:63:2, 5:75], result[2:22, 4:34]
    stack.flags.writeable = False
    median.median_tile(stack, corner, size, False, out)
    expected = ndimage.median_filter(stack, size, mode="reflect")[size[0] // 2]
    np.testing.assert_array_equal(out, expected[corner[0] : corner[0] + 20, corner[1] : corner[1] + 30])
    assert np.count_nonzero(result) == np.count_nonzero(out)


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
    padded = median._pad_tile(plane[None], (y, x), size, (y_end - y, x_end - x))
    whole = np.pad(plane, [(radius, radius) for radius in radii], mode="symmetric")
    np.testing.assert_array_equal(padded[0], whole[y : y_end + 2 * radii[0], x : x_end + 2 * radii[1]])


@pytest.mark.parametrize(("size", "fast"), [*((size, True) for size in FAST), ((1, 7, 7), False), ((3, 1, 5), False)])
def test_is_fast(size, fast):
    assert median.is_fast(size) is fast


@pytest.mark.parametrize(
    ("stack", "start", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), (0, 0), r"stack: got uint8 \(3, 8, 8\), the window is \(1, 3, 3\)"),
        (np.zeros((1, 8, 8), np.uint16), (0, 0), r"stack: got uint16 \(1, 8, 8\), .* the output uint8"),
        (np.zeros((1, 8, 8), np.uint8), (3, 0), r"tile: got y=3:9, the planes have y=0:8"),
        (np.zeros((1, 8, 8), np.uint8), (0, 4), r"tile: got x=4:9, the planes have x=0:8"),
        (np.zeros((1, 8, 8), np.uint8), (-1, 0), r"tile: got y=-1:5"),
    ],
    ids=["planes", "dtype", "too low", "too far right", "too high"],
)
def test_median_tile_refuses(stack, start, message):
    with pytest.raises(ShapeMismatchError, match=message):
        median.median_tile(stack, start, (1, 3, 3), False, np.zeros((6, 5), np.uint8))


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not part of the repository")
def test_real_tile():
    image_module = pytest.importorskip("PIL.Image")
    image = np.asarray(image_module.open(TILE / "grayscale.png"))
    for size in FAST[:3]:
        got = filter_tile(image[None], 0, (0, 0), image.shape, size, invert=True)
        np.testing.assert_array_equal(got, ndimage.median_filter(255 - image, size[1:], mode="reflect"))


def test_examples():
    assert doctest.testmod(median).failed == 0
