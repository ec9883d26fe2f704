"""Signals of tiles, and levels that are filled, against NumPy, SciPy and exact fractions."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import levels as module
from pipeline.kernels.histogram import (
    joint_histograms,
    otsu_level,
    otsu_levels,
)
from pipeline.kernels.levels import fill_levels, signals
from tests.areas import area_of, cuts

NAN = math.nan
DTYPES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


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


def test_kernels_as_plain_python():
    counts = np.random.default_rng(7).integers(0, 9, (2, 3, 8)).astype(np.uint32)
    expected, got = np.zeros((2, 2, 2))
    module._part_tables(counts, np.array([3.5, NAN]), expected)
    module._part_tables.py_func(counts, np.array([3.5, NAN]), got)
    np.testing.assert_array_equal(got, expected)
    below, above = np.array([2, 0, 3]), np.array([0, 4, 1])
    assert module._part.py_func(below, above, 3) == module._part(below, above, 3)
    assert module._part.py_func(below, above[:1], 3) == (0.0, 0.0)
    assert module._size_and_mean.py_func(below, 10) == (5.0, 11.2)
    assert module._size_and_mean.py_func(below[:0], 10) == (0.0, 0.0)
    assert module._squares.py_func(below, 10, 11.0) == 5.0


def test_examples():
    assert doctest.testmod(module).failed == 0
