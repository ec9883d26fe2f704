"""Threshold methods against scikit-image on the image itself, and against exact integers and fractions."""

from __future__ import annotations

import doctest
import math
import warnings
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import filters

from pipeline.errors import ConfigError
from pipeline.kernels import threshold
from pipeline.kernels.threshold import LEVEL_OF, levels_of, minimum_level

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
NAN = math.nan
TABLES = st.lists(st.integers(0, 40), min_size=1, max_size=14)
SIDES = {8: (96, 96), 16: (40, 40)}


def bimodal(rng, shape):
    return rng.normal(np.where(rng.random(shape) < 0.2, 160, 40), 15)


def skewed(rng, shape):
    return 20 + rng.gamma(2, 12, shape)


IMAGES = {
    "bimodal": bimodal,
    "close modes": lambda rng, shape: rng.normal(np.where(rng.random(shape) < 0.4, 120, 90), 14),
    "three modes": lambda rng, shape: rng.normal(rng.choice([40, 120, 200], shape), 8),
    "unimodal": lambda rng, shape: rng.normal(100, 20, shape),
    "skewed": skewed,
    "skewed down": lambda rng, shape: 255 - skewed(rng, shape),
    "noise": lambda rng, shape: rng.integers(0, 256, shape),
    "few levels": lambda rng, shape: rng.choice(rng.choice(256, 6, replace=False), shape),
    "two levels": lambda rng, shape: rng.choice([30, 200], shape, p=[0.8, 0.2]),
    "smooth": lambda rng, shape: 100 + 400 * ndimage.gaussian_filter(rng.normal(size=shape), 3),
    "narrow": lambda rng, shape: rng.normal(17, 2, shape),
    "bright": lambda rng, shape: rng.normal(250, 20, shape),
}
KINDS = {
    name: lambda rng, make=make: make(rng, SIDES[8]).clip(0, 255).astype(np.uint8) for name, make in IMAGES.items()
}
KINDS |= {
    f"{name} + {offset} x {scale}": lambda rng, make=IMAGES[name], scale=scale, offset=offset: (
        (offset + scale * make(rng, SIDES[16]).clip(0, 255)).clip(0, 65535).astype(np.uint16)
    )
    for name in ("bimodal", "skewed", "few levels")
    for scale, offset in ((1, 0), (1.7, 60000), (2, 3))
}


def count(image):
    return np.bincount(image.ravel(), minlength=1 << 8 * image.itemsize)


