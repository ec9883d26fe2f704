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

from pipeline import histogram
from pipeline.confusion import Counts
from pipeline.errors import ShapeMismatchError

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
    histogram.binarize(tile, level, mask)
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


def test_binarize_refuses():
    with pytest.raises(ShapeMismatchError, match=r"out: got shape \(4, 5\), the tile has \(4, 4\)"):
        histogram.binarize(np.zeros((4, 4), np.uint8), 1.0, np.zeros((4, 5), np.uint8))


@settings(max_examples=30, deadline=None)
@given(
    ends=st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted),
    narrow=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rebin(ends, narrow, seed):
    low, high = ends
    high = min(high, low + 300) if narrow else high
    table = np.random.default_rng(seed).integers(0, 5, (3, 65536), np.uint32)
    bins = np.clip((np.arange(65536) - low) * 256 // (high - low + 1), 0, 255)
    out = np.full((3, 256), 77, np.uint32)
    histogram.rebin(table, (low, high), out)
    np.testing.assert_array_equal(out, [np.bincount(bins, row, 256) for row in table])


def test_rebin_leaves_256_levels_alone():
    table = np.arange(768, dtype=np.uint32).reshape(3, 256)
    out = np.zeros_like(table)
    histogram.rebin(table, (10, 20), out)
    np.testing.assert_array_equal(out, table)


@pytest.mark.parametrize(
    ("window", "levels", "error", "message"),
    [
        ((9, 8), 256, ValueError, "window: got 9 to 8, expected the lower level first"),
        ((0, 8), 255, ShapeMismatchError, r"out: got shape \(3, 255\), expected \(3, 256\)"),
    ],
    ids=["window", "out"],
)
def test_rebin_refuses(window, levels, error, message):
    with pytest.raises(error, match=message):
        histogram.rebin(np.zeros((3, 65536), np.uint32), window, np.zeros((3, levels), np.uint32))


@pytest.mark.parametrize(
    ("kernel", "arguments", "shape", "dtype"),
    [
        (histogram._count_uint16, (np.uint16([[3, 3, 999]]), np.uint8([[0, 255, 127]])), (3, 65536), np.uint32),
        (histogram._binarize, (np.uint8([[3, 4]]), np.uint8(3)), (1, 2), np.uint8),
        (histogram._rebin, (np.arange(60, dtype=np.uint32).reshape(3, 20), 4, 9), (3, 4), np.uint32),
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
    voxels = rng.integers(0, 256, 43, np.uint8)
    labels = np.where(np.arange(43) < 20, rng.choice(np.array(TRUTH_VALUES, np.uint8), 43), np.uint8(usual))
    words, rest = (labels[:40].view(np.uint64)[None], labels[40:]) if annotated else (None, None)
    expected, got = np.empty((2, 3, 256), np.uint32)
    for function, table in ((histogram._count_uint8, expected), (histogram._count_uint8.py_func, got)):
        function(voxels, words, rest, np.empty(65536, np.uint32), table)
    np.testing.assert_array_equal(got, expected)
    assert histogram.level_counts.py_func(got).tolist() == histogram.level_counts(got).tolist()


def test_parts_of_counting_as_plain_python():
    voxels, labels = np.uint8(range(10, 26)), np.uint8([0] * 8 + [0, 255, 127, 1] * 2)
    words, label_words = voxels.view(np.uint64), labels.view(np.uint64)[None]
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


@pytest.mark.parametrize(("side", "begin", "step"), [(16, 8, 1), (16, 4, 1), (12, 8, 1), (16, 8, 2)], ids=str)
def test_truth_is_read_in_place_where_it_can_be(side, begin, step):
    canvas = np.random.default_rng(13).integers(0, 256, (20, 64), np.uint8)
    truth = canvas[2:7, begin : begin + side * step : step]
    words, rest = histogram._words_and_rest(truth)
    assert words.tobytes() + rest.tobytes() == truth.tobytes()
    assert np.shares_memory(words, canvas) is ((side, begin, step) == (16, 8, 1))


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
