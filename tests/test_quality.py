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

from pipeline import quality
from pipeline.errors import ShapeMismatchError
from pipeline.histogram import count_tiles, joint_histograms
from pipeline.phantom import Phantom
from pipeline.quality import Flag, Measure

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
NAN = math.nan


def tables_of(plane, side):
    tables = np.empty((count_tiles(plane.shape, side), 3, 256**plane.itemsize), np.uint32)
    joint_histograms(plane, None, side, 0, tables)
    return tables


def measure(plane, side):
    return quality.measure_tiles(plane, side, tables_of(plane, side))


def cuts(shape, side):
    return [np.s_[y : y + side, x : x + side] for y in range(0, shape[0], side) for x in range(0, shape[1], side)]


# Oracles: what `measure_tiles` says that its columns are, on one tile, as slow as it may be.


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
    tables = tables_of(plane, 64)
    bits = quality.measure_tiles(plane, 64, tables).tobytes()
    for name, view in views(plane).items():
        assert quality.measure_tiles(view, 64, tables).tobytes() == bits, name


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_tile_has_the_same_bits_in_every_cut(dtype):
    plane = Phantom((2, 330, 460), seed=3, dtype=dtype).slice(0)[0]
    side, tables = 128, tables_of(plane, 128)
    whole = quality.measure_tiles(plane, side, tables)
    assert np.isfinite(whole).all()
    for first in range(len(tables)):
        for count in (1, 2, 5):
            some = tables[first : first + count]
            part = quality.measure_tiles(plane, side, some, first)
            assert part.tobytes() == whole[first : first + count].tobytes()
    grid = whole.reshape(3, 4, -1)
    for top, left in ((0, 1), (1, 0), (1, 2), (2, 3)):
        part = np.s_[top * side : (top + 2) * side, left * side : (left + 2) * side]
        tiles = grid[top : top + 2, left : left + 2].reshape(-1, len(Measure))
        assert measure(plane[part].copy(), side).tobytes() == tiles.tobytes()
        assert quality.measure_tiles(plane[part], side, tables_of(plane[part], side)).tobytes() == tiles.tobytes()


def test_contrast_and_separability_do_not_ask_which_is_brighter():
    plane = Phantom((1, 200, 300), seed=4).slice(0)[0]
    upright, inverted = (tables_of(each, 100) for each in (plane, ~plane))
    got, same = (quality.measure_tiles(plane, 100, each) for each in (upright, inverted))
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
        (lambda: quality.measure_tiles(np.zeros((4, 4), np.int16), 4, np.zeros((1, 3, 256), np.uint32)), "got int16"),
        (lambda: quality.measure_tiles(np.zeros(4, np.uint8), 4, np.zeros((1, 3, 256), np.uint32)), r"uint8 \(4,\)"),
        (lambda: quality.measure_tiles(np.zeros((4, 4), np.uint8), 4, np.zeros((1, 256), np.uint32)), r"\(1, 256\)"),
        (lambda: quality.measure_tiles(np.zeros((4, 4), np.uint8), 4, np.zeros((2, 3, 9), np.uint32)), "2 from tile 0"),
        (
            lambda: quality.measure_tiles(np.zeros((4, 4), np.uint8), 4, np.zeros((1, 3, 9), np.uint32), -1),
            "1 from tile -1",
        ),
        (lambda: quality.outliers(np.zeros((3, 3, 6), np.float32), np.ones((3, 3), bool)), "expected 7 measures"),
        (lambda: quality.outliers(np.zeros((3, 4, 7), np.float32), np.ones((3, 3), bool)), r"\(3, 3\) of what"),
        (lambda: quality.flag_tiles(np.zeros((3, 3, 7), np.float32), np.ones((3, 3), bool)), "on 3 axes"),
        (lambda: quality.slice_outliers(np.zeros((3, 3, 7), np.float32), np.ones((3, 3), bool)), "on 3 axes"),
    ],
    ids=["dtype", "axes", "tables", "tiles", "first", "measures", "present", "volume", "slices"],
)
def test_refuses(make, message):
    with pytest.raises(ShapeMismatchError, match=message):
        make()


# Outliers.

USUAL = {
    Measure.FOCUS: 120.0,
    Measure.SATURATION: 0.001,
    Measure.MEAN: 200.0,
    Measure.CONTRAST: 80.0,
    Measure.SEPARABILITY: 0.7,
    Measure.EMPTINESS: 0.001,
    Measure.CHATTER: 0.002,
}


