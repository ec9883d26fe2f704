"""Gaussian and local thresholds: windows against whole planes, levels against SciPy, scikit-image and integers."""

from __future__ import annotations

import doctest
from decimal import Decimal, localcontext
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from skimage import filters

from pipeline.errors import ConfigError, ShapeMismatchError
from pipeline.kernels import local, sliding

METHODS = get_args(local.Method)
DTYPES = [np.uint8, np.uint16]
SHAPES = [(1, 1), (1, 9), (7, 1), (3, 40), (45, 70)]


def noise(shape, dtype, seed=1):
    """Smooth structure and noise over the whole range, so that levels differ from voxel to voxel."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    plane = smooth / (np.abs(smooth).max() + 1e-9) + 0.3 * rng.normal(size=shape)
    return np.clip((plane + 1.5) / 3 * np.iinfo(dtype).max, 0, np.iinfo(dtype).max).astype(dtype)


def padded_windows(plane, size):
    """Every window of a plane, reflected with the edge repeated: (h, w, size, size) int64."""
    return sliding_window_view(np.pad(plane.astype(np.int64), size // 2, mode="symmetric"), (size, size))


def reference_level(plane, method, size, offset, k):
    """Levels of scikit-image; its two methods that leave the edge out get a plane that is padded already."""
    if method.startswith("local_"):
        return filters.threshold_local(plane, size, method.removeprefix("local_"), offset)
    padded = np.pad(plane.astype(np.float64), size, mode="symmetric")
    kept = (slice(size, -size),) * 2
    if method == "niblack":
        return filters.threshold_niblack(padded, size, k)[kept] - offset
    return filters.threshold_sauvola(padded, size, k, np.iinfo(plane.dtype).max / 2)[kept] - offset


@st.composite
def planes_and_parts(draw):
    """A plane, and the rows and columns of a part of it."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    top = draw(st.sampled_from([1, 3, np.iinfo(dtype).max]))
    seed = draw(st.integers(0, 2**32 - 1))
    plane = np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in shape]
    return plane, tuple(slice(start, max(stop, start + 1)) for start, stop in ends)


def check_cut(stage, halo, plane, part):
    """Run a stage on the part with its support, and compare with the part of the whole."""
    window = tuple(slice(max(0, edge.start - halo), edge.stop + halo) for edge in part)
    inside = tuple(slice(edge.start - cut.start, edge.stop - cut.start) for edge, cut in zip(part, window, strict=True))
    np.testing.assert_array_equal(stage(plane[window])[inside], stage(plane)[part])


@settings(max_examples=60, deadline=None)
@given(cut=planes_and_parts(), sigma=st.sampled_from([0.1, 0.4, 1.0, 1.7, 3.0]))
def test_gaussian_of_a_window_is_that_of_the_plane(cut, sigma):
    check_cut(lambda plane: local.gaussian(plane, sigma), local.gaussian_halo(sigma), *cut)


@settings(max_examples=100, deadline=None)
@given(
    cut=planes_and_parts(),
    method=st.sampled_from(METHODS),
    size=st.sampled_from([1, 3, 7, 11]),
    offset=st.sampled_from([0, -1, 0.3, 20]),
    k=st.sampled_from([0.2, -0.5, -2]),
)
def test_local_mask_of_a_window_is_that_of_the_plane(cut, method, size, offset, k):
    check_cut(lambda plane: local.local_mask(plane, method, size, offset, k), local.local_halo(method, size), *cut)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"local_median"}))  # one voxel moves no median
def test_the_support_is_no_larger_than_needed(method):
    plane = np.zeros((1, 81), np.uint16)
    plane[0, 40] = 65535
    marked = local.local_mask(plane, method, 15, 0.001, -0.2)
    touched = np.flatnonzero(marked[0] != marked[0, 0])
    assert (40 - touched.min(), touched.max() - 40) == (local.local_halo(method, 15),) * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 2.3, 6.0])
