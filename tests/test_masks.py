"""Masks by levels of tiles, and by a surface between them, against SciPy and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from pipeline.errors import RegionError, ShapeMismatchError
from pipeline.kernels import masks as module
from pipeline.kernels.masks import Surface, binarize_smooth, binarize_tiles
from tests.areas import area_of, cuts

NAN = math.nan
DTYPES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
SHAPES = pytest.mark.parametrize("shape", [(40, 56), (37, 53), (16, 16), (5, 90), (1, 1)], ids=str)


def surface_of(shape, side, seed=0, scale=1.0, empty=0.0):
    rng = np.random.default_rng(seed)
    grid = -(-shape[0] // side), -(-shape[1] // side)
    return Surface(scale * rng.uniform(60, 110, grid), rng.random(grid) < empty, side, shape)


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
def test_each_tile_has_its_level(shape, side, dtype):
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(4)
    plane = rng.integers(0, top, shape, dtype, endpoint=True)
    grid = -(-shape[0] // side), -(-shape[1] // side)
    special = [NAN, -math.inf, math.inf, -1, -0.5, 0, top - 0.5, top, top + 1]
    levels = np.where(rng.random(grid) < 0.5, rng.uniform(0, top, grid), rng.choice(special, grid))
    mask = np.empty(shape, np.uint8)
    binarize_tiles(plane, (0, 0), side, levels, mask)
    for cut, level in zip(cuts(shape, side), levels.ravel(), strict=True):
        np.testing.assert_array_equal(mask[cut], np.where(plane[cut] > level, 255, 0))


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


def test_kernels_as_plain_python():
    plane, *_ = area_of(np.uint16, (6, 7))
    surface = surface_of((6, 7), 4, scale=257)
    axes = [module._between(0, length, module._centres(length, 4)) for length in (6, 7)]
    for kernel, arguments, shape, dtype in [
        (module._binarize_smooth, (plane, surface.levels, *axes), (6, 7), np.uint8),
        (module._binarize_tiles, (plane, (1, 2), 4, np.array([[2e4, NAN, -1], [3e4, 1e9, 2.5e4]])), (6, 7), np.uint8),
    ]:
        expected, got = np.zeros((2, *shape), dtype)
        kernel(*arguments, expected)
        kernel.py_func(*arguments, got)
        np.testing.assert_array_equal(got, expected, err_msg=kernel.__name__)
