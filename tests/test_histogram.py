"""Joint histograms, thresholds and masks against slow oracles: NumPy, exact fractions, scikit-image."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage
from skimage.filters import threshold_otsu

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import histogram
from pipeline.kernels.confusion import Counts
from pipeline.kernels.masks import binarize_tiles

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
TRUTH_VALUES = [histogram.TRUTH_BACKGROUND, histogram.TRUTH_VESSEL, histogram.TRUTH_UNLABELLED, 1]
LEVELS = st.one_of(
    st.floats(-3, 300), st.integers(-1, 256).map(float), st.sampled_from([math.nan, math.inf, -math.inf])
)


@st.composite
def tiles_with_truth(draw):
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=12))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    tile = draw(arrays(dtype, shape, elements=st.integers(0, np.iinfo(dtype).max)))
    return tile, draw(arrays(np.uint8, shape, elements=st.sampled_from(TRUTH_VALUES)))


def count(tile, truth):
    table = np.full((3, 1 << 8 * tile.dtype.itemsize), 77, np.uint32)  # what the tile before left in it
    histogram.joint_histogram(tile, truth, table)
    return table


def variance(counts, level):
    """Between-class variance, exactly, times the square of the number of voxels."""
    sizes = [int(sum(part)) for part in (counts[: level + 1], counts[level + 1 :])]
    moments = [int(sum(n * v for v, n in enumerate(counts) if (v > level) is above)) for above in (False, True)]
    if 0 in sizes:
        return Fraction(0)
    return sizes[0] * sizes[1] * (Fraction(moments[0], sizes[0]) - Fraction(moments[1], sizes[1])) ** 2


@settings(max_examples=60, deadline=None)
@given(images=tiles_with_truth(), annotated=st.booleans())
def test_joint_histogram_is_three_bincounts(images, annotated):
    tile, truth = images
    rows = (
        [truth == 0, truth == 255, (truth != 0) & (truth != 255)]
        if annotated
        else [truth != truth] * 2 + [truth == truth]
    )
    table = count(tile, truth if annotated else None)
    expected = [np.bincount(tile[row], minlength=table.shape[1]) for row in rows]
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_joint_histogram_of_views(dtype):
    rng = np.random.default_rng(5)
    tile = rng.integers(0, 200, (70, 90)).astype(dtype)[3:60, 5:82]
    truth = rng.choice(np.array(TRUTH_VALUES, np.uint8), (100, 100))[7:64, 9:86]
    np.testing.assert_array_equal(count(tile, truth), count(tile.copy(), truth.copy()))


TRUTHS = {
    "none": lambda rng, shape: None,
    "background": lambda rng, shape: np.zeros(shape, np.uint8),
    "unlabelled": lambda rng, shape: np.full(shape, 127, np.uint8),
    "another unlabelled": lambda rng, shape: np.full(shape, 1, np.uint8),
    "vessel": lambda rng, shape: np.full(shape, 255, np.uint8),
    "sparse": lambda rng, shape: np.where(rng.random(shape) < 0.01, 255, 0).astype(np.uint8),
    "sparse in unlabelled": lambda rng, shape: np.where(rng.random(shape) < 0.01, 255, 127).astype(np.uint8),
    "half unlabelled": lambda rng, shape: np.where(np.indices(shape)[1] * 2 < shape[1], 127, 0).astype(np.uint8),
    "dense": lambda rng, shape: rng.choice(np.array(TRUTH_VALUES, np.uint8), shape),
}
VALUES = {
    "constant": lambda rng, shape, top: np.full(shape, top),
    "alike": lambda rng, shape, top: np.clip(rng.normal(top / 3, top / 100, shape), 0, top),
    "random": lambda rng, shape, top: rng.integers(0, top, shape, endpoint=True),
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("labels", TRUTHS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(64, 96), (37, 53), (1, 7), (3, 0)], ids=str)
def test_joint_histogram_of_every_truth(shape, dtype, labels, values):
    rng = np.random.default_rng(11)
    tile = VALUES[values](rng, shape, np.iinfo(dtype).max).astype(dtype)
    truth = TRUTHS[labels](rng, shape)
    classes = np.full(shape, 2) if truth is None else np.select([truth == 0, truth == 255], [0, 1], 2)
    table = count(tile, truth)
    np.testing.assert_array_equal(
        table, [np.bincount(tile[classes == row], minlength=table.shape[1]) for row in range(3)]
    )
    np.testing.assert_array_equal(histogram.level_counts(table), np.bincount(tile.ravel(), minlength=table.shape[1]))


@pytest.mark.parametrize(
    ("truth", "table", "message"),
    [
        ((3, 4), (3, 256), r"truth: got shape \(3, 4\), the tile has \(4, 4\)"),
        ((4, 4), (3, 65536), r"table: got shape \(3, 65536\), uint8 needs \(3, 256\)"),
        ((4, 4), (2, 256), r"table: got shape \(2, 256\)"),
    ],
    ids=["truth", "levels", "rows"],
)
def test_joint_histogram_refuses(truth, table, message):
    with pytest.raises(ShapeMismatchError, match=message):
        histogram.joint_histogram(np.zeros((4, 4), np.uint8), np.zeros(truth, np.uint8), np.zeros(table, np.uint32))


@pytest.mark.parametrize(
    ("counts", "level"),
    [
        ([0, 0, 0], math.nan),
        ([0, 0, 7], 2),
        ([9, 0, 0], 0),
        ([4, 4], 0),
        ([1, 1, 1], 0),  # both levels are equally good
        ([5, 0, 0, 0, 5], 0),  # so are all four
        ([0, 3, 0, 0, 1, 0], 1),
        ([8, 4, 1, 0, 0, 6, 2], 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64])
def test_otsu_level(counts, level, dtype):
    counts = np.array(counts, dtype)
    assert histogram.otsu_level(counts) == pytest.approx(level, nan_ok=True, abs=0)
    assert histogram.otsu_level.py_func(counts) == pytest.approx(level, nan_ok=True, abs=0)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=14).filter(any))
def test_otsu_is_the_first_maximum(counts):
    variances = [variance(counts, level) for level in range(len(counts))]
    expected = variances.index(max(variances)) if any(variances) else np.flatnonzero(counts)[0]
    assert histogram.otsu_level(np.array(counts)) == expected


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 10**10), min_size=2, max_size=10), offset=st.sampled_from([0, 65000]))
def test_otsu_of_a_whole_volume(counts, offset):
    table = np.zeros(65536, np.int64)
    table[offset : offset + len(counts)] = counts
    level = histogram.otsu_level(table)
    best = max(variance(counts, index) for index in range(len(counts)))
    assert math.isnan(level) or variance(counts, int(level) - offset) >= best * (1 - Fraction(1, 10**9))


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 1), (np.uint16, 1), (np.uint16, 200)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_otsu_agrees_with_scikit_image(dtype, scale, seed):
    rng = np.random.default_rng(seed)
    means = np.where(rng.random((64, 64)) < 0.1, 160, 40)
    image = np.clip(scale * rng.normal(means, 20), 0, np.iinfo(dtype).max).astype(dtype)
    level = histogram.otsu_level(count(image, None).sum(axis=0))
    assert abs(level - threshold_otsu(image)) <= 1


@settings(max_examples=60, deadline=None)
@given(images=tiles_with_truth(), level=LEVELS, scale=st.sampled_from([1.0, 256.0]))
def test_table_and_mask_give_the_same_counts(images, level, scale):
    tile, truth = images
    truth[truth == 1] = histogram.TRUTH_UNLABELLED
    level *= scale
    canvas = np.full((40, 50), 9, np.uint8)
    mask = canvas[3 : 3 + tile.shape[0], 4 : 4 + tile.shape[1]]
    binarize_tiles(tile, (0, 0), max(1, *tile.shape), np.array([[level]]), mask)
    np.testing.assert_array_equal(mask, np.where(tile > level, 255, 0))
    assert np.count_nonzero(canvas != 9) == mask.size
    counts = histogram.counts_above(count(tile, truth), level)
    assert Counts(*counts) == Counts.from_images(truth, mask)
    assert all(type(number) is int for number in counts)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64])
def test_counts_above_is_exact(dtype):
    table = np.ones((3, 256), dtype)
    table[histogram.VESSEL, 200] = big = min(np.iinfo(dtype).max, 2**60 + 1)
    assert histogram.counts_above(table, 199.5) == (int(big) + 55, 56, 200, 200)


@pytest.mark.parametrize(("first", "tiles"), [(-1, 1), (0, 7), (6, 1), (5, 2)])
def test_joint_histograms_refuse_tiles_that_there_are_not(first, tiles):
    with pytest.raises(ShapeMismatchError, match=f"got {tiles} from tile {first}, the plane"):
        histogram.joint_histograms(np.zeros((8, 9), np.uint8), None, 4, first, np.zeros((tiles, 3, 256), np.uint32))


PLANE_SIDES = [(64, 96), (37, 53), (16, 24), (1, 7), (48, 9)]


@pytest.mark.parametrize("side", [8, 16, 20, 100])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("annotated", [False, True])
@pytest.mark.parametrize("shape", PLANE_SIDES, ids=str)
def test_tiles_of_a_plane_are_as_each_by_itself(shape, annotated, dtype, side):
    rng = np.random.default_rng(14)
    plane = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    truth = rng.choice(np.array(TRUTH_VALUES, np.uint8), shape) if annotated else None
    cuts = [np.s_[y : y + side, x : x + side] for y in range(0, shape[0], side) for x in range(0, shape[1], side)]
    expected = np.stack([count(plane[cut], None if truth is None else truth[cut]) for cut in cuts])
    tables = np.full_like(expected, 77)
    half = len(cuts) // 2
    for some in (slice(half), slice(half, None)):
        histogram.joint_histograms(plane, truth, side, some.start or 0, tables[some])
    np.testing.assert_array_equal(tables, expected)
    levels = histogram.otsu_levels(tables)
    assert levels.tolist() == [histogram.otsu_level(table.sum(axis=0)) for table in expected]
    counts = histogram.counts_above_levels(tables, levels)
    assert [tuple(row) for row in counts.tolist()] == list(map(histogram.counts_above, expected, levels))


@pytest.mark.parametrize(
    ("kernel", "arguments", "shape", "dtype"),
    [
        (
            histogram._count_tiles_uint16,
            (np.uint16([[3, 3, 999]]), np.uint8([[0, 255, 127]]), 2, 0),
            (2, 3, 65536),
            np.uint32,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_kernel_as_plain_python(kernel, arguments, shape, dtype):
    expected, got = np.empty((2, *shape), dtype)
    kernel(*arguments, expected)
    kernel.py_func(*arguments, got)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("usual", [0, 127])
@pytest.mark.parametrize("annotated", [False, True])
def test_counting_as_plain_python(annotated, usual):
    rng = np.random.default_rng(12)
    plane = rng.integers(0, 256, (3, 24), np.uint8)
    some = rng.choice(np.array(TRUTH_VALUES, np.uint8), plane.shape)
    truth = np.where(np.arange(24) < 12, some, np.uint8(usual)) if annotated else None
    expected, got = np.empty((2, 2, 3, 256), np.uint32)
    for function, tables in ((histogram._count_tiles_uint8, expected), (histogram._count_tiles_uint8.py_func, got)):
        function(plane, truth, 16, 0, np.empty(65536, np.uint32), tables)
    np.testing.assert_array_equal(got, expected)
    rest, labels = plane[0, :5], None if truth is None else truth[0, :5]
    words = plane.view(np.uint64)[:, :2]
    label_words = None if truth is None else truth.view(np.uint64)[:, :2]
    for function, tables in ((histogram._count_uint8, expected), (histogram._count_uint8.py_func, got)):
        function(words, rest, label_words, labels, np.empty(65536, np.uint32), tables[0])
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(histogram.level_counts.py_func(got[0]), histogram.level_counts(got[0]))
    levels = histogram.otsu_levels(got)
    np.testing.assert_array_equal(histogram.otsu_levels.py_func(got), levels)
    np.testing.assert_array_equal(
        histogram.counts_above_levels.py_func(got, levels), histogram.counts_above_levels(got, levels)
    )


def test_parts_of_counting_as_plain_python():
    voxels, labels = np.uint8(range(10, 26)), np.uint8([0] * 8 + [0, 255, 127, 1] * 2)
    words, label_words = voxels.view(np.uint64)[None], labels.view(np.uint64)[None]
    expected, got = np.empty((2, 3, 256), np.uint32)
    pairs = np.zeros((2, 65536), np.uint32)
    histogram._count_labelled(words, label_words, 0, pairs[0], expected)
    histogram._count_labelled.py_func(words, label_words, 0, pairs[1], got)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(*pairs)
    assert np.flatnonzero(pairs[0]).tolist() == [10 + 256 * 11, 12 + 256 * 13, 14 + 256 * 15, 16 + 256 * 17]
    histogram._count_pairs.py_func(np.uint64(0x0302_0302_0001_0001), pairs[0])
    assert (pairs[0, 1], pairs[0, 0x302]) == (2, 2)
    assert histogram._row_starts.py_func(256)[[0, 255, 127, 3]].tolist() == [0, 256, 512, 512]


@pytest.mark.parametrize(
    ("labels", "row"),
    [([[0] * 8], 0), ([[0] * 8, [127] * 8], 2), ([[0] * 8 + [127] * 16], 2), ([[255] * 8], 0), ([[]], 0)],
    ids=str,
)
def test_usual_row(labels, row):
    words = np.array(labels, np.uint8).view(np.uint64)
    assert histogram._usual_row(words) == histogram._usual_row.py_func(words) == row
    value = histogram.TRUTH_BACKGROUND if row == histogram.BACKGROUND else histogram.TRUTH_UNLABELLED
    assert int(histogram._usual_word.py_func(row)).to_bytes(8) == bytes([value] * 8)


@pytest.mark.parametrize(
    ("stride", "bounds", "in_place"),
    [
        (64, (2, 7, 8, 24), True),
        (64, (0, 1, 0, 64), True),
        (64, (2, 7, 4, 20), False),
        (64, (2, 7, 8, 20), False),
        (60, (2, 7, 8, 24), False),
        (64, (2, 2, 8, 24), False),
        (64, (2, 7, 8, 8), False),
    ],
    ids=str,
)
def test_voxels_are_read_in_place_where_they_can_be(stride, bounds, in_place):
    plane = np.random.default_rng(13).integers(0, 256, (20, stride), np.uint8)
    top, bottom, left, right = bounds
    for function in (histogram._words_and_rest, histogram._words_and_rest.py_func):
        words, rest = function(plane, bounds)
        assert words.tobytes() + rest.tobytes() == plane[top:bottom, left:right].tobytes()
        assert words.size == 0 or np.shares_memory(words, plane) is in_place


@pytest.mark.parametrize(("number", "bounds"), [(0, (0, 4, 0, 4)), (2, (0, 4, 8, 9)), (5, (4, 6, 8, 9))], ids=str)
def test_tile_bounds(number, bounds):
    assert histogram.tile_bounds(number, (6, 9), 4) == histogram.tile_bounds.py_func(number, (6, 9), 4) == bounds


def test_counts_above_as_plain_python():
    table = np.arange(12, dtype=np.uint32).reshape(3, 4)
    assert histogram.counts_above.py_func(table, 1.0) == histogram.counts_above(table, 1.0) == (13, 5, 9, 1)


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not part of the repository")
def test_real_tile():
    image_module = pytest.importorskip("PIL.Image")
    image, label = (np.asarray(image_module.open(TILE / name)) for name in ("grayscale.png", "groundtruth.png"))
    filtered = ndimage.median_filter(255 - image, 3, mode="reflect")
    table = count(filtered, np.where(label > 0, 255, 0).astype(np.uint8))
    level = histogram.otsu_level(table.sum(axis=0))
    assert level == threshold_otsu(filtered) == 79
    assert histogram.counts_above(table, level) == (5595, 122, 1863, 254564)