def test_gaussian_is_that_of_scipy(sigma, shape, dtype):
    plane = noise(shape, dtype)
    expected = np.rint(ndimage.gaussian_filter(plane, sigma, mode="reflect", output=np.float64))
    got = local.gaussian(plane, sigma)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_gaussian_keeps_a_plane_of_one_value_and_the_top(sigma, dtype):
    for value in (0, 1, np.iinfo(dtype).max):
        plane = np.full((9, 14), value, dtype)
        np.testing.assert_array_equal(local.gaussian(plane, sigma), plane)


def test_gaussian_rounds_half_to_even():
    out = np.empty((1, 4), np.uint8)
    rows, columns = np.zeros(1, np.int64), np.arange(4)
    local._gaussian(np.array([[2, 6, 10, 11]], np.uint8), rows, columns, np.array([0.5]), out)
    assert out.tolist() == [[0, 2, 2, 3]]  # of quarters


@pytest.mark.parametrize(("offset", "k"), [(0, 0.2), (-2.3, -0.5), (0.1, -0.1)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 15, 51])
@pytest.mark.parametrize("method", METHODS)
def test_mask_is_that_of_scikit_image(method, size, dtype, offset, k):
    plane = noise((45, 70), dtype)
    level = reference_level(plane, method, size, offset, k)
    got = local.local_mask(plane, method, size, offset, k)
    assert got.dtype == np.uint8
    clear = np.abs(plane - level) > np.iinfo(dtype).max * 2e-8  # further off than any rounding
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(got[clear], 255 * (plane > level)[clear])
    assert 0 < np.count_nonzero(got) < got.size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1, 3, 9, 31])
def test_mean_and_median_are_exact(size, shape, dtype):
    plane = np.random.default_rng(5).integers(0, 8, shape).astype(dtype)
    windows = padded_windows(plane, size)
    sums = windows.sum(axis=(2, 3))
    for offset in (0, -2, 1):
        got = local.local_mask(plane, "local_mean", size, offset, 0)
        np.testing.assert_array_equal(got, 255 * (plane * np.int64(size**2) > sums - offset * size**2))
        got = local.local_mask(plane, "local_median", size, offset, 0)
        np.testing.assert_array_equal(got, 255 * (plane > np.median(windows, axis=(2, 3)) - offset))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", ["few", "low", "high", "all"])
def test_median_at_every_kind_of_levels(levels, dtype):
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(11)
    plane = {
        "few": lambda: rng.choice([0, 1, top - 1, top], (23, 37)),
        "low": lambda: rng.integers(0, 18, (23, 37)),
        "high": lambda: rng.integers(top - 17, top + 1, (23, 37)),
        "all": lambda: rng.integers(0, top + 1, (23, 37)),
    }[levels]().astype(dtype)
    for size in (3, 5, 13):
        median = ndimage.median_filter(plane, size, mode="reflect")
        np.testing.assert_array_equal(local.local_mask(plane, "local_median", size, 0, 0), 255 * (plane > median))
        at_least = local.local_mask(plane, "local_median", size, 0.5, 0)
        np.testing.assert_array_equal(at_least, 255 * (plane >= median))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 7, 15, 31, 101])
@pytest.mark.parametrize("method", METHODS)
def test_plane_of_one_value_is_empty(method, size, dtype):
    for value in (0, 1, 100, np.iinfo(dtype).max):
        plane = np.full((13, 21), value, dtype)
        assert not local.local_mask(plane, method, size, 0, -0.5).any(), value
        assert local.local_mask(plane, method, size, 1, -0.0).all(), value


@settings(max_examples=200, deadline=None)
@given(
    values=st.one_of(
        st.lists(st.integers(0, 65535), min_size=1, max_size=9),
        st.integers(0, 65534).flatmap(lambda v: st.lists(st.integers(v, v + 1), min_size=1, max_size=9)),
    ),
    times=st.sampled_from([1, 9, 1001**2]),
)
def test_deviation_has_the_digits_of_a_float(values, times):
    number, total, squares = (times * sum(v**power for v in values) for power in (0, 1, 2))
    with localcontext(prec=80):
        mean = Decimal(total) / number
        deviation = (Decimal(squares) / number - mean**2).copy_abs().sqrt()
        for k in (-1.0, 2.0):
            level = local._contrast_level(total, squares, number, (0.25, k, 0.0))
            assert level == pytest.approx(float(mean - Decimal(k) * deviation - Decimal("0.25")), rel=1e-12, abs=1e-9)
            level = local._contrast_level(total, squares, number, (0.0, k, 32767.5))
            exact = mean * (1 + Decimal(k) * (deviation / Decimal("32767.5") - 1))
            assert level == pytest.approx(float(exact), rel=1e-12, abs=1e-9)
        alone = -local._contrast_level(total, squares, number, (float(mean), 1.0, 0.0))
        assert alone == pytest.approx(float(deviation), rel=1e-9, abs=1e-9 * float(deviation) + 2e-11)


