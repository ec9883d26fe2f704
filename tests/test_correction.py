"""Flat field against a slow one, tables of levels against scikit-image."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage import exposure

from pipeline.errors import ConfigError, ShapeMismatchError
from pipeline.kernels import correction
from pipeline.kernels.correction import CELL

DTYPES = [np.uint8, np.uint16]
SHAPES = [(1, 1), (1, 200), (130, 3), (64, 64), (65, 128), (150, 333)]


def slow_flat_field(plane, sigma):
    """The definition, with NumPy and SciPy: cells of any size, interpolated by `np.interp` along each axis."""
    cells = tuple(-(-length // CELL) for length in plane.shape)
    light, weights = np.zeros(cells), np.zeros(cells)
    for row, column in np.ndindex(cells):
        voxels = plane[row * CELL :, column * CELL :][:CELL, :CELL]
        voxels = voxels[voxels > 0]
        weights[row, column] = voxels.size
        light[row, column] = stats.trim_mean(voxels.astype(np.float64), 0.25) if voxels.size else 0
    if not weights.any():
        return plane
    below = ndimage.gaussian_filter(weights, sigma / CELL)
    measured = below > 0
    field = ndimage.gaussian_filter(weights * light, sigma / CELL)
    field[measured] /= below[measured]
    mean = np.average(field[measured], weights=weights[measured])
    field[~measured] = mean
    middles = [(np.arange(n) + 0.5) * CELL for n in cells]
    places = [np.arange(n) + 0.5 for n in plane.shape]
    field = np.stack([np.interp(places[0], middles[0], column) for column in field.T], axis=1)
    field = np.stack([np.interp(places[1], middles[1], row) for row in field])
    return np.rint((plane * mean / field).clip(0, np.iinfo(plane.dtype).max)).astype(plane.dtype)


def noise(shape, dtype, seed=1):
    rng = np.random.default_rng(seed)
    shade = np.linspace(0.4, 0.9, shape[0])[:, None] * np.linspace(0.5, 0.95, shape[1])
    return np.clip(shade + 0.1 * rng.normal(size=shape), 0, 1).__mul__(np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("sigma", [1, 64, 200])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flat_field_is_its_definition(shape, dtype, sigma):
    plane = noise(shape, dtype)
    plane[: shape[0] // 3, : shape[1] // 4] = 0
    got = correction.flat_field(plane, sigma)
    assert got.dtype == dtype
    difference = np.abs(got.astype(np.int64) - slow_flat_field(plane, sigma))
    assert difference.max() <= 1  # where the order of adding decides between two neighbours
    assert np.count_nonzero(difference) <= difference.size // 10_000


@pytest.mark.parametrize("dtype", DTYPES)
def test_flat_field_takes_the_light_away_and_leaves_the_vessels(dtype):
    top = np.iinfo(dtype).max
    y, x = np.indices((512, 700)) / 700
    light = 0.75 - 0.5 * ((x - 0.4) ** 2 + (y - 0.5) ** 2)
    vessels = (np.indices((512, 700)).sum(axis=0) % 90 < 9) | (np.indices((512, 700))[0] % 150 < 8)
    plane = (light * np.where(vessels, 0.3, 1) * top).astype(dtype)
    got = correction.flat_field(plane, 70) / top
    background, inside = got[~vessels], got[vessels]
    assert plane[~vessels].std() / plane[~vessels].mean() > 0.08
    assert background.std() / background.mean() < 0.025
    assert inside.mean() / background.mean() == pytest.approx(0.3, rel=0.02)
    assert background.mean() == pytest.approx((plane / top)[~vessels].mean(), rel=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flat_field_of_a_plane_of_one_value_changes_nothing(shape, dtype):
    for value in (0, 1, 40, np.iinfo(dtype).max):
        plane = np.full(shape, value, dtype)
        np.testing.assert_array_equal(correction.flat_field(plane, 100), plane)


def test_padding_of_a_mosaic_does_not_change_the_light():
    plane = np.full((256, 1024), 100, np.uint8)
    plane[:, 256:512] = 0
    plane[40:, 500:640] = 0
    np.testing.assert_array_equal(correction.flat_field(plane, 64), plane)


def test_cells_without_light_are_between_no_others():
    plane = np.zeros((64, 64 * 40), np.uint8)
    plane[:, :64], plane[:, 64:128] = 50, 150
    got = correction.flat_field(plane, 1)  # far less than a cell: each has a field of its own
    assert np.all(got[:, :32] == 100)
    assert got[20, 95:97].tolist() == [101, 100]  # of 149.2 and 149.6
    assert not got[:, 128:].any()


def test_bright_voxels_stop_at_the_top():
    plane = np.full((64, 256), 200, np.uint8)
    plane[:, 128:] = 40
    plane[3, 250] = 250
    got = correction.flat_field(plane, 1)
    assert got[3, 250] == 255  # 250 * 120 / 40
    assert got[4, 250] == 120


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 2 * CELL), st.integers(1, 2 * CELL)),
    levels=st.sampled_from([[0, 1], [255], [0, 255, 254], [3, 200], range(256)]),
    times=st.sampled_from([1, 257, 256]),
    seed=st.integers(0, 2**32 - 1),
)
def test_light_is_the_trimmed_mean_of_scipy(dtype, shape, levels, times, seed):
    plane = np.random.default_rng(seed).choice(levels, shape).astype(dtype)
    if dtype is np.uint16:
        plane *= times
    light, weights = np.zeros((2, *(-(-n // CELL) for n in shape)))
    correction._measure_light(plane, light, weights)
    for row, column in np.ndindex(light.shape):
        voxels = plane[row * CELL :, column * CELL :][:CELL, :CELL]
        voxels = voxels[voxels > 0].astype(np.float64)
        assert weights[row, column] == voxels.size
        assert light[row, column] == pytest.approx(stats.trim_mean(voxels, 0.25) if voxels.size else 0, rel=1e-12)


def count(plane):
    return np.bincount(plane.ravel(), minlength=1 << 8 * plane.itemsize)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    tops=st.tuples(*[st.sampled_from([0, 1, 5, 100, 255])] * 2),
    bottoms=st.tuples(*[st.integers(0, 3)] * 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_histogram_map_is_that_of_scikit_image(dtype, tops, bottoms, seed):
    rng = np.random.default_rng(seed)
    plane, reference = (
        rng.integers(min(low, top), top, (19, 23), dtype, endpoint=True) for low, top in zip(bottoms, tops, strict=True)
    )
    table = correction.histogram_map(count(plane), count(reference))
    assert table.dtype == dtype
    matched = exposure.match_histograms(plane, reference)
    np.testing.assert_array_equal(correction.apply_table(plane, table), np.rint(matched))
    assert np.all(np.diff(table.astype(np.int64)) >= 0)


def test_histogram_map_of_itself_changes_nothing():
    plane = np.random.default_rng(0).integers(20, 220, (80, 90), np.uint8)
    table = correction.histogram_map(count(plane), count(plane))
    np.testing.assert_array_equal(correction.apply_table(plane, table), plane)


@pytest.mark.parametrize(("levels", "dtype"), [(256, np.uint8), (65536, np.uint16)])
def test_histogram_map_of_nothing(levels, dtype):
    empty, some = np.zeros((2, levels), np.int64)
    some[7] = 3
    table = correction.histogram_map(empty, some)
    assert table.dtype == dtype
    np.testing.assert_array_equal(table, np.arange(levels))
    with pytest.raises(ConfigError, match="reference: its histogram has no voxels"):
        correction.histogram_map(some, empty)


def test_histogram_map_of_a_full_slice():
    counts, reference = np.zeros((2, 256), np.uint32)
    counts[[3, 9]], reference[[100, 200]] = 2**31, 2**31
    assert correction.histogram_map(counts, reference)[[3, 9]].tolist() == [100, 200]


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1, 1.7, 3])
def test_gamma_is_that_of_scikit_image(gamma):
    small, large = np.arange(256, dtype=np.uint8)[None], np.arange(65536, dtype=np.uint16)[None]
    table = correction.gamma_table(np.uint8, gamma)
    np.testing.assert_array_equal(correction.apply_table(small, table), exposure.adjust_gamma(small, gamma))
    table = correction.gamma_table(np.uint16, gamma)
    assert table.dtype == np.uint16
    exact = exposure.adjust_gamma(large / 65535, gamma) * 65535
    assert np.abs(table - exact).max() <= 0.5 + 1e-6
    if gamma == 1:
        np.testing.assert_array_equal(table, large[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", ["flat field", "table"])
def test_views_outputs_and_the_plane_itself(stage, dtype):
    table = correction.gamma_table(dtype, 0.5)

    def run(plane, out=None):
        return (
            correction.flat_field(plane, 50, out)
            if stage == "flat field"
            else correction.apply_table(plane, table, out)
        )

    larger = noise((300, 260), dtype)
    plane = larger[7:207:2, 20:220]
    expected = run(plane.copy())
    assert np.any(expected != plane)
    plane.flags.writeable = False
    result = np.zeros((110, 210), dtype)
    out = result[4:104, 5:205]
    assert run(plane, out) is out
    np.testing.assert_array_equal(out, expected)
    assert np.count_nonzero(result) == np.count_nonzero(out)
    own = plane.copy()
    assert run(own, own) is own
    np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_as_plain_python(monkeypatch, dtype):
    plane = noise((12, 80), dtype)
    plane[3, 4] = 0
    table = correction.gamma_table(dtype, 2)
    expected = correction.flat_field(plane, 50), correction.apply_table(plane, table)
    for name, function in list(vars(correction).items()):
        if hasattr(function, "py_func"):
            monkeypatch.setattr(correction, name, function.py_func)
    np.testing.assert_array_equal(correction.flat_field(plane, 50), expected[0])
    np.testing.assert_array_equal(correction.apply_table(plane, table), expected[1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: correction.flat_field(p, 0), ConfigError, "sigma: got 0 voxels"),
        (lambda p: correction.flat_field(p, float("nan")), ConfigError, "sigma: got nan voxels"),
        (lambda p: correction.gamma_table(np.uint8, 0), ConfigError, "gamma: got 0, expected more than 0"),
        (
            lambda p: correction.flat_field(p, 9, np.zeros((3, 5), np.uint8)),
            ShapeMismatchError,
            r"out: got uint8 \(3, 5\), the plane is uint8 \(3, 4\)",
        ),
        (
            lambda p: correction.apply_table(p, np.arange(256, dtype=np.uint8), np.zeros((3, 4), np.uint16)),
            ShapeMismatchError,
            "out: got uint16",
        ),
        (
            lambda p: correction.apply_table(p, np.arange(65536, dtype=np.uint16)),
            ShapeMismatchError,
            r"table: got uint16 \(65536,\), the plane is uint8",
        ),
        (
            lambda p: correction.apply_table(p, np.arange(255, dtype=np.uint8)),
            ShapeMismatchError,
            r"table: got uint8 \(255,\)",
        ),
        (
            lambda p: correction.histogram_map(np.ones(256), np.ones(65536)),
            ShapeMismatchError,
            r"histogram: got \(256,\), the reference \(65536,\)",
        ),
        (lambda p: correction.histogram_map(np.ones(9), np.ones(9)), ShapeMismatchError, r"histogram: got \(9,\)"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros((3, 4), np.uint8))


def test_examples():
    assert doctest.testmod(correction).failed == 0
