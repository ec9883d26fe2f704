"""Signals of tiles, levels between tiles, and counts of areas against NumPy, SciPy and exact fractions."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from pipeline.errors import RegionError, ShapeMismatchError
from pipeline.kernels import levels as module
from pipeline.kernels import tally
from pipeline.kernels.confusion import Counts
from pipeline.kernels.histogram import (
    BACKGROUND,
    UNLABELLED,
    VESSEL,
    binarize,
    joint_histograms,
    otsu_level,
    otsu_levels,
)
from pipeline.kernels.levels import Surface, binarize_smooth, binarize_tiles, fill_levels, signals
from pipeline.kernels.tally import count_mask, seam_pairs, valid_histograms

NAN = math.nan
DTYPES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
SHAPES = pytest.mark.parametrize("shape", [(40, 56), (37, 53), (16, 16), (5, 90), (1, 1)], ids=str)


def cuts(shape, side):
    """Tiles of a plane in C order."""
    return [np.s_[y : y + side, x : x + side] for y in range(0, shape[0], side) for x in range(0, shape[1], side)]


def area_of(dtype, shape, seed=0):
    """Grey levels, truth, valid area and mask, of all values that each may have."""
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    area = np.clip(rng.normal(top / 3, top / 20, shape), 0, top).astype(dtype)
    truth = rng.choice(np.array([0, 0, 255, 127, 1], np.uint8), shape)
    valid = rng.choice(np.array([0, 1, 255], np.uint8), shape)
    return area, truth, valid, rng.choice(np.array([0, 255], np.uint8), shape)


def surface_of(shape, side, seed=0, scale=1.0, empty=0.0):
    rng = np.random.default_rng(seed)
    grid = -(-shape[0] // side), -(-shape[1] // side)
    return Surface(scale * rng.uniform(60, 110, grid), rng.random(grid) < empty, side, shape)


# Signals


def exact_signal(counts, level):
    """Separability and contrast, in fractions."""
    parts = [[(v, int(n)) for v, n in enumerate(counts) if (v > level) is above] for above in (False, True)]
    sizes = [sum(n for _, n in part) for part in parts]
    if math.isnan(level) or 0 in sizes:
        return 0, 0
    means = [Fraction(sum(v * n for v, n in part), size) for part, size in zip(parts, sizes, strict=True)]
    mean = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
    total = sum(n * (v - mean) ** 2 for part in parts for v, n in part)
    between = sum(size * (m - mean) ** 2 for m, size in zip(means, sizes, strict=True))
    return between / total, means[1] - means[0]


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 60), min_size=9, max_size=9), min_size=3, max_size=3),
    level=st.one_of(st.floats(-2, 11), st.sampled_from([NAN, math.inf, -math.inf, 0.0, 7.5, 8.0])),
)
def test_signals_are_those_of_exact_fractions(counts, level):
    table = np.array(counts, np.uint32)
    expected = [float(value) for value in exact_signal(table.sum(axis=0), level)]
    for tables in (table[None], table.astype(np.int64)[None], table.sum(axis=0, dtype=np.int64)[None]):
        found = signals(tables, np.array([level]))
        assert [part.dtype for part in found] == [np.float64] * 2
        np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-13)
        assert 0 <= found[0][0] <= 1


@DTYPES
def test_signals_of_tiles_are_those_of_their_voxels(dtype):
    area, truth, *_ = area_of(dtype, (64, 96))
    tables = np.empty((24, 3, 1 << 8 * area.itemsize), np.uint32)
    joint_histograms(area, truth, 16, 0, tables)
    levels = otsu_levels(tables)
    separability, contrast = signals(tables, levels)
    for index, cut in enumerate(cuts(area.shape, 16)):
        tile, level = area[cut].astype(np.float64), levels[index]
        classes = tile > level
        means = tile[~classes].mean(), tile[classes].mean()
        assert contrast[index] == pytest.approx(means[1] - means[0], rel=1e-12)
        assert separability[index] == pytest.approx(np.where(classes, means[1], means[0]).var() / tile.var(), rel=1e-12)


@pytest.mark.parametrize(
    ("counts", "level", "expected"),
    [
        ([4, 0, 0, 4], 0.0, (1.0, 3.0)),
        ([4, 0, 0, 4], 2.9, (1.0, 3.0)),
        ([4, 0, 0, 4], NAN, (0.0, 0.0)),
        ([4, 0, 0, 4], 3.0, (0.0, 0.0)),
        ([4, 0, 0, 4], -0.5, (0.0, 0.0)),
        ([0, 9, 0, 0], 1.0, (0.0, 0.0)),
        ([0, 9, 0, 0], 0.0, (0.0, 0.0)),
        ([0, 0, 0, 0], 1.0, (0.0, 0.0)),
        ([1, 1, 1, 1], 1.0, (0.8, 2.0)),
    ],
    ids=str,
)
def test_signals_of_few_levels(counts, level, expected):
    assert tuple(float(part[0]) for part in signals(np.array([counts]), np.array([level]))) == expected


def test_otsu_parts_the_noise_of_one_class_at_two_over_pi():
    noise = np.bincount(np.random.default_rng(0).normal(3000, 300, 10**6).astype(int), minlength=65536)
    separability, contrast = signals(noise[None], np.array([otsu_level(noise)]))
    assert separability[0] == pytest.approx(2 / math.pi, abs=2e-3)
    assert contrast[0] == pytest.approx(2 * 300 * math.sqrt(2 / math.pi), rel=5e-3)


def test_signals_of_a_whole_volume_of_16_bit():
    counts = np.zeros((1, 65536), np.int64)
    counts[0, [60000, 60001, 65535]] = 5 * 10**10, 5 * 10**10, 10**10
    expected = [float(value) for value in exact_signal(counts[0], 60001.0)]
    np.testing.assert_allclose(np.ravel(signals(counts, np.array([60001.0]))), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 256), (3,), (2, 2, 3, 256)], ids=str)
def test_signals_need_a_level_for_each_table(shape):
    with pytest.raises(ShapeMismatchError, match=r"levels: got shape \(3,\), the tables have"):
        signals(np.zeros(shape, np.uint32), np.zeros(3))


# Levels that are filled


def slow_fill(levels, keep, deviations=3.0):
    """`fill_levels`, word by word, tile by tile."""
    rows, columns = levels.shape

    def around(known, row, column, reach):
        return [
            value
            for (r, c), value in known.items()
            if (r, c) != (row, column) and max(abs(r - row), abs(c - column)) <= reach
        ]

    said = {at: float(levels[at]) for at in np.ndindex(rows, columns) if keep[at] and math.isfinite(levels[at])}
    outliers = set()
    for (row, column), level in said.items():
        others = around(said, row, column, 2)
        if len(others) >= 5:
            scale = 1.4826 * np.median(np.abs(np.array(others) - np.median(others)))
            if abs(level - np.median(others)) > deviations * max(1.0, scale):
                outliers.add((row, column))
    known = {at: level for at, level in said.items() if at not in outliers} or said
    while known and len(known) < levels.size:
        found = {at: around(known, *at, 1) for at in np.ndindex(rows, columns) if at not in known}
        known |= {at: float(np.median(values)) for at, values in found.items() if values}
    return np.array([[known.get((row, column), NAN) for column in range(columns)] for row in range(rows)])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.4, 5.0, 60.0]),
    said=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
def test_fill_levels_does_what_it_says(rows, columns, seed, noise, said):
    rng = np.random.default_rng(seed)
    levels = 80 + 3 * np.arange(columns) + rng.normal(0, noise, (rows, columns))
    levels[rng.random(levels.shape) < 0.1] = 20
    levels[rng.random(levels.shape) < 0.1] = rng.choice([NAN, math.inf])
    keep = rng.random(levels.shape) < said
    before = levels.copy()
    filled = fill_levels(levels, keep)
    np.testing.assert_array_equal(filled, slow_fill(levels, keep))
    np.testing.assert_array_equal(levels, before)
    assert np.isfinite(filled).all() or np.isnan(filled).all()


def test_outliers_get_the_level_of_their_neighbours():
    levels = np.full((4, 5), 80.0)
    levels[0, 0], levels[2, 2], levels[3, 3] = 20, 140, 82
    expected = np.where(levels == 82, 82.0, 80.0)  # within three grey levels, although all others are equal
    np.testing.assert_array_equal(fill_levels(levels, np.ones((4, 5), bool)), expected)
    levels[3, 3] = 83.5
    np.testing.assert_array_equal(fill_levels(levels, np.ones((4, 5), bool)), np.full((4, 5), 80.0))
    expected[3, 3] = 83.5
    np.testing.assert_array_equal(fill_levels(levels, np.ones((4, 5), bool), deviations=3.6), expected)


@pytest.mark.parametrize("steps", [(10, 0), (0, 10), (4, 4)], ids=str)
def test_a_gradient_has_no_outliers(steps):
    levels = 200 - steps[0] * np.arange(9.0)[:, None] - steps[1] * np.arange(16.0)
    np.testing.assert_array_equal(fill_levels(levels, np.ones(levels.shape, bool)), levels)


def test_empty_tiles_at_the_border_take_on_the_light_beside_them():
    levels = 60 + 4 * np.arange(10.0) + np.zeros((7, 1))
    noise, keep = levels.copy(), np.ones(levels.shape, bool)
    noise[0], noise[:, 0] = 12, 12
    keep[0, ::2] = keep[:, 0] = False  # the other tiles of the first row look as if they had a signal
    filled = fill_levels(noise, keep)
    np.testing.assert_array_equal(filled[1:, 1:], levels[1:, 1:])
    assert abs(filled - levels).max() <= 4


@pytest.mark.parametrize(
    "levels", [[[80, 81, NAN], [20, 80, 81]], [[80, 20, 79, 80, 81, 80]], [[20]]], ids=["2 x 3", "1 x 6", "1 x 1"]
)
def test_a_level_is_not_judged_by_fewer_than_five(levels):
    levels = np.array(levels, np.float64)
    filled = fill_levels(levels, np.ones(levels.shape, bool))
    np.testing.assert_array_equal(filled, np.where(np.isnan(levels), 81.0, levels))


@pytest.mark.parametrize(("level", "outlier"), [(124.47, False), (124.48, True), (35.53, False), (35.52, True)])
def test_an_outlier_is_three_robust_deviations_away(level, outlier):
    levels = np.array([[70.0, 80, 90], [60, level, 100], [110, 80, 80]])  # limit: 3 * 1.4826 * 10 from 80
    assert module._outliers(levels, 3.0)[1, 1] == outlier


def test_a_level_is_judged_by_five():
    filled = fill_levels(np.array([[80.0, 81, 82], [20, 80, 81]]), np.ones((2, 3), bool))
    assert filled.tolist() == [[80, 81, 82], [80, 80, 81]]


def test_stripes_that_are_all_outliers_stay():
    levels = np.tile([0.0, 100, 100, 0, 0, 100, 100, 0], (8, 1))
    assert module._outliers(levels, 3.0).all()
    np.testing.assert_array_equal(fill_levels(levels, levels >= 0), levels)


def test_levels_grow_ring_by_ring():
    levels, keep = np.zeros((5, 7)), np.zeros((5, 7), bool)
    levels[2, [1, 5]], keep[2, [1, 5]] = (50, 60), True
    assert fill_levels(levels, keep)[2].tolist() == [50, 50, 50, 55, 60, 60, 60]


@pytest.mark.parametrize("levels", [np.full((2, 3), NAN), np.array([[math.inf]])], ids=str)
def test_without_any_say_there_is_no_level(levels):
    filled = fill_levels(levels, np.ones(levels.shape, bool))
    assert filled.shape == levels.shape
    assert np.isnan(filled).all()
    assert np.isnan(fill_levels(np.full((2, 2), 5.0), np.zeros((2, 2), bool))).all()


def test_fill_levels_needs_equal_grids():
    with pytest.raises(ShapeMismatchError, match=r"keep: got shape \(3, 2\), the levels have \(2, 3\)"):
        fill_levels(np.zeros((2, 3)), np.ones((3, 2), bool))


# Masks


def interpolated(surface):
    """Level of each voxel of a slice, by SciPy: with one more tile at each side, the level is constant beyond."""
    axes = []
    for length in surface.shape:
        centres = [np.arange(length)[at : at + surface.side].mean() for at in range(0, length, surface.side)]
        axes.append(np.array([centres[0] - 1e6, *centres, centres[-1] + 1e6]))
    points = np.stack(np.meshgrid(*map(np.arange, surface.shape), indexing="ij"), axis=-1)
    return RegularGridInterpolator(axes, np.pad(surface.levels, 1, mode="edge"))(points)


def empty_voxels(surface):
    full = surface.empty.repeat(surface.side, axis=0).repeat(surface.side, axis=1)
    return full[: surface.shape[0], : surface.shape[1]]


@DTYPES
@SHAPES
@pytest.mark.parametrize("side", [1, 7, 16, 100])
def test_smooth_is_bilinear_between_the_centres_of_tiles(shape, side, dtype):
    scale = np.iinfo(dtype).max / 255
    surface = surface_of(shape, side, scale=scale, empty=0.2)
    level = interpolated(surface)
    rng = np.random.default_rng(1)
    plane = np.rint(level + scale * rng.choice([-30, -0.01, 0.01, 30], shape)).astype(dtype)
    mask = np.full(shape, 77, np.uint8)
    binarize_smooth(plane, (0, 0), surface, mask)
    clear = abs(plane - level) > 1e-6 * scale
    expected = np.where((plane > level) & ~empty_voxels(surface), 255, 0)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(mask[clear], expected[clear])
    assert set(np.unique(mask)) <= {0, 255}


def test_smooth_is_as_map_coordinates():
    side, shape = 8, (32, 48)  # of whole tiles only, whose centres are a regular grid
    surface = surface_of(shape, side)
    at = [(np.arange(length) + 0.5) / side - 0.5 for length in shape]
    level = ndimage.map_coordinates(surface.levels, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
    plane = np.random.default_rng(2).integers(60, 110, shape, np.uint8)
    mask = np.empty(shape, np.uint8)
    binarize_smooth(plane, (0, 0), surface, mask)
    np.testing.assert_array_equal(mask, np.where(plane > level, 255, 0))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), side=st.integers(1, 20), seed=st.integers(0, 99), wide=st.booleans(), smooth=st.booleans())
def test_a_cut_out_plane_gets_the_mask_of_the_slice(data, side, seed, wide, smooth):
    shape = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    (top, bottom), (left, right) = (
        sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length)))) for length in shape
    )
    cut = np.s_[top:bottom, left:right]
    rng = np.random.default_rng(seed)
    surface = surface_of(shape, side, seed, 256.0 if wide else 1.0, empty=0.2)
    # As near to the level as can be, and of levels that are not whole: the last bit of the interpolation decides.
    surface.levels[...] = np.rint(surface.levels) if rng.random() < 0.5 else surface.levels
    plane = np.rint(interpolated(surface)).astype(np.uint16 if wide else np.uint8)

    def masked(part, origin):
        mask = np.full(part.shape, 77, np.uint8)
        if smooth:
            binarize_smooth(part, origin, surface, mask)
        else:
            binarize_tiles(part, origin, side, np.where(surface.empty, NAN, surface.levels), mask)
        return mask

    whole = masked(plane, (0, 0))
    np.testing.assert_array_equal(masked(plane[cut], (top, left)), whole[cut])
    np.testing.assert_array_equal(masked(plane[cut].copy(), (top, left)), whole[cut])
    assert not whole[empty_voxels(surface)].any()


@pytest.mark.parametrize("level", [79.0, 0.1, 254.999, 255.0, -1.0, 300.0])
def test_equal_levels_are_a_level(level):
    surface = Surface(np.full((3, 4), level), np.zeros((3, 4), bool), 7, (17, 23))
    plane = np.random.default_rng(3).integers(0, 256, (17, 23), np.uint8)
    plane[::2, ::2] = min(max(math.floor(level), 0), 255)
    mask = np.empty(plane.shape, np.uint8)
    binarize_smooth(plane, (0, 0), surface, mask)
    np.testing.assert_array_equal(mask, np.where(plane > level, 255, 0))


def test_beyond_the_outermost_centres_the_level_stays():
    index, weight = module._between(-1, 10, module._centres(8, 4))
    assert index.tolist() == [0] * 7 + [1] * 3
    assert weight.tolist() == [0, 0, 0, 0.125, 0.375, 0.625, 0.875, 0, 0, 0]


def test_at_a_centre_the_level_is_that_of_its_tile():
    index, weight = module._between(0, 9, module._centres(9, 3))  # not all of the way to it, which would round
    assert index.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert (weight[[1, 4, 7]] == 0).all()


@pytest.mark.parametrize(
    ("length", "side", "centres"),
    [(8, 4, [1.5, 5.5]), (9, 4, [1.5, 5.5, 8]), (3, 4, [1]), (3, 1, [0, 1, 2])],
    ids=str,
)
def test_centres_are_those_of_the_voxels_that_a_tile_has(length, side, centres):
    assert module._centres(length, side).tolist() == centres


def test_an_empty_tile_is_background_and_its_neighbours_see_its_level():
    surface = Surface(np.array([[10.0, 50.0]]), np.array([[False, True]]), 4, (4, 8))
    mask = np.empty((4, 8), np.uint8)
    binarize_smooth(np.full((4, 8), 20, np.uint8), (0, 0), surface, mask)
    assert mask.tolist() == [[255, 255, 255, 0, 0, 0, 0, 0]] * 4  # levels 10, 10, 15, 25 in the first tile


def test_a_slice_without_levels_has_an_empty_mask():
    surface = Surface(np.full((2, 2), NAN), np.zeros((2, 2), bool), 8, (16, 10))
    mask = np.full((16, 10), 77, np.uint8)
    binarize_smooth(np.full((16, 10), 255, np.uint8), (0, 0), surface, mask)
    assert not mask.any()


@pytest.mark.parametrize(
    ("levels", "empty", "error", "message"),
    [
        (np.zeros((2, 3)), (2, 2), ShapeMismatchError, r"\(9, 16\) voxels has \(2, 2\) tiles of 8"),
        (np.zeros((2, 2)), (2, 3), ShapeMismatchError, r"for the empty tiles \(2, 3\); a slice"),
        (np.array([[1, 2], [3, NAN]]), (2, 2), ValueError, "got some that are not finite, expected all or none"),
        (np.array([[1, 2], [3, math.inf]]), (2, 2), ValueError, "got some that are not finite"),
        (np.full((2, 2), math.inf), (2, 2), ValueError, "got some that are not finite"),
    ],
    ids=["levels", "empty", "nan", "inf", "all inf"],
)
def test_a_surface_has_all_levels_of_its_slice(levels, empty, error, message):
    with pytest.raises(error, match=message):
        Surface(levels, np.zeros(empty, bool), 8, (9, 16))


@pytest.mark.parametrize(
    ("origin", "mask", "error", "message"),
    [
        ((0, 0), (4, 6), ShapeMismatchError, r"mask: got shape \(4, 6\), the plane has \(4, 5\)"),
        ((-1, 0), (4, 5), RegionError, r"got \(4, 5\) voxels from \(-1, 0\), which leave their slice of \(8, 8\)"),
        ((0, 4), (4, 5), RegionError, r"voxels from \(0, 4\)"),
        ((5, 0), (4, 5), RegionError, r"voxels from \(5, 0\)"),
    ],
    ids=str,
)
def test_planes_lie_in_their_slice(origin, mask, error, message):
    plane, mask = np.zeros((4, 5), np.uint8), np.zeros(mask, np.uint8)
    with pytest.raises(error, match=message):
        binarize_smooth(plane, origin, surface_of((8, 8), 4), mask)
    with pytest.raises(error, match=message):
        binarize_tiles(plane, origin, 4, np.zeros((2, 2)), mask)


@DTYPES
@SHAPES
@pytest.mark.parametrize("side", [1, 8, 100])
def test_tiles_are_as_binarize(shape, side, dtype):
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(4)
    plane = rng.integers(0, top, shape, dtype, endpoint=True)
    grid = -(-shape[0] // side), -(-shape[1] // side)
    special = [NAN, -math.inf, math.inf, -1, -0.5, 0, top - 0.5, top, top + 1]
    levels = np.where(rng.random(grid) < 0.5, rng.uniform(0, top, grid), rng.choice(special, grid))
    expected, mask = np.empty((2, *shape), np.uint8)
    binarize(plane, side, levels.ravel(), expected)
    binarize_tiles(plane, (0, 0), side, levels, mask)
    np.testing.assert_array_equal(mask, expected)


@DTYPES
def test_masks_are_written_through_views(dtype):
    plane = np.random.default_rng(5).integers(0, 200, (40, 30)).astype(dtype)[3:23, 4:24]
    surface = surface_of((24, 28), 8)
    canvas = np.full((2, 24, 26), 77, np.uint8)
    for mask in canvas[:, 2:22, 3:23]:
        binarize_smooth(plane, (1, 5), surface, mask)
    binarize_tiles(plane, (1, 5), 8, surface.levels, canvas[1, 2:22, 3:23])
    level = np.repeat(np.repeat(surface.levels, 8, axis=0), 8, axis=1)[1:21, 5:25]
    np.testing.assert_array_equal(canvas[0, 2:22, 3:23], np.where(plane > interpolated(surface)[1:21, 5:25], 255, 0))
    np.testing.assert_array_equal(canvas[1, 2:22, 3:23], np.where(plane > level, 255, 0))
    assert np.count_nonzero(canvas != 77) == 2 * plane.size


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


# Kernels as plain Python


def test_kernels_as_plain_python():
    area, truth, valid, mask = area_of(np.uint16, (6, 7))
    valid[:4, :4] = 1
    valid[4:, :4] = 0
    surface = surface_of((6, 7), 4, scale=257)
    axes = [module._between(0, length, module._centres(length, 4)) for length in (6, 7)]
    counts = np.random.default_rng(7).integers(0, 9, (2, 3, 8)).astype(np.uint32)
    cases = [
        (module._part_tables, (counts, np.array([3.5, NAN])), (2, 2), np.float64),
        (module._binarize_smooth, (area, surface.levels, *axes), (6, 7), np.uint8),
        (module._binarize_tiles, (area, (1, 2), 4, np.array([[2e4, NAN, -1], [3e4, 1e9, 2.5e4]])), (6, 7), np.uint8),
        (tally._count_mask, (mask, truth, valid, 4), (4, 4), np.int64),
        (tally._count_mask, (mask, truth, None, 4), (4, 4), np.int64),
        (tally._count_pairs, (mask, 4, np.array([1, 2, 3, 4])), (4, 4), np.int64),
    ]
    for kernel, arguments, shape, dtype in cases:
        expected, got = np.zeros((2, *shape), dtype)
        kernel(*arguments, expected)
        kernel.py_func(*arguments, got)
        np.testing.assert_array_equal(got, expected, err_msg=kernel.__name__)
    for labels in (truth, None):
        expected, got = np.full((2, 4, 3, 65536), 9, np.uint32)
        tally._uncount(area, labels, valid, 4, 0, expected)
        tally._uncount.py_func(area, labels, valid, 4, 0, got)
        np.testing.assert_array_equal(got, expected)


def test_parts_of_kernels_as_plain_python():
    below, above = np.array([2, 0, 3]), np.array([0, 4, 1])
    assert module._part.py_func(below, above, 3) == module._part(below, above, 3)
    assert module._part.py_func(below, above[:1], 3) == (0.0, 0.0)
    assert module._size_and_mean.py_func(below, 10) == (5.0, 11.2)
    assert module._size_and_mean.py_func(below[:0], 10) == (0.0, 0.0)
    assert module._squares.py_func(below, 10, 11.0) == 5.0
    plane = np.arange(30, dtype=np.uint8).reshape(5, 6)
    assert tally._range.py_func(plane, (1, 3, 2, 4)) == tally._range(plane, (1, 3, 2, 4)) == (8, 15)
    assert [tally._row.py_func(label) for label in (0, 255, 127, 1)] == [BACKGROUND, VESSEL, UNLABELLED, UNLABELLED]


def test_examples():
    assert doctest.testmod(module).failed == 0
