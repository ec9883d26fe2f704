"""Counts and scores against scikit-learn, exact decimals, and published cases."""

from __future__ import annotations

import doctest
import math
from decimal import Decimal, localcontext
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn import metrics

from pipeline import confusion
from pipeline.confusion import Counts, Scores, mean_scores, score_parts, scores, tile_scores
from pipeline.errors import ShapeMismatchError

NINE = np.ones((3, 3), np.uint8)
PUBLISHED = [
    pytest.param(0 * NINE, NINE, Counts(fp=9), Scores(0, 0, -1), id="all wrong, nothing there"),
    pytest.param(NINE, 0 * NINE, Counts(fn=9), Scores(0, 0, -1), id="all wrong, nothing found"),
    pytest.param(NINE, NINE, Counts(tp=9), Scores(1, 1, 1), id="all vessel and right"),
    pytest.param(0 * NINE, 0 * NINE, Counts(tn=9), Scores(1, 1, 1), id="all background and right"),
    pytest.param([1, 0, 1], [1, 0, 1], Counts(tp=2, tn=1), Scores(1, 1, 1), id="both and right"),
    pytest.param([1, 0, 1], [0, 1, 0], Counts(fp=1, fn=2), Scores(0, 0, -1), id="both and wrong"),
    pytest.param([1, 1, 0], [1, 1, 1], Counts(tp=2, fp=1), Scores(2 / 3, 0.8, -1), id="mask of one class"),
    pytest.param(
        [1, 0, 1, 0, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 1, 1, 0, 0],
        Counts(3, 1, 1, 4),
        Scores(7 / 9, 0.75, 0.55),
        id="mixed",
    ),
    pytest.param([127, 127], [0, 1], Counts(), Scores(None, None, None), id="nothing annotated"),
    pytest.param(np.zeros((0, 4)), np.zeros((0, 4)), Counts(), Scores(None, None, None), id="no voxel"),
]
VOXELS = st.one_of(st.sampled_from([0, 1]), st.integers(0, 2**29))
TILES = st.builds(Counts, VOXELS, VOXELS, VOXELS, VOXELS)
VOLUMES = st.builds(Counts, *[st.one_of(st.integers(0, 3), st.integers(0, 10**11), st.integers(0, 10**15))] * 4)


def as_array(counts):
    return np.array([counts.tp, counts.fp, counts.fn, counts.tn], np.int64)


@pytest.mark.parametrize(("truth", "mask", "counts", "expected"), PUBLISHED)
def test_published(truth, mask, counts, expected):
    assert Counts.from_images(truth, mask) == counts
    assert scores(counts) == expected
    wanted = [math.nan if score is None else score for score in (expected.accuracy, expected.f1, expected.mcc)]
    np.testing.assert_array_equal(tile_scores(as_array(counts)), wanted)


def test_scores_of_the_real_tile():
    counts = Counts(tp=5595, fp=122, fn=1863, tn=254564)
    assert scores(counts) == Scores(accuracy=0.9924278259277344, f1=0.8493358633776091, mcc=0.8533910225863214)


@pytest.mark.parametrize(
    ("truth", "mask"),
    [
        (np.uint8([0, 255, 127, 255, 0]), np.uint8([0, 255, 255, 0, 255])),
        (np.uint8([0, 1, 127, 1, 0]), np.uint8([0, 1, 1, 0, 1])),
        (np.uint8([0, 255, 127, 255, 0]), np.array([False, True, False, False, True])),
        (np.array([False, True, True, False]), np.uint8([0, 127, 0, 9])),
        (np.array([0, 3, 127, 70000, 0]), np.uint16([0, 7, 1, 0, 65535])),
    ],
    ids=["255", "1", "boolean mask", "boolean truth", "wide integers"],
)
def test_values_that_images_use(truth, mask):
    assert Counts.from_images(truth, mask) == Counts(tp=1, fp=1, fn=1, tn=1)


def test_images_of_different_shapes():
    with pytest.raises(ShapeMismatchError, match=r"mask: got shape \(2, 4\), the truth has \(2, 3\)"):
        Counts.from_images(np.zeros((2, 3)), np.zeros((2, 4)))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=array_shapes(max_dims=3, max_side=6))