def reference(method, image):
    """Level of scikit-image; NaN where it finds none."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            return float(getattr(filters, f"threshold_{method}")(image))
    except RuntimeError:
        return NAN


def exact_yen(counts):
    def criterion(level):
        below, above = counts[: level + 1], counts[level + 1 :]
        squares = [sum(n * n for n in part) for part in (below, above)]
        return Fraction((sum(below) * sum(above)) ** 2, squares[0] * squares[1]) if all(squares) else Fraction(0)

    first, last = np.flatnonzero(counts)[[0, -1]]
    return max(range(first, last + 1), key=criterion)


def exact_isodata(counts):
    first, last = np.flatnonzero(counts)[[0, -1]]
    for level in range(first, last):
        parts = (range(level + 1), range(level + 1, len(counts)))
        means = [Fraction(sum(counts[v] * v for v in part), sum(counts[v] for v in part)) for part in parts]
        if 0 <= sum(means) / 2 - level < 1:
            return level
    return last


def exact_minimum(counts, rounds=200):
    """As scikit-image, of integers that grow threefold a round: NaN without two maxima, None if still undecided."""
    first, last = np.flatnonzero(counts)[[0, -1]]
    line = list(counts[first : last + 1])
    for _ in range(rounds):
        padded = [line[0], *line, line[-1]]
        line = [sum(padded[at : at + 3]) for at in range(len(line))]
        maxima, rising = [], True
        for at, (here, right) in enumerate(pairwise(line)):
            if rising and right < here:
                maxima.append(at)
            rising = right > here if right != here else rising
        if len(maxima) < 3:
            between = range(maxima[0], maxima[1] + 1) if len(maxima) == 2 else None
            return first + min(between, key=line.__getitem__) if between else NAN
    return None


def exact_triangle(counts):
    first, last = np.flatnonzero(counts)[[0, -1]]
    peak = counts.index(max(counts))
    tail = range(last, peak, -1) if peak - first < last - peak else range(first, peak)
    return max(tail, key=lambda v: counts[peak] * abs(v - tail[0]) - len(tail) * counts[v], default=first)


EXACT = {"yen": exact_yen, "triangle": exact_triangle, "isodata": exact_isodata, "minimum": exact_minimum}


@pytest.mark.parametrize("method", LEVEL_OF)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_scikit_image(kind, method):
    for seed in range(3):
        image = KINDS[kind](np.random.default_rng(seed))
        level, expected = LEVEL_OF[method](count(image)), reference(method, image)
        if method == "minimum" and not np.array_equal(level, expected, equal_nan=True):
            np.testing.assert_array_equal(image > level, image > expected)  # elsewhere in a gap, by float32
        else:
            tolerance = 1e-9 if method in {"li", "mean"} else 1
            assert level == pytest.approx(expected, abs=tolerance, rel=0, nan_ok=True)


@pytest.mark.parametrize("method", EXACT)
@settings(max_examples=200, deadline=None)
@given(counts=TABLES.filter(any))
def test_agrees_with_exact_arithmetic(method, counts):
    expected = EXACT[method](counts)
    if expected is not None:
        assert LEVEL_OF[method](np.array(counts)) == pytest.approx(expected, abs=0, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(counts=TABLES.filter(any))
def test_li_and_mean_of_small_tables_agree_with_scikit_image(counts):
    image = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    for method in ("li", "mean"):
        assert LEVEL_OF[method](np.array(counts)) == pytest.approx(reference(method, image), abs=1e-9)


@pytest.mark.parametrize(
    ("method", "counts", "level"),
    [
        ("li", [3, 0, 0, 0, 1], 1),  # the lowest level alone is below the mean, and stays so
        ("li", [0, 1, 2, 1], 1 + 4 / 3 / math.log(3)),  # of means 2/3 and 2 above the lowest
        ("yen", [5, 1, 0, 0, 6], 1),
        ("yen", [4, 4], 0),
        ("yen", [1, 1, 1], 0),  # both levels are equally good
        ("triangle", [1, 9, 3, 0, 0, 1], 3),  # longer tail above: from its end down
        ("triangle", [1, 0, 0, 3, 9, 1], 2),  # below: up
        ("triangle", [1, 0, 9, 0, 1], 1),  # both alike: below
        ("triangle", [2, 0, 0, 5, 0, 5], 2),  # the first of two peaks
        ("isodata", [5, 0, 0, 0, 5], 2),  # also where there is no voxel
        ("isodata", [4, 4], 0),
        ("isodata", [9, 0, 0, 0, 0, 0, 0, 0, 1], 4),
        ("mean", [5, 0, 0, 0, 5], 2),
        ("mean", [3, 1], 0.25),
        ("minimum", [9, 1, 0, 0, 5, 1, 1], 2),  # sums 19 10 1 5 6 7 3
        ("minimum", [1, 9, 3, 0, 0, 1, 4, 1, 1], 4),  # sums 11 13 12 3 1 5 6 6 3
        ("minimum", [1, 2, 9, 2, 1], NAN),  # one maximum
        ("minimum", [9, 4, 1, 4, 9], NAN),  # nothing falls after the second
        ("minimum", [5, 0, 0, 0, 5], NAN),
        ("minimum", [2, 1, 1, 2] * 3, NAN),  # three maxima for ever; of floats, until rounding has made them one
    ],
    ids=str,
)
def test_small_tables(method, counts, level):
    image = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    assert reference(method, image) == pytest.approx(level, abs=1e-6, nan_ok=True)
    for dtype in (np.uint32, np.int64, np.uint64):
        for function in (LEVEL_OF[method], LEVEL_OF[method].py_func):
            assert function(np.array(counts, dtype)) == pytest.approx(level, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("method", LEVEL_OF)
@pytest.mark.parametrize("counts", [[0, 0, 0], [0, 0, 7], [9, 0, 0], [0, 1, 0, 0], [5]], ids=str)
def test_one_level_is_the_level(method, counts):
    image = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
    expected = image[0] if image.size and method != "minimum" else NAN
    for function in (LEVEL_OF[method], LEVEL_OF[method].py_func):
        level = function(np.array(counts))
        assert type(level) is float or isinstance(level, np.float64)
        assert level == pytest.approx(expected, abs=0, nan_ok=True)
    if image.size:
        assert reference(method, image) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("method", LEVEL_OF)
@settings(max_examples=60, deadline=None)
@given(counts=TABLES.filter(any), before=st.integers(0, 300), after=st.integers(0, 300), factor=st.integers(1, 10**6))
def test_empty_levels_and_scale_do_not_matter(method, counts, before, after, factor):
    level = LEVEL_OF[method](np.array(counts))
    assert LEVEL_OF[method](np.pad(counts, (before, after))) == pytest.approx(level + before, abs=1e-9, nan_ok=True)
    if method not in {"otsu", "yen", "isodata", "minimum"}:  # of these, rounding decides ties
        assert LEVEL_OF[method](np.array(counts) * factor) == pytest.approx(level, abs=1e-9, nan_ok=True)
    first, last = np.flatnonzero(counts)[[0, -1]]
    assert math.isnan(level) or first <= level <= last


@pytest.mark.parametrize("method", LEVEL_OF)
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_a_whole_volume(method, dtype):
    """1.1e11 voxels in the upper levels of 16 bit: as of a millionth of them."""
    centres, widths, sizes = np.array([[64000, 65200], [90, 60], [1_000_000, 100_000]])[..., None]
    shape = np.exp(-(((np.arange(65536) - centres) / widths) ** 2) / 2)
    counts = (sizes * shape / shape.sum(axis=1, keepdims=True)).sum(axis=0).astype(dtype)
    many = counts * dtype(100_000)
    assert 1e11 < many.sum() < 1.1e11
    level = LEVEL_OF[method](many)
    assert 63000 < level < 65535
    assert level == pytest.approx(LEVEL_OF[method](counts), abs=1e-6)


def test_yen_keeps_a_tail_of_few_voxels():
    """The squares above a level are lost where they are the difference of two sums of 1e22."""
    counts = [10**11, *[0] * 5, *[2] * 7, 1, 1]
    assert threshold.yen_level(np.array(counts)) == exact_yen(counts)


@pytest.mark.parametrize("levels", [256, 65536])
@pytest.mark.parametrize("method", LEVEL_OF)
def test_levels_of_tables(method, levels):
    rng = np.random.default_rng(3)
    tables = np.zeros((4, 3, levels), np.uint32)
    tables[1, 2, levels // 2] = 7
    tables[2, :, 20:220] = rng.integers(0, 2**32, (3, 200), np.uint32)  # their sum has no place in 32 bits
    tables[3, :, levels - 256 :] = count(KINDS["bimodal"](rng)) // np.array([[1], [2], [3]])
    got = levels_of(method, tables)
    assert (got.dtype, got.shape) == (np.float64, (4,))
    np.testing.assert_array_equal(got, list(map(LEVEL_OF[method], tables.sum(axis=1, dtype=np.int64))))
    if method != "otsu":
        np.testing.assert_array_equal(got, threshold._levels.py_func(list(LEVEL_OF).index(method), tables))
    assert levels_of(method, tables[:0]).shape == (0,)


def test_levels_of_refuses():
    with pytest.raises(ConfigError, match=r"method: got 'kapur', expected one of otsu, li, yen, triangle"):
        levels_of("kapur", np.zeros((1, 3, 256), np.uint32))


@pytest.mark.parametrize("method", LEVEL_OF)
@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 99), max_size=40))
def test_as_plain_python(method, counts):
    counts = np.array(counts, np.int64)
    level = LEVEL_OF[method](counts)
    assert LEVEL_OF[method].py_func(counts) == pytest.approx(level, rel=1e-12, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_parts_as_plain_python(counts):
    counts = np.array(counts)
    for part in (threshold._ends, threshold._sums):
        assert part.py_func(counts) == part(counts)
    line = np.pad(counts, 1, mode="symmetric").astype(float)
    assert threshold._maxima.py_func(line) == threshold._maxima(line)
    outs = np.zeros((2, line.size))
    peaks = [
        f(line, 0.5, 1.0, out) for f, out in zip((threshold._smooth, threshold._smooth.py_func), outs, strict=True)
    ]
    inner = outs[:, 1:-1]
    np.testing.assert_array_equal(inner, [1.5 * ndimage.uniform_filter1d(counts.astype(float), 3)] * 2)
    assert peaks[0] == peaks[1] == np.sum((line[1:-1] > line[:-2] + 1) & (line[1:-1] > line[2:] + 1))


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 9])
def test_minimum_gives_up_in_the_same_round(monkeypatch, rounds):
    monkeypatch.setattr(threshold, "MINIMUM_ROUNDS", rounds)
    outcomes = set()
    for seed in range(20):
        counts = np.random.default_rng(seed).integers(0, 50, 12 + 2 * seed)
        try:
            expected = filters.threshold_minimum(hist=counts, max_num_iter=rounds + 1)
        except RuntimeError as error:
            expected = NAN
            outcomes.add(str(error)[:20])
        assert minimum_level.py_func(counts) == pytest.approx(expected, abs=0, nan_ok=True)
        outcomes.add(math.isnan(expected))
    assert len(outcomes) >= 3


RNG = np.random.default_rng(0)
FEW = RNG.random(2**18) < 0.05
AXIS = np.arange(20000)
WIDE = {
    "noise": (np.bincount(RNG.integers(0, 65536, 2**18)), True),
    "two noisy modes": (
        np.bincount(RNG.normal(np.where(FEW, 12000, 2000), np.where(FEW, 3000, 300)).clip(0, 65535).astype(int)),
        True,
    ),
    "two modes with ripples": (
        (10_000 * (1 + np.cos(AXIS / 2000)) * (1.1 + np.cos(AXIS / 8)) + 1).astype(int)[3000:],
        False,
    ),
    "few voxels": (np.bincount(RNG.integers(0, 20000, 6)), True),
}


@pytest.mark.parametrize(("counts", "undecided"), WIDE.values(), ids=WIDE)
def test_windows_do_not_change_the_minimum(monkeypatch, counts, undecided):
    level = minimum_level(counts)
    assert math.isnan(level) is undecided
    assert minimum_level.py_func(counts) == pytest.approx(level, abs=0, nan_ok=True)
    monkeypatch.setattr(threshold, "_FIRST_WINDOW_ROUND", threshold.MINIMUM_ROUNDS + 1)
    assert minimum_level.py_func(counts) == pytest.approx(level, abs=0, nan_ok=True)


def fewest_peaks(line, rounds):
    """Maxima that are left of a whole histogram in each of so many rounds: the fewest, of those within."""
    old, fewest = np.pad(line, 1, mode="edge"), line.size
    for _ in range(rounds + 1):
        new = np.zeros_like(old)
        fewest = min(fewest, threshold._smooth(old, 1 / 3, 0.0, new))
        new[0], new[-1] = new[1], new[-2]
        old = new
    return fewest


@pytest.mark.parametrize("seed", range(6))
def test_what_outlasts_in_a_window_outlasts(seed):
    rng = np.random.default_rng(seed)
    line = rng.poisson(np.interp(np.arange(8000), [0, 4000, 8000], rng.choice([1.0, 30, 300, 3000], 3))).astype(float)
    for rounds in (1, 50, 400):
        for function in (threshold._outlast, threshold._outlast.py_func):
            assert not function(line, rounds) or fewest_peaks(line, rounds) >= 3
    assert threshold._outlast(line, 1)
    assert not threshold._outlast(np.full(8000, 7.0), 1)
    assert not threshold._outlast(np.arange(8000.0), 1)


def test_halo_keeps_out_what_lies_beyond():
    """The bound on what crosses the halo, against all paths of the walk."""
    rounds, halo = threshold.MINIMUM_ROUNDS, threshold._WINDOW_HALO
    beyond = np.zeros(2 * halo + 2)
    beyond[: halo + 1] = 1.0  # a wall of voxels, mirrored in the far end
    for _ in range(rounds):
        new = beyond.copy()
        threshold._smooth(beyond, 1 / 3, 0.0, new)
        new[0], beyond = 1.0, new
    assert beyond[-2] < 6e-21
    assert 4 * math.exp(-3 * halo**2 / (4 * rounds)) < 6e-21


def test_examples():
    results = doctest.testmod(threshold)
    assert results.failed == 0
    assert results.attempted == 6


@pytest.mark.skipif(not TILE.is_dir(), reason="the real tile is not part of the repository")
@pytest.mark.parametrize(
    ("method", "level"),
    [
        ("otsu", 79),
        ("yen", 65),
        ("triangle", 55),
        ("li", 34.147),
        ("isodata", 36),
        ("mean", 43.935),
        ("minimum", 6),
    ],
)
def test_real_tile(method, level):
    image_module = pytest.importorskip("PIL.Image")
    image = np.asarray(image_module.open(TILE / "grayscale.png"))
    filtered = ndimage.median_filter(255 - image, 3, mode="reflect")
    assert round(LEVEL_OF[method](count(filtered)), 3) == level
    assert round(reference(method, filtered), 3) == level