def usual(*shape, **other):
    """Table of tiles that are all alike; those at (1, 2) have other values, by the name of the measure."""
    values = np.empty((*shape, len(Measure)), np.float32)
    values[...] = [USUAL[each] for each in Measure]
    for name, value in other.items():
        values[..., 1, 2, Measure[name]] = value
    return values


def test_tiles_alike_are_not_flagged():
    assert not quality.outliers(usual(4, 5), np.ones((4, 5), bool)).any()
    assert not quality.outliers(np.zeros((4, 5, 7), np.float32), np.ones((4, 5), bool)).any()


@pytest.mark.parametrize(
    ("other", "flag"),
    [
        ({"FOCUS": 70}, Flag(0)),
        ({"FOCUS": 50}, Flag.BLURRED),
        ({"FOCUS": 0}, Flag.BLURRED),
        ({"FOCUS": 9999}, Flag(0)),
        ({"SATURATION": 0.04}, Flag(0)),
        ({"SATURATION": 0.06}, Flag.SATURATED),
        ({"MEAN": 165}, Flag(0)),
        ({"MEAN": 155}, Flag.DARK),
        ({"MEAN": 245}, Flag(0)),
        ({"MEAN": 255}, Flag.BRIGHT),
        ({"CONTRAST": 30}, Flag(0)),
        ({"CONTRAST": 20}, Flag.LOW_CONTRAST),
        ({"CONTRAST": 255}, Flag(0)),
        ({"SEPARABILITY": 0}, Flag(0)),
        ({"EMPTINESS": 0.09}, Flag(0)),
        ({"EMPTINESS": 0.12}, Flag.EMPTY),
        ({"CHATTER": 0.009}, Flag(0)),
        ({"CHATTER": 0.010}, Flag.CHATTER),
        ({"FOCUS": NAN, "CHATTER": NAN, "EMPTINESS": NAN}, Flag(0)),
        ({"FOCUS": NAN, "MEAN": 0}, Flag.DARK),
        (
            {"FOCUS": 0, "MEAN": 0, "SATURATION": 1, "EMPTINESS": 1, "CONTRAST": 0, "CHATTER": 0},
            Flag.BLURRED | Flag.DARK | Flag.SATURATED | Flag.EMPTY | Flag.LOW_CONTRAST,
        ),
    ],
    ids=str,
)
def test_a_tile_unlike_the_others_is_flagged(other, flag):
    flags = quality.outliers(usual(4, 5, **other), np.ones((4, 5), bool))
    assert flags.dtype == np.uint8
    assert Flag(int(flags[1, 2])) == flag
    flags[1, 2] = 0
    assert not flags.any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), wide=st.floats(0.001, 2))
def test_deviations_are_those_of_the_median(seed, wide):
    rng = np.random.default_rng(seed)
    values = usual(6, 7)
    values[..., Measure.FOCUS] = np.expm1(rng.normal(5, wide, (6, 7)).clip(0, 20))
    present = rng.random((6, 7)) < 0.9
    logs = np.log1p(values[..., Measure.FOCUS].astype(float))
    median = np.median(logs[present])
    reach = max(math.log(2), 4 * 1.4826 * np.median(abs(logs[present] - median)))
    expected_flags = np.where(present & (logs < median - reach), Flag.BLURRED, 0)
    np.testing.assert_array_equal(quality.outliers(values, present), expected_flags)


@pytest.mark.parametrize(("tiles", "flagged"), [(8, False), (9, True)])
def test_few_tiles_set_no_norm(tiles, flagged):
    values = usual(2, 5, MEAN=90.0)
    present = np.zeros((2, 5), bool)
    present.reshape(-1)[:tiles] = True
    assert quality.outliers(values, present).any() == flagged


def test_absent_tiles_neither_count_nor_are_flagged():
    values = usual(4, 5)
    present = np.zeros((4, 5), bool)
    present[:3] = True
    values[3:] = 0  # as a table has them that nobody wrote
    assert not quality.outliers(values, present).any()
    assert quality.outliers(values, np.ones_like(present))[3:].all()
    values[3:] = NAN
    assert not quality.outliers(values, present).any()