def test_scikit_learn_agrees(data, shape):
    truth, mask = (data.draw(arrays(bool, shape)) for _ in range(2))
    counts = Counts.from_images(truth, mask)
    flat = truth.ravel(), mask.ravel()
    (tn, fp), (fn, tp) = metrics.confusion_matrix(*flat, labels=[False, True])
    assert counts == Counts(tp, fp, fn, tn)
    assert all(type(number) is int for number in (counts.tp, counts.fp, counts.fn, counts.tn))
    assert counts.total == truth.size
    assert counts.accuracy == pytest.approx(metrics.accuracy_score(*flat), rel=1e-14)
    assert counts.f1 == pytest.approx(metrics.f1_score(*flat, zero_division=1.0), rel=1e-14)
    if 0 < truth.sum() < truth.size and 0 < mask.sum() < mask.size:
        assert counts.mcc == pytest.approx(metrics.matthews_corrcoef(*flat), abs=1e-14)


@settings(deadline=None)
@given(parts=st.lists(VOLUMES, max_size=6), cut=st.integers(0, 6))
def test_sum_in_any_tree(parts, cut):
    halves = [reduce(add, half, Counts()) for half in (parts[:cut], parts[cut:])]
    assert halves[0] + halves[1] == halves[1] + halves[0] == reduce(add, parts, Counts())


@settings(deadline=None)
@given(counts=VOLUMES.filter(lambda counts: counts.total))
def test_mcc_is_exact_at_any_size(counts):
    tp, fp, fn, tn = as_array(counts).tolist()
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    if product == 0:
        assert counts.mcc == (1 if fp == fn == 0 else -1)
        return
    with localcontext(prec=120):
        exact = (tp * tn - fp * fn) / Decimal(product).sqrt()
    assert counts.mcc == float(exact)


@pytest.mark.parametrize("voxels", [112_000_000_000, 10**15 + 7, 10**30 + 1])
def test_right_and_wrong_masks_of_whole_volumes(voxels):
    vessel = voxels // 21
    assert scores(Counts(tp=vessel, tn=voxels - vessel)) == Scores(1, 1, 1)
    assert scores(Counts(fp=voxels - vessel, fn=vessel)) == Scores(0, 0, -1)


@settings(deadline=None)
@given(tiles=st.lists(TILES, min_size=1, max_size=5))
def test_tile_scores_are_the_scores_of_each_tile(tiles):
    array = np.stack([as_array(counts) for counts in tiles])
    got = tile_scores(array)
    expected = [scores(counts) for counts in tiles]
    rows = np.array([[s.accuracy, s.f1, s.mcc] for s in expected], np.float64)  # None becomes NaN
    np.testing.assert_array_equal(got[:, :2], rows[:, :2])
    np.testing.assert_allclose(got[:, 2], rows[:, 2], rtol=0, atol=1e-14)
    whole = np.isin(rows[:, 2], (-1, 0, 1))
    np.testing.assert_array_equal(got[whole, 2], rows[whole, 2])


def test_tile_scores_keep_the_grid():
    assert tile_scores(np.zeros((2, 0, 3, 4), np.int64)).shape == (2, 0, 3, 3)
    with pytest.raises(ShapeMismatchError, match=r"counts: got shape \(4, 3\), expected \(..., 4\)"):
        tile_scores(np.zeros((4, 3), np.int64))


@settings(deadline=None)
@given(tiles=st.lists(TILES, max_size=6), seed=st.randoms(use_true_random=False))
def test_mean_over_annotated_tiles_in_any_order(tiles, seed):
    parts = [score_parts(as_array(counts)) for counts in tiles]
    mean = mean_scores(sum(parts, np.zeros(7, np.int64)))
    seed.shuffle(parts)
    assert mean_scores(sum(parts, np.zeros(7, np.int64))) == mean
    annotated = [counts for counts in tiles if counts.total]
    if not annotated:
        assert mean is None
        return
    expected = tile_scores(np.stack([as_array(counts) for counts in annotated])).mean(axis=0)
    assert mean[1] == len(annotated)
    assert (mean[0].accuracy, mean[0].f1, mean[0].mcc) == pytest.approx(tuple(expected), rel=0, abs=1e-14)


def test_examples():
    assert doctest.testmod(confusion).failed == 0
