"""CLAHE against scikit-image, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import exposure

from pipeline.errors import ConfigError, ShapeMismatchError
from pipeline.kernels import clahe as module
from pipeline.kernels.clahe import clahe

DTYPES = [np.uint8, np.uint16]


def reference(plane, kernel_size, clip):
    equal = exposure.equalize_adapthist(plane, kernel_size, clip)
    return np.rint(equal * np.iinfo(plane.dtype).max).astype(plane.dtype)


def texture(shape, dtype, seed=0):
    """Few levels in one part and many in another."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    plane = np.where(x < shape[1] // 2, 90 + 3 * np.sin(y / 5), 60 + 50 * rng.random(shape))
    return (plane / 255 * np.iinfo(dtype).max).astype(dtype)


@st.composite
def planes(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    top = draw(st.sampled_from([3, 200, np.iinfo(dtype).max]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    plane = rng.integers(0, top, shape, dtype, endpoint=True)
    return np.sort(plane, axis=1) if draw(st.booleans()) else plane


@settings(max_examples=120, deadline=None)
@given(plane=planes(), kernel_size=st.integers(2, 50), clip=st.sampled_from([0, 1e-9, 0.001, 0.01, 0.1, 0.5, 1, 3]))
def test_result_is_that_of_scikit_image(plane, kernel_size, clip):
    got = clahe(plane, kernel_size, clip)
    assert got.dtype == plane.dtype
    if plane.min() == plane.max():
        np.testing.assert_array_equal(got, plane)
    else:
        np.testing.assert_array_equal(got, reference(plane, kernel_size, clip))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_size", [7, 16, 64, 500])
def test_texture(kernel_size, dtype):
    plane = texture((150, 211), dtype)
    got = clahe(plane, kernel_size, 0.01)
    np.testing.assert_array_equal(got, reference(plane, kernel_size, 0.01))
    assert (got.min(), got.max()) == (0, np.iinfo(dtype).max)


def test_a_limit_that_leaves_room_in_few_bins():
    plane = np.random.default_rng(2).integers(0, 256, (512, 512), np.uint8)
    for clip in (0.0039, 0.00395, 0.004):  # one bin of 256 has 0.0039 of the voxels
        np.testing.assert_array_equal(clahe(plane, 512, clip), reference(plane, 512, clip))


@pytest.mark.parametrize("value", [0, 1, 77, 255])
def test_plane_of_one_value_stays(value):
    plane = np.full((20, 31), value, np.uint8)
    np.testing.assert_array_equal(clahe(plane, 8, 0.01), plane)


def test_views_and_output():
    larger = texture((80, 120), np.uint8)
    plane = larger[3:63:2, 5:105]
    expected = clahe(plane.copy(), 16, 0.02)
    plane.flags.writeable = False
    result = np.zeros((40, 110), np.uint8)
    out = result[4:34, 6:106]
    assert clahe(plane, 16, 0.02, out) is out
    np.testing.assert_array_equal(out, expected)
    assert np.count_nonzero(result) == np.count_nonzero(out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_as_plain_python(monkeypatch, dtype):
    plane = texture((9, 14), dtype)
    expected = clahe(plane, 5, 0.1)
    for name, function in list(vars(module).items()):
        if hasattr(function, "py_func"):
            monkeypatch.setattr(module, name, function.py_func)
    np.testing.assert_array_equal(clahe(plane, 5, 0.1), expected)


@pytest.mark.parametrize(("kernel_size", "clip"), [(0, 0.1), (8, -0.1)])
def test_refuses_regions(kernel_size, clip):
    with pytest.raises(ConfigError, match=f"clahe: got regions of {kernel_size} voxels and a clip of {clip}, expected"):
        clahe(np.zeros((4, 5), np.uint8), kernel_size, clip)


@pytest.mark.parametrize("out", [np.zeros((4, 6), np.uint8), np.zeros((4, 5), np.uint16)], ids=["shape", "dtype"])
def test_refuses_outputs(out):
    with pytest.raises(ShapeMismatchError, match=r"out: got .*, the plane is uint8 \(4, 5\)"):
        clahe(np.zeros((4, 5), np.uint8), 8, 0.1, out)