def test_padding_sets_no_norm():
    values = usual(6, 6)
    values[2:, :] = [0, 1, 0, 0, 0, 1, 0]  # two thirds are the black of a mosaic
    flags = quality.outliers(values, np.ones((6, 6), bool))
    assert not flags[:2].any()
    assert (flags[2:] == Flag.BLURRED | Flag.SATURATED | Flag.DARK | Flag.LOW_CONTRAST | Flag.EMPTY).all()
    values[:] = values[2:3]
    assert not quality.outliers(values, np.ones((6, 6), bool)).any()


def test_each_slice_is_a_norm_of_its_own():
    values = usual(3, 4, 5)
    values[1, ..., Measure.MEAN] = 60
    values[2, 0, 0, Measure.CHATTER] = 0.1
    values[0, 3, 4, Measure.FOCUS] = 1
    present = np.ones((3, 4, 5), bool)
    present[1] = False
    flags = quality.flag_tiles(values, present)
    np.testing.assert_array_equal(flags, list(map(quality.outliers, values, present)))
    assert {tuple(at): flags[tuple(at)] for at in np.argwhere(flags).tolist()} == {
        (0, 3, 4): Flag.BLURRED,
        (2, 0, 0): Flag.CHATTER,
    }
    assert quality.flag_tiles(values[:0], present[:0]).shape == (0, 4, 5)


def test_slice_medians():
    values = usual(4, 3, 3)
    values[0, 0, :, Measure.MEAN] = [10, 20, 30]
    values[0, 1:, :, Measure.EMPTINESS] = 0.9  # do not count where others do,
    values[1, ..., Measure.EMPTINESS] = 0.9  # but do where there are no others
    values[2, ..., Measure.FOCUS] = NAN
    present = np.ones((4, 3, 3), bool)
    present[0, 0, 2] = False
    present[3] = False
    medians = quality.slice_medians(values, present)
    assert medians[0, Measure.MEAN] == 15
    assert medians[1, Measure.MEAN] == 200
    assert math.isnan(medians[2, Measure.FOCUS])
    assert medians[2, Measure.MEAN] == 200
    assert np.isnan(medians[3]).all()


@pytest.mark.parametrize(
    ("measure_of_it", "value", "flag"),
    [
        (Measure.FOCUS, 90, Flag.BLURRED),
        (Measure.FOCUS, 100, Flag(0)),
        (Measure.MEAN, 175, Flag.DARK),
        (Measure.MEAN, 225, Flag.BRIGHT),
        (Measure.MEAN, 190, Flag(0)),
        (Measure.CHATTER, 0.008, Flag.CHATTER),
        (Measure.CHATTER, 0.006, Flag(0)),
        (Measure.SATURATION, 0.03, Flag.SATURATED),
        (Measure.CONTRAST, 50, Flag.LOW_CONTRAST),
        (Measure.EMPTINESS, 0.06, Flag.EMPTY),
        (Measure.EMPTINESS, 1, Flag.EMPTY),
    ],
    ids=str,
)
def test_a_slice_unlike_the_others_is_flagged(measure_of_it, value, flag):
    values, present = usual(7, 2, 3), np.ones((7, 2, 3), bool)
    values[3, ..., measure_of_it] = value
    present[6] = False
    values[6] = 0
    assert quality.slice_outliers(values, present).tolist() == [0, 0, 0, flag, 0, 0, 0]
    present[4:] = False  # four are too few
    assert not quality.slice_outliers(values, present).any()


