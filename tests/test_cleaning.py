"""Opening, closing, small objects and holes against SciPy and scikit-image."""

from __future__ import annotations

import doctest
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import morphology

from pipeline.errors import ConfigError, ShapeMismatchError
from pipeline.kernels import cleaning

STAGES = [cleaning.opening, cleaning.closing, cleaning.remove_small_objects, cleaning.fill_small_holes]
SHAPES = [(1, 1), (1, 17), (13, 1), (5, 60), (48, 70)]


def blobs(shape, seed=0, part=0.4):
    """A mask of blobs and of single voxels, bool."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    mask = smooth > np.quantile(smooth, 1 - part)
    return mask ^ (rng.random(shape) < 0.03)


def as_mask(bits):
    return np.where(bits, 255, 0).astype(np.uint8)


def objects_of_scikit_image(function, bits, size, connectivity):
    """Before 0.26 the size named was that of the smallest that stays, and another argument."""
    if "max_size" in inspect.signature(function).parameters:
        return function(bits, max_size=size - 1, connectivity=connectivity) if size else bits
    return function(bits, size, connectivity=connectivity)


@st.composite
def masks(draw):
    shape = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    part = draw(st.sampled_from([0.1, 0.4, 0.5, 0.6, 0.9]))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random(shape) < part


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 9, 20])
def test_opening_and_closing_are_those_of_scikit_image(radius, shape):
    disk = morphology.disk(radius)
    for seed, part in enumerate((0.15, 0.5, 0.85)):
        bits = blobs(shape, seed, part)
        got = cleaning.opening(as_mask(bits), radius)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, as_mask(morphology.opening(bits, disk, mode="ignore")))
        eroded = ndimage.binary_erosion(bits, disk, border_value=1)
        np.testing.assert_array_equal(got, as_mask(ndimage.binary_dilation(eroded, disk)))
        got = cleaning.closing(as_mask(bits), radius)
        np.testing.assert_array_equal(got, as_mask(morphology.closing(bits, disk, mode="ignore")))


@settings(max_examples=100, deadline=None)
@given(bits=masks(), radius=st.integers(0, 5), data=st.data())
def test_opening_of_a_window_is_that_of_the_slice(bits, radius, data):
    mask, halo = as_mask(bits), cleaning.opening_halo(radius)
    (y, y_end), (x, x_end) = (
        data.draw(st.integers(0, n - 1).flatmap(lambda a, n=n: st.tuples(st.just(a), st.integers(a + 1, n))))
        for n in mask.shape
    )
    top, left = max(0, y - halo), max(0, x - halo)
    window = mask[top : y_end + halo, left : x_end + halo]
    for stage in (cleaning.opening, cleaning.closing):
        part = stage(window, radius)[y - top : y_end - top, x - left : x_end - left]
        np.testing.assert_array_equal(part, stage(mask, radius)[y:y_end, x:x_end])


def test_the_halo_is_no_larger_than_needed():
    for radius in (1, 4, 20):
        # A line of voxels, one of which is missing: it hinders all disks that touch it, and their voxels.
        mask = np.full((1, 200), 255, np.uint8)
        mask[0, [100, 100 + 2 * radius + 1]] = 0
        assert cleaning.opening(mask, radius)[0, 101 : 101 + 2 * radius].sum() == 0
        mask[0, 100] = 255
        assert cleaning.opening(mask, radius)[0, 101 : 101 + 2 * radius].all()
        assert cleaning.opening_halo(radius) == 2 * radius


@pytest.mark.parametrize("radius", [100, 253, cleaning.MAX_RADIUS])
def test_large_disks(radius):
    bits = np.zeros((1, 1300), bool)
    bits[:, 50 : 50 + 2 * radius] = True  # one voxel too short for the middle row of the disk, and the only one here
    bits[:, 700 : 700 + 2 * radius + 1] = True
    expected = bits.copy()
    expected[:, :600] = False
    np.testing.assert_array_equal(cleaning.opening(as_mask(bits), radius), as_mask(expected))
    np.testing.assert_array_equal(cleaning.closing(as_mask(~bits), radius), as_mask(~expected))


@settings(max_examples=200, deadline=None)
@given(bits=masks(), size=st.sampled_from([0, 1, 2, 3, 5, 9, 30, 100, 1000, 10**9]))
def test_small_objects_and_holes_are_those_of_scikit_image(bits, size):
    expected = objects_of_scikit_image(morphology.remove_small_objects, bits, size, 2)
    np.testing.assert_array_equal(cleaning.remove_small_objects(as_mask(bits), size), as_mask(expected))
    expected = objects_of_scikit_image(morphology.remove_small_holes, bits, size, 1)
    np.testing.assert_array_equal(cleaning.fill_small_holes(as_mask(bits), size), as_mask(expected))


@pytest.mark.parametrize("size", [2, 7, 8, 40, 41, 200, 5000])
def test_objects_of_a_larger_slice(size):
    for seed, part in enumerate((0.1, 0.42, 0.6, 0.9)):
        bits = blobs((160, 190), seed, part)
        expected = objects_of_scikit_image(morphology.remove_small_objects, bits, size, 2)
        np.testing.assert_array_equal(cleaning.remove_small_objects(as_mask(bits), size), as_mask(expected))
        expected = objects_of_scikit_image(morphology.remove_small_holes, bits, size, 1)
        np.testing.assert_array_equal(cleaning.fill_small_holes(as_mask(bits), size), as_mask(expected))


@pytest.mark.parametrize(
    ("shape", "draw", "voxels"),
    [
        ((5, 9), lambda y, x: (x == 4) | (y == 2), 13),  # walked from its upper end
        ((9, 9), lambda y, x: (x % 2 == 0) | (y == 8), 49),  # a comb, whose teeth meet in the last row
        ((6, 6), lambda y, x: y == x, 6),  # by corners alone
        ((4, 4), lambda y, x: (y == 3) & (x == 3), 1),
        ((5, 7), lambda y, x: y >= 0, 35),
    ],
    ids=["cross", "comb", "diagonal", "corner", "full"],
)
def test_an_object_stays_from_its_own_size_on(shape, draw, voxels):
    mask = as_mask(draw(*np.indices(shape)))
    assert np.count_nonzero(mask) == voxels
    np.testing.assert_array_equal(cleaning.remove_small_objects(mask, voxels), mask)
    assert not cleaning.remove_small_objects(mask, voxels + 1).any()


def test_corners_join_objects_and_not_holes():
    mask = as_mask(np.eye(2))
    np.testing.assert_array_equal(cleaning.remove_small_objects(mask, 2), mask)
    np.testing.assert_array_equal(cleaning.fill_small_holes(mask, 2), np.full((2, 2), 255))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("stage", STAGES)
def test_empty_and_full_masks(stage, value):
    mask = np.full((11, 14), value, np.uint8)
    for size in (0, 1, 2, 5, 100):
        np.testing.assert_array_equal(stage(mask, size), mask)


@pytest.mark.parametrize("stage", STAGES)
def test_views_outputs_and_the_mask_itself(stage):
    larger = as_mask(blobs((60, 90)))
    mask = larger[5:35:2, 3:73]
    expected = stage(mask.copy(), 2)
    assert np.any(expected != mask)
    result = np.full((20, 100), 7, np.uint8)
    out = result[2:17, 5:75]
    mask.flags.writeable = False
    assert stage(mask, 2, out) is out
    np.testing.assert_array_equal(out, expected)
    assert np.count_nonzero(result != 7) == out.size
    own = mask.copy()
    assert stage(own, 2, own) is own
    np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_kernels_as_plain_python(monkeypatch, stage, size):
    mask = as_mask(blobs((14, 17), 3, 0.5))
    expected = stage(mask, size)
    for name, function in list(vars(cleaning).items()):
        if hasattr(function, "py_func"):
            monkeypatch.setattr(cleaning, name, function.py_func)
    np.testing.assert_array_equal(stage(mask, size), expected)


@pytest.mark.parametrize(
    ("stage", "size", "message"),
    [
        (cleaning.opening, -1, r"radius: got -1 voxels, a disk has 0 to 254"),
        (cleaning.closing, 255, r"radius: got 255 voxels"),
        (cleaning.remove_small_objects, -1, r"size: got -1 voxels, expected 0 or more"),
        (cleaning.fill_small_holes, -3, r"size: got -3"),
    ],
    ids=["opening", "closing", "objects", "holes"],
)
def test_refuses_sizes(stage, size, message):
    with pytest.raises(ConfigError, match=message):
        stage(np.zeros((3, 4), np.uint8), size)


@pytest.mark.parametrize("out", [np.zeros((3, 5), np.uint8), np.zeros((3, 4), np.uint16)], ids=["shape", "dtype"])
@pytest.mark.parametrize("stage", STAGES)
def test_refuses_outputs(stage, out):
    with pytest.raises(ShapeMismatchError, match=r"out: got .*, the mask needs uint8 \(3, 4\)"):
        stage(np.zeros((3, 4), np.uint8), 1, out)


def test_examples():
    assert doctest.testmod(cleaning).failed == 0
