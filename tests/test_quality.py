"""Quality control against slow oracles: NumPy, SciPy, scikit-image, and a phantom whose faults are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import threshold_otsu

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import chatter as bands
from pipeline.kernels import quality
from pipeline.kernels.histogram import count_tiles, joint_histograms
from pipeline.kernels.quality import Measure
from pipeline.phantom import Phantom

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
NAN = math.nan


def tables_of(plane, side):
    tables = np.empty((count_tiles(plane.shape, side), 3, 256**plane.itemsize), np.uint32)
    joint_histograms(plane, None, side, 0, tables)
    return tables


def measure(plane, side, tables=None):
    """Table of measures, as runs keep it, of all tiles of a plane."""
    found = quality.measure_voxels(plane, (0, 0), plane.shape, side)
    quality.measure_tables(tables_of(plane, side) if tables is None else tables, found)
    return found.astype(np.float32)


def cuts(shape, side):
    return [np.s_[y : y + side, x : x + side] for y in range(0, shape[0], side) for x in range(0, shape[1], side)]


# Oracles: what `measure_voxels` says that its columns are, on one tile, as slow as it may be.


def chatter(tile, side):
    if min(tile.shape) < 32:
        return NAN
    size = 2 ** math.ceil(math.log2(side))
    grid = np.sort(tile[:: max(1, tile.shape[0] // 32), :: max(1, tile.shape[1] // 32)], axis=None).astype(int)
    lower, upper = grid[grid.size // 4], grid[grid.size - 1 - grid.size // 4]
    near = np.clip(tile.astype(float), 2 * lower - upper, 2 * upper - lower)
    return max(line(near.mean(axis=1), size), line(near.mean(axis=0), size)) / tile.mean()


def line(profile, size):
    """Amplitude of the strongest line in the spectrum of a profile."""
    u = (np.arange(profile.size) + 0.5) / profile.size * 2 - 1
    window = (1 - u**2) ** 2
    waves = np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(profile.size)) / size)
    power = abs(waves @ ((profile - profile.mean()) * window) / (window.sum() / 2)) ** 2
    spread, best = size / profile.size, 0.0
    for at in range(math.ceil(8 * spread), int(0.4 * size) + 1):
        left = power[max(1, at - int(10 * spread)) : at - math.ceil(3 * spread) + 1]
        right = power[at + math.ceil(3 * spread) : at + int(10 * spread) + 1]
        best = max(best, power[at] - 4 * math.sqrt(left.mean() * right.mean()))
    return math.sqrt(best)


def separability(tile):
    if tile.min() == tile.max():
        return 0.0
    above = tile > threshold_otsu(tile, nbins=65536)
    share = above.mean()
    return share * (1 - share) * (tile[above].mean() - tile[~above].mean()) ** 2 / tile.var()


def expected(tile, side):
    values = dict.fromkeys(Measure, NAN)
    if tile.size:
        top = np.iinfo(tile.dtype).max
        values[Measure.MEAN] = tile.mean()
        values[Measure.SATURATION] = np.isin(tile, (0, top)).mean()
        low, high = (np.percentile(each, 1, method="inverted_cdf") for each in (tile, ~tile))
        values[Measure.CONTRAST] = top - high - low
        values[Measure.SEPARABILITY] = separability(tile)
        values[Measure.CHATTER] = chatter(tile, side) if tile.any() else 0 if min(tile.shape) >= 32 else NAN
    if min(tile.shape) >= 3:
        inner = tile[1:-1, 1:-1]
        values[Measure.FOCUS] = ndimage.laplace(tile.astype(np.int64))[1:-1, 1:-1].var()
        around = (tile[:-2, 1:-1], tile[2:, 1:-1], tile[1:-1, :-2], tile[1:-1, 2:])
        values[Measure.EMPTINESS] = np.mean([each == inner for each in around], axis=0).astype(int).mean()
    return [values[each] for each in Measure]


CONTENTS = {
    "tissue": lambda rng, shape, top: np.clip(rng.normal(0.8 * top, 0.06 * top, shape), 0, top),
    "noise": lambda rng, shape, top: rng.integers(0, top, shape, endpoint=True),
    "few levels": lambda rng, shape, top: rng.choice([0, top // 3, top], shape, p=[0.1, 0.8, 0.1]),
    "bands": lambda rng, shape, top: np.indices(shape)[0] % 5 + 9 + rng.integers(0, 3, shape),
    "black": lambda rng, shape, top: np.zeros(shape),
    "white": lambda rng, shape, top: np.full(shape, top),
    "steps": lambda rng, shape, top: (np.indices(shape).sum(axis=0) % 2) * top,
}


@pytest.mark.parametrize("side", [64, 40])
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_measures_are_what_they_are_called(dtype, content, side):
    rng = np.random.default_rng(1)
    plane = CONTENTS[content](rng, (102, 117), np.iinfo(dtype).max).astype(dtype)
    wanted = [expected(plane[cut], side) for cut in cuts(plane.shape, side)]
    got = measure(plane, side)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    side=st.integers(1, 45),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    levels=st.integers(1, 65536),
    seed=st.integers(0, 99),
)
def test_measures_of_any_shape(shape, side, dtype, levels, seed):
    top = np.iinfo(dtype).max
    plane = np.random.default_rng(seed).integers(0, min(levels, top + 1), shape, dtype)
    wanted = [expected(plane[cut], side) for cut in cuts(shape, side)]
    np.testing.assert_allclose(measure(plane, side), wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_a_tile_of_nothing_has_no_measures(shape):
    values = measure(np.empty(shape, np.uint8), 4)
    assert values.shape == (count_tiles(shape, 4), len(Measure))
    assert np.isnan(values).all()


@pytest.mark.parametrize(
    ("shape", "nan"),
    [
        ((2, 100), {Measure.FOCUS, Measure.EMPTINESS, Measure.CHATTER}),
        ((100, 2), {Measure.FOCUS, Measure.EMPTINESS, Measure.CHATTER}),
        ((3, 31), {Measure.CHATTER}),
        ((31, 100), {Measure.CHATTER}),
        ((32, 32), set()),
    ],
    ids=str,
)
def test_small_tiles_lack_measures(shape, nan):
    values = measure(np.full(shape, 7, np.uint8), 128)[0]
    assert {each for each in Measure if np.isnan(values[each])} == nan


@pytest.mark.parametrize(("dtype", "shape"), [(np.uint8, (5, 4200)), (np.uint8, (700, 40)), (np.uint16, (300, 2100))])
def test_sums_do_not_overflow(dtype, shape):
    top = np.iinfo(dtype).max
    steps = (np.indices(shape).sum(axis=0) % 2 * top).astype(dtype)
    values = measure(steps, 5000)[0]
    inner = (shape[0] - 2) * (shape[1] - 2) % 2  # one more of one sign, if their number is odd
    assert values[Measure.FOCUS] == pytest.approx((4 * top) ** 2, rel=1e-6 + inner)
    assert values[Measure.SATURATION] == 1
    white = np.full(shape, top, dtype)
    assert measure(white, 5000)[0, [Measure.MEAN, Measure.FOCUS, Measure.EMPTINESS]].tolist() == [top, 0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_sums_of_columns_do_not_overflow(dtype):
    columns = np.where(np.arange(64) % 4 < 2, 0.75, 0.99) * np.iinfo(dtype).max  # only the brighter ones would
    plane = (columns - np.random.default_rng(7).integers(0, 3, (700, 64))).astype(dtype)
    np.testing.assert_allclose(measure(plane, 1024)[0], expected(plane, 1024), rtol=1e-4)


def views(plane):
    """The same voxels, lying in memory in different ways."""
    height, width = plane.shape
    wide = np.full((height + 7, width + 9), 99, plane.dtype)
    wide[3 : 3 + height, 5 : 5 + width] = plane
    frozen = plane.copy()
    frozen.flags.writeable = False
    return {
        "part": wide[3 : 3 + height, 5 : 5 + width],
        "columns first": np.asfortranarray(plane),
        "every second": np.repeat(plane, 2, axis=1)[:, ::2],
        "every second row": np.repeat(plane, 2, axis=0)[::2],
        "upside down": np.ascontiguousarray(plane[::-1])[::-1],
        "mirrored": np.ascontiguousarray(plane[:, ::-1])[:, ::-1],
        "read-only": frozen,
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(150, 170), (1, 5), (5, 1)], ids=str)
def test_any_layout_in_memory(shape, dtype):
    plane = np.random.default_rng(2).integers(0, 256 ** dtype().itemsize, shape, dtype)
    bits = measure(plane, 64).tobytes()
    for name, view in views(plane).items():
        assert measure(view, 64).tobytes() == bits, name


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_tile_has_the_same_bits_in_every_cut(dtype):
    plane = Phantom((2, 330, 460), seed=3, dtype=dtype).slice(0)[0]
    side, grid = 128, (3, 4, len(Measure))
    whole = quality.measure_voxels(plane, (0, 0), plane.shape, side).reshape(grid).copy()
    assert np.isfinite(np.delete(whole, [Measure.CONTRAST, Measure.SEPARABILITY], axis=-1)).all()
    for rows, columns in [(np.s_[0:1], np.s_[1:2]), (np.s_[1:3], np.s_[0:4]), (np.s_[0:2], np.s_[2:4])]:
        corner = rows.start * side, columns.start * side
        shape = min(rows.stop * side, 330) - corner[0], min(columns.stop * side, 460) - corner[1]
        wanted = whole[rows, columns].tobytes()
        assert quality.measure_voxels(plane, corner, shape, side).tobytes() == wanted
        part = plane[corner[0] : corner[0] + shape[0], corner[1] : corner[1] + shape[1]]
        assert quality.measure_voxels(part, (0, 0), shape, side).tobytes() == wanted


def test_contrast_and_separability_do_not_ask_which_is_brighter():
    plane = Phantom((1, 200, 300), seed=4).slice(0)[0]
    upright, inverted = (tables_of(each, 100) for each in (plane, ~plane))
    got, same = (measure(plane, 100, each) for each in (upright, inverted))
    np.testing.assert_allclose(got, same, rtol=1e-6)
    assert (got[:, Measure.CONTRAST] == same[:, Measure.CONTRAST]).all()


@pytest.mark.parametrize("across", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("period", [4.3, 11.0, 23.3, 35.0])
def test_chatter_is_the_amplitude_of_bands(period, across):
    rng = np.random.default_rng(5)
    tissue = 200 + ndimage.gaussian_filter(rng.normal(0, 36, (300, 400)), 1.5)
    tissue[90:116, 100:250] -= 120  # a large vessel along the rows,
    tissue[:150, 50:60] -= 100  # and two smaller ones along the columns
    tissue[150:, 250:258] -= 100
    bands = 3 * np.sin(2 * np.pi * (np.indices(tissue.shape)[across] / period + rng.random()))
    still, shaken = (np.rint(each).astype(np.uint8) for each in (tissue, tissue + bands))
    (before,), (after,) = (measure(each, 512)[:, Measure.CHATTER] * 200 for each in (still, shaken))
    assert before < 0.5
    assert 2 < after < 3.3


def test_chatter_is_not_a_step_or_slope():
    rng = np.random.default_rng(6)
    plane = rng.normal(200, 5, (256, 256))
    plane += np.linspace(-25, 25, 256)
    plane[:, 130:] -= 60
    plane[:90] = 0
    assert measure(plane.astype(np.uint8), 256)[0, Measure.CHATTER] * plane.mean() < 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quality.measure_voxels(np.zeros((4, 4), np.int16), (0, 0), (4, 4), 4), "got int16"),
        (lambda: quality.measure_voxels(np.zeros(4, np.uint8), (0, 0), (4, 4), 4), r"uint8 \(4,\)"),
        (lambda: quality.measure_voxels(np.zeros((4, 4), np.uint8), (0, 1), (4, 4), 4), r"from \(0, 1\) on"),
        (lambda: quality.measure_voxels(np.zeros((4, 4), np.uint8), (-1, 0), (4, 4), 4), r"from \(-1, 0\) on"),
        (lambda: quality.measure_tables(np.zeros((1, 256), np.uint32), np.zeros((1, 7))), r"\(1, 256\)"),
        (
            lambda: quality.measure_tables(np.zeros((2, 3, 9), np.uint32), np.zeros((1, 7))),
            r"expected \(1, 3, levels\)",
        ),
    ],
    ids=["dtype", "axes", "beyond", "before", "tables", "tiles"],
)
def test_refuses(make, message):
    with pytest.raises(ShapeMismatchError, match=message):
        make()


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not part of the repository")
def test_real_tile():
    image_module = pytest.importorskip("PIL.Image")
    image = np.asarray(image_module.open(TILE / "grayscale.png"))
    filtered = ndimage.median_filter(~image, 3)
    (values,) = measure(image, 512, tables_of(filtered, 512))
    wanted = expected(image, 512)
    for each in (Measure.CONTRAST, Measure.SEPARABILITY):
        wanted[each] = expected(filtered, 512)[each]
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    assert 90 < values[Measure.FOCUS] < 100
    assert values[Measure.CHATTER] < 0.004
    shaken = image + 3 * np.sin(np.arange(512) / 4)[:, None]
    shaken = np.rint(shaken.clip(0, 255)).astype(np.uint8)
    assert measure(shaken, 512)[0, Measure.CHATTER] > 0.01
    blurred = ndimage.gaussian_filter(image, 1)
    assert measure(blurred, 512)[0, Measure.FOCUS] < 10


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_kernels_as_plain_python(dtype):
    rng = np.random.default_rng(8)
    plane = rng.integers(10, 90, (33, 40)).astype(dtype)
    tables, lanes, cut = tables_of(plane, 36), quality._LANES[plane.itemsize], ((0, 0), plane.shape, 36)
    measures, profiles = np.full((2, 2, 7), NAN), np.empty((2, 2, 2, 64))
    kernels = quality._measure_voxels, quality._measure_tables, quality._measure_profiles
    for at, plain in enumerate((False, True)):
        voxels, levels, spectra = (each.py_func for each in kernels) if plain else kernels
        voxels(plane, cut, lanes, measures[at], profiles[at])
        levels(tables, measures[at])
        spectra(np.fft.rfft(profiles[at]), cut, measures[at])
    np.testing.assert_array_equal(*measures)
    np.testing.assert_array_equal(*profiles)
    np.testing.assert_array_equal(measures[0].astype(np.float32), measure(plane, 36))


def test_parts_of_the_kernels_as_plain_python():
    rng = np.random.default_rng(9)
    plane = rng.integers(0, 256, (300, 35), np.uint8)
    flat, stride = plane.reshape(-1), plane.shape[1]
    tile, lanes = (0, stride, *plane.shape), quality._LANES[1]
    sums = np.empty((2, 2, 304), np.int64)
    got = [
        function(flat, tile, lanes, rows, columns)
        for function, (rows, columns) in zip((quality._sum_tile, quality._sum_tile.py_func), sums, strict=True)
    ]
    assert got[0] == got[1]
    np.testing.assert_array_equal(sums[0, 0, :300], sums[1, 0, :300])
    np.testing.assert_array_equal(sums[0, 1, :35], sums[1, 1, :35])
    steps = np.arange(-2048, 2048, 2, np.int16)
    for function, arguments in (
        (quality._limits, (flat, tile, np.uint16)),
        (quality._sum_laplacian, (flat, tile)),
        (quality._sum_squares, (steps, (3, 400), (True, False), lanes[2])),
        (quality._places, ((70, stride, 2),)),
        (quality._ranked, (plane[0], 7)),
        (quality._contrast, (np.bincount(plane.reshape(-1)),)),
        (quality._separability, (np.bincount(plane.reshape(-1)),)),
        (quality._separability, (np.array([5]),)),
        (bands._weight, (3, 9)),
        (bands._mean, (np.arange(9.0), 3, 5)),
        (bands.strongest_line, (rng.random(65) ** 9, 1.5)),
    ):
        assert function(*arguments) == function.py_func(*arguments), function.__name__
    spreads = np.zeros((2, 64))
    bands.fill_profile(sums[0, 0, :64], 35, spreads[0])
    bands.fill_profile.py_func(sums[0, 0, :64], 35, spreads[1])
    np.testing.assert_array_equal(*spreads)


@pytest.mark.filterwarnings("ignore:overflow encountered in scalar")  # which is what they are made for
@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
@pytest.mark.parametrize("there", [1, 2, 3, 4])
def test_a_band_of_rows(there, plain):
    saturate, add, fill = (
        kernel.py_func if plain else kernel
        for kernel in (quality._count_saturated, quality._add_rows, quality._fill_steps)
    )
    plane = np.random.default_rng(there).integers(1, 255, (6, 40), np.uint8)
    plane[1, 5], plane[2, 5], plane[4, 6], plane[:, 20:30] = 255, 0, 0, 90
    flat, rows, near = plane.reshape(-1), plane[1 : 1 + there].astype(int), plane[1 : 1 + there].clip(50, 200)
    band = 40, 40, there  # row 0 is above it

    full = np.zeros(40, np.uint8)
    saturate(flat, band, 40, full)
    assert full.tolist() == ((rows == 0) | (rows == 255)).sum(0).tolist()

    lines, sums = np.zeros(1024, np.uint16), np.zeros(4, np.int64)
    add(flat, band, (np.uint16(50), np.uint16(200)), (3, 40), lines, sums)
    assert lines[3:40].tolist() == rows[:, 3:].sum(0).tolist()
    assert lines[515:552].tolist() == near[:, 3:].sum(0).tolist()
    assert sums[:there].tolist() == near[:, 3:].sum(1).tolist()
    assert not lines[:3].any()
    assert not lines[40:515].any()
    assert not lines[552:].any()

    level, steps = np.zeros(40, np.uint8), np.zeros(2048, np.int16)
    fill(flat, (40, 40, min(there, 4)), 40, steps, level)
    around = [
        np.roll(plane.astype(int), shift, axis)[1 : 1 + there] for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1))
    ]
    inner = slice(1, 39)
    assert steps.reshape(4, 512)[:there, inner].tolist() == (sum(around) - 4 * rows)[:, inner].tolist()
    equal = np.logical_and.reduce([each == rows for each in around])
    assert level[inner].tolist() == equal.sum(0)[inner].tolist()
    assert equal.any()


def test_ranked_is_sorting():
    rng = np.random.default_rng(10)
    for dtype in (np.uint8, np.uint16):
        sample = rng.integers(0, np.iinfo(dtype).max, 50, dtype, endpoint=True)
        assert [quality._ranked(sample, rank) for rank in range(50)] == np.sort(sample).tolist()