def test_sums_do_not_overflow():
    plane = np.full((3, 5), 65535, np.uint16)
    plane[1, 2] = 0
    expected = np.full((3, 5), 255)
    expected[1, 2] = 0
    np.testing.assert_array_equal(local.local_mask(plane, "niblack", 1001, 0, 0), expected)
    np.testing.assert_array_equal(local.local_mask(plane, "local_mean", 1001, 0, 0), expected)


@pytest.mark.parametrize(
    ("method", "size", "halo"),
    [("local_mean", 31, 15), ("local_median", 3, 1), ("niblack", 15, 7), ("sauvola", 1, 0), ("local_gaussian", 7, 4)],
)
def test_local_halo(method, size, halo):
    assert local.local_halo(method, size) == halo


@pytest.mark.parametrize("sigma", [0.1, 0.12, 0.13, 0.5, 1.0, 1.1, 2.5, 10.0])
def test_gaussian_halo_is_how_far_scipy_looks(sigma):
    line = np.zeros(201)
    line[100] = 1
    touched = np.flatnonzero(ndimage.gaussian_filter(line, sigma))
    assert (100 - touched.min(), touched.max() - 100) == (local.gaussian_halo(sigma),) * 2


@pytest.mark.parametrize("method", [*METHODS, "gaussian"])
def test_views_and_outputs(method):
    def run(plane, out=None):
        return (
            local.gaussian(plane, 1.0, out) if method == "gaussian" else local.local_mask(plane, method, 7, 1, 1, out)
        )

    larger = noise((60, 70), np.uint8)
    plane = larger[5:35:2, 3:43]
    plane.flags.writeable = False
    expected, result = run(plane.copy()), np.zeros((17, 80), np.uint8)
    out = result[1:16, 20:60]
    assert run(plane, out) is out
    np.testing.assert_array_equal(out, expected)
    assert np.count_nonzero(result) == np.count_nonzero(out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_as_plain_python(monkeypatch, dtype):
    plane = noise((7, 9), dtype)
    stages = [lambda: local.gaussian(plane, 0.6)]
    stages += [lambda method=method: local.local_mask(plane, method, 5, 1.5, -0.4) for method in METHODS]
    expected = [stage() for stage in stages]
    for module in (local, sliding):
        for name, function in list(vars(module).items()):
            if hasattr(function, "py_func"):
                monkeypatch.setattr(module, name, function.py_func)
    for stage, compiled in zip(stages, expected, strict=True):
        np.testing.assert_array_equal(stage(), compiled)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: local.local_mask(p, "local_mean", 4, 0, 0), ConfigError, r"size: got 4, .* odd number"),
        (lambda p: local.local_mask(p, "niblack", -1, 0, 0), ConfigError, r"size: got -1"),
        (
            lambda p: local.local_mask(p, "niblack", 3, 0, 0, np.empty((4, 6), np.uint8)),
            ShapeMismatchError,
            r"out: got uint8 \(4, 6\), the plane needs uint8 \(4, 5\)",
        ),
        (
            lambda p: local.gaussian(p, 1.0, np.empty((4, 5), np.uint8)),
            ShapeMismatchError,
            r"out: got uint8 \(4, 5\), the plane needs uint16 \(4, 5\)",
        ),
    ],
    ids=["even", "negative", "shape", "dtype"],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros((4, 5), np.uint16))


def test_examples():
    assert doctest.testmod(local).failed == 0
