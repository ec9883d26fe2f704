"""Counts of areas, and of pairs of voxels where tiles meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import tally
from pipeline.kernels.confusion import Counts
from pipeline.kernels.histogram import (
    BACKGROUND,
    UNLABELLED,
    VESSEL,
)
from pipeline.kernels.tally import count_mask, seam_pairs, valid_histograms
from tests.areas import area_of, cuts

DTYPES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
SHAPES = pytest.mark.parametrize("shape", [(40, 56), (37, 53), (16, 16), (5, 90), (1, 1)], ids=str)


# Counts of areas


@DTYPES
@SHAPES
@pytest.mark.parametrize("side", [8, 20, 100])
@pytest.mark.parametrize("annotated", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_valid_voxels_are_counted(shape, side, dtype, annotated, bounded):
    area, truth, valid, _ = area_of(dtype, shape)
    tiles = cuts(shape, side)
    valid[tiles[0]], valid[tiles[-1]] = 0, 1  # the last one wins where there is one
    rows = [truth == 0, truth == 255, (truth != 0) & (truth != 255)]
    if not annotated:
        truth, rows = None, [np.zeros(shape, bool)] * 2 + [np.ones(shape, bool)]
    if not bounded:
        valid = None
    inside = np.ones(shape, bool) if valid is None else valid != 0
    levels = 1 << 8 * area.itemsize
    expected = [[np.bincount(area[cut][(row & inside)[cut]], minlength=levels) for row in rows] for cut in tiles]
    tables = np.full((len(tiles), 3, levels), 77, np.uint32)
    half = len(tiles) // 2
    for first, stop in ((0, half), (half, len(tiles))):
        valid_histograms(area, truth, valid, side, first, tables[first:stop])
    np.testing.assert_array_equal(tables, expected)


@SHAPES
@pytest.mark.parametrize("side", [8, 20, 300])
@pytest.mark.parametrize("bounded", [False, True])
def test_masks_are_counted_by_tile(shape, side, bounded):
    shape = shape[0], 5 * shape[1]  # more than is added up at once
    _, truth, valid, mask = area_of(np.uint8, shape)
    known = np.isin(truth, (0, 255)) & ((valid != 0) | (not bounded))
    vessel, marked = truth == 255, mask != 0
    kinds = [vessel & marked, ~vessel & marked, vessel & ~marked, ~vessel & ~marked]
    expected = [[np.count_nonzero((kind & known)[cut]) for kind in kinds] for cut in cuts(shape, side)]
    counts = count_mask(mask, truth, valid if bounded else None, side)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    if not bounded:
        truth[truth == 1] = 127
        assert Counts(*counts.sum(axis=0).tolist()) == Counts.from_images(truth, mask)


@pytest.mark.parametrize("truth", [0, 255])
@pytest.mark.parametrize("mask", [0, 255])
def test_no_count_overflows(truth, mask):
    counts = count_mask(np.full((300, 700), mask, np.uint8), np.full((300, 700), truth, np.uint8), None, 1000)
    assert counts.tolist() == [
        [210_000 * (truth == t and mask == m) for t, m in ((255, 255), (0, 255), (255, 0), (0, 0))]
    ]


def test_nothing_is_counted_without_truth():
    _, truth, valid, mask = area_of(np.uint8, (20, 30))
    assert count_mask(mask, None, valid, 8).tolist() == [[0] * 4] * 12
    assert not count_mask(mask, truth, np.zeros_like(valid), 8).any()


@DTYPES
def test_areas_may_be_views(dtype):
    area, truth, valid, mask = (image[3:40, 5:47] for image in area_of(dtype, (50, 60)))
    tables, expected = np.empty((2, 30, 3, 1 << 8 * area.itemsize), np.uint32)
    valid_histograms(area, truth, valid, 8, 0, tables)
    valid_histograms(area.copy(), truth.copy(), valid.copy(), 8, 0, expected)
    np.testing.assert_array_equal(tables, expected)
    copies = mask.copy(), truth.copy(), valid.copy()
    np.testing.assert_array_equal(count_mask(mask, truth, valid, 8), count_mask(*copies, 8))
    np.testing.assert_array_equal(seam_pairs(mask, 8), seam_pairs(copies[0], 8))


@pytest.mark.parametrize("wrong", ["truth", "valid"])
def test_areas_have_one_shape(wrong):
    images = {"truth": np.zeros((4, 4), np.uint8), "valid": np.zeros((4, 4), np.uint8)} | {wrong: np.zeros((4, 5), "B")}
    with pytest.raises(ShapeMismatchError, match=rf"{wrong}: got shape \(4, 5\), the mask has \(4, 4\)"):
        count_mask(np.zeros((4, 4), np.uint8), *images.values(), 4)
    with pytest.raises(ShapeMismatchError, match=rf"{wrong}: got shape \(4, 5\), the (area|tile) has \(4, 4\)"):
        valid_histograms(np.zeros((4, 4), np.uint8), *images.values(), 4, 0, np.zeros((1, 3, 256), np.uint32))


# Seams


def slow_seams(mask, side):
    counts = []
    differ = [mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]]  # [k - 1]: across the line before k
    lines = sorted({side // 4, side // 2, 3 * side // 4} - {0})
    for cut in cuts(mask.shape, side):
        row = np.zeros(4, int)
        for axis, part in enumerate(cut):
            if part.start + side < mask.shape[axis]:
                for first, offsets in ((0, [side]), (2, lines)):
                    for offset in offsets:
                        line = differ[axis].take(part.start + offset - 1, axis=axis)[cut[1 - axis]]
                        row[first : first + 2] += line.size, line.sum()
        counts.append(row)
    return counts


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), side=st.integers(1, 45), seed=st.integers(0, 99))
def test_seams_are_counted(height, width, side, seed):
    mask = np.random.default_rng(seed).choice(np.array([0, 255], np.uint8), (height, width))
    counts = seam_pairs(mask, side)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, slow_seams(mask, side))
    lines = len({side // 4, side // 2, 3 * side // 4} - {0})
    np.testing.assert_array_equal(counts[:, 2], lines * counts[:, 0])


def quotient(mask, side):
    border, changed, inside, changed_inside = seam_pairs(mask, side).sum(axis=0).tolist()
    return changed / border / (changed_inside / inside)


@pytest.mark.parametrize("shape", [(1000, 1000), (60, 9000), (1037, 1003)], ids=str)
@pytest.mark.parametrize("blur", [(1.5, 1.5), (0.5, 6.0)], ids=str)
def test_the_quotient_is_1_without_seams_and_more_with_them(shape, blur):
    rng = np.random.default_rng(6)
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), blur)
    texture /= texture.std()
    side = 64
    grid = -(-shape[0] // side), -(-shape[1] // side)
    tiles = np.repeat(np.repeat(rng.normal(0.5, 0.5, grid), side, axis=0), side, axis=1)[: shape[0], : shape[1]]
    assert quotient(np.where(texture > 0.5, 255, 0).astype(np.uint8), side) == pytest.approx(1, abs=0.05)
    assert quotient(np.where(texture > tiles, 255, 0).astype(np.uint8), side) > 1.15


def test_a_checkerboard_of_tiles_changes_at_each_border():
    mask = np.where(np.add.outer(np.arange(20) // 8, np.arange(24) // 8) % 2, 255, 0).astype(np.uint8)
    both, one, low, none = (
        [16, 16, 48, 0],
        [8, 8, 24, 0],
        [4, 4, 12, 0],
        [0, 0, 0, 0],
    )  # the last row is four voxels high
    assert seam_pairs(mask, 8).tolist() == [both, both, one, both, both, one, low, low, none]


def test_kernels_as_plain_python():
    area, truth, valid, mask = area_of(np.uint16, (6, 7))
    valid[:4, :4] = 1
    valid[4:, :4] = 0
    for kernel, arguments, shape, dtype in [
        (tally._count_mask, (mask, truth, valid, 4), (4, 4), np.int64),
        (tally._count_mask, (mask, truth, None, 4), (4, 4), np.int64),
        (tally._count_pairs, (mask, 4, np.array([1, 2, 3, 4])), (4, 4), np.int64),
    ]:
        expected, got = np.zeros((2, *shape), dtype)
        kernel(*arguments, expected)
        kernel.py_func(*arguments, got)
        np.testing.assert_array_equal(got, expected, err_msg=kernel.__name__)
    for labels in (truth, None):
        expected, got = np.full((2, 4, 3, 65536), 9, np.uint32)
        tally._uncount(area, labels, valid, 4, 0, expected)
        tally._uncount.py_func(area, labels, valid, 4, 0, got)
        np.testing.assert_array_equal(got, expected)
    plane = np.arange(30, dtype=np.uint8).reshape(5, 6)
    assert tally._range.py_func(plane, (1, 3, 2, 4)) == tally._range(plane, (1, 3, 2, 4)) == (8, 15)
    assert [tally._row.py_func(label) for label in (0, 255, 127, 1)] == [BACKGROUND, VESSEL, UNLABELLED, UNLABELLED]