def measure_volume(planes, side):
    rows, columns = (-(-length // side) for length in planes[0].shape)
    filtered = [ndimage.median_filter(~plane, 3) for plane in planes]
    return np.stack(
        [
            quality.measure_tiles(plane, side, tables_of(inverted, side)).reshape(rows, columns, -1)
            for plane, inverted in zip(planes, filtered, strict=True)
        ]
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_phantom_has_one_bad_slice(dtype):
    phantom = Phantom((6, 400, 500), seed=2, dtype=dtype)
    planes = [phantom.slice(z)[0] for z in range(6)]
    bad = phantom.out_of_focus
    top, side = np.iinfo(dtype).max, 100
    values = measure_volume(planes, side)
    present = np.ones(values.shape[:3], bool)
    assert quality.slice_outliers(values, present).tolist() == [Flag.BLURRED if z == bad else 0 for z in range(6)]
    before = quality.flag_tiles(values, present)
    content = Flag.DARK | Flag.LOW_CONTRAST  # which a tile has of a large vessel, or without any
    assert not (before & ~content).any()
    at = np.s_[2 * side : 3 * side, side : 2 * side]
    planes[0][at] = 0  # a tile of padding,
    planes[1][at] = ndimage.gaussian_filter(planes[1][at], 2)  # one out of focus,
    bands = 0.04 * np.sin(np.arange(side) / 1.3)[:, None]
    planes[2][at] = (planes[2][at] * (1 + bands)).clip(0, top)  # one of bands,
    planes[3][at] //= 2  # and one of half the light
    after = quality.flag_tiles(measure_volume(planes, side), present)
    for z, flag in enumerate((Flag.EMPTY | Flag.DARK, Flag.BLURRED, Flag.CHATTER, Flag.DARK)):
        assert before[z, 2, 1] & flag == 0
        assert after[z, 2, 1] & flag == flag
    after[:4, 2, 1] = 0
    assert not (after & ~content).any()


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not part of the repository")
def test_real_tile():
    image_module = pytest.importorskip("PIL.Image")
    image = np.asarray(image_module.open(TILE / "grayscale.png"))
    filtered = ndimage.median_filter(~image, 3)
    (values,) = quality.measure_tiles(image, 512, tables_of(filtered, 512))
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
    tables = tables_of(plane, 36)
    flat, stride = quality._flat(plane)
    tiles = plane.shape, 36, 0
    measures, profiles = np.full((2, 2, 7), NAN), np.empty((2, 2, 2, 64))
    kernels = quality._measure_voxels, quality._measure_tables, quality._measure_profiles
    for at, plain in enumerate((False, True)):
        voxels, levels, spectra = (each.py_func for each in kernels) if plain else kernels
        voxels(flat, stride, tiles, quality._LANES[plane.itemsize], measures[at], profiles[at])
        levels(tables, measures[at])
        spectra(np.fft.rfft(profiles[at]), tiles, measures[at])
    np.testing.assert_array_equal(*measures)
    np.testing.assert_array_equal(*profiles)
    np.testing.assert_array_equal(measures[0].astype(np.float32), measure(plane, 36))


def test_parts_of_the_kernels_as_plain_python():
    rng = np.random.default_rng(9)
    plane = rng.integers(0, 256, (40, 35), np.uint8)
    flat, stride = quality._flat(plane)
    tile, lanes = (0, stride, *plane.shape), quality._LANES[1]
    sums = np.empty((2, 2, 40), np.int64)
    got = [
        function(flat, tile, lanes, np.empty(35, np.uint16), rows, columns[:35])
        for function, (rows, columns) in zip((quality._sum_tile, quality._sum_tile.py_func), sums, strict=True)
    ]
    assert got[0] == got[1]
    np.testing.assert_array_equal(sums[0, :, :35], sums[1, :, :35])
    for function, arguments in (
        (quality._limits, (flat, tile)),
        (quality._sum_laplacian, (flat, tile)),
        (quality._sum_inner, (flat, 70, stride, lanes, 9)),
        (quality._ranked, (plane[0], 7)),
        (quality._contrast, (np.bincount(plane.reshape(-1)),)),
        (quality._separability, (np.bincount(plane.reshape(-1)),)),
        (quality._separability, (np.array([5]),)),
        (quality._weight, (3, 9)),
        (quality._mean, (np.arange(9.0), 3, 5)),
        (quality._strongest_line, (rng.random(65) ** 9, 1.5)),
    ):
        assert function(*arguments) == function.py_func(*arguments), function.__name__
    lines, profiles = np.zeros((2, 35), np.uint16), np.zeros((2, 64))
    limits = np.uint8(50), np.uint8(200)
    for at, (segment, fill) in enumerate(
        (
            (quality._sum_segment, quality._fill_profile),
            (quality._sum_segment.py_func, quality._fill_profile.py_func),
        )
    ):
        assert segment(flat, 35, limits, lines[at])[0] == plane[1].sum()
        fill(sums[0, 0], 35, profiles[at])
    np.testing.assert_array_equal(*lines)
    np.testing.assert_array_equal(*profiles)


def test_ranked_is_sorting():
    rng = np.random.default_rng(10)
    for dtype in (np.uint8, np.uint16):
        sample = rng.integers(0, np.iinfo(dtype).max, 50, dtype, endpoint=True)
        assert [quality._ranked(sample, rank) for rank in range(50)] == np.sort(sample).tolist()
