"""Counts and scores against scikit-learn, exact decimals, and published cases."""

from __future__ import annotations

import doctest
import warnings
from dataclasses import asdict, astuple, replace
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial, reduce
from itertools import product
from operator import add
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn import metrics

from pipeline.errors import ShapeMismatchError
from pipeline.kernels import confusion
from pipeline.kernels.confusion import (
    SCORE_PARTS,
    SCORES,
    Counts,
    Scores,
    Undefined,
    mean_scores,
    score_parts,
    scores,
    sum_scores,
    tile_scores,
)

UNDEFINED: tuple[Undefined, ...] = get_args(Undefined)
NOTHING = Scores(*9 * [None])
PERFECT = Scores(*9 * [1])
NINE = np.ones((3, 3), np.uint8)
PUBLISHED = [
    pytest.param(0 * NINE, NINE, Counts(fp=9), Scores(0, 0, -1, 0, 0, 0, 0, 0, 0), id="all wrong, nothing there"),
    pytest.param(NINE, 0 * NINE, Counts(fn=9), Scores(0, 0, -1, 0, 0, 0, 0, 0, 0), id="all wrong, nothing found"),
    pytest.param(NINE, NINE, Counts(tp=9), PERFECT, id="all vessel and right"),
    pytest.param(0 * NINE, 0 * NINE, Counts(tn=9), PERFECT, id="all background and right"),
    pytest.param([1, 0, 1], [1, 0, 1], Counts(tp=2, tn=1), PERFECT, id="both and right"),
    pytest.param([1, 0, 1], [0, 1, 0], Counts(fp=1, fn=2), Scores(0, 0, -1, 0, 0, 0, 0, 0, -0.8), id="both and wrong"),
    pytest.param(
        [1, 1, 0],
        [1, 1, 1],
        Counts(tp=2, fp=1),
        Scores(2 / 3, 0.8, -1, 2 / 3, 1, 0, 2 / 3, 0.5, 0),
        id="mask of one class",
    ),
    pytest.param(
        [1, 0, 1, 0, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 1, 1, 0, 0],
        Counts(3, 1, 1, 4),
        Scores(7 / 9, 0.75, 0.55, 0.75, 0.75, 0.8, 0.6, 0.775, 0.55),
        id="mixed",
    ),
    pytest.param([127, 127], [0, 1], Counts(), NOTHING, id="nothing annotated"),
    pytest.param(np.zeros((0, 4)), np.zeros((0, 4)), Counts(), NOTHING, id="no voxel"),
]
VOXELS = st.one_of(st.sampled_from([0, 1]), st.integers(0, 2**29))
TILES = st.builds(Counts, VOXELS, VOXELS, VOXELS, VOXELS)
VOLUMES = st.builds(Counts, *[st.one_of(st.integers(0, 3), st.integers(0, 10**11), st.integers(0, 10**15))] * 4)


def as_array(counts):
    return np.array(astuple(counts), np.int64)


def as_row(found):
    return np.array(astuple(found), np.float64)  # None becomes NaN


@pytest.mark.parametrize(("truth", "mask", "counts", "expected"), PUBLISHED)
def test_published(truth, mask, counts, expected):
    assert Counts.from_images(truth, mask) == counts
    assert scores(counts) == expected
    np.testing.assert_array_equal(tile_scores(as_array(counts)), as_row(expected))


N = None
RULES = [
    # truth and mask    rule       accuracy, F1, MCC; precision, recall, specificity; IoU, balanced accuracy, kappa
    pytest.param(Counts(tn=4), "zero", Scores(1, 0, 0, 0, 0, 1, 0, 1, 0), id="no vessel, none found"),
    pytest.param(Counts(tn=4), "nan", Scores(1, N, N, N, N, 1, N, N, N), id="no vessel, none found"),
    pytest.param(Counts(tp=4), "zero", Scores(1, 1, 0, 1, 1, 0, 1, 1, 0), id="all vessel, all found"),
    pytest.param(Counts(tp=4), "nan", Scores(1, 1, N, 1, 1, N, 1, N, N), id="all vessel, all found"),
    pytest.param(
        Counts(fp=1, tn=3), "article", Scores(0.75, 0, -1, 0, 0, 0.75, 0, 0.375, 0), id="no vessel, some found"
    ),
    pytest.param(Counts(fp=1, tn=3), "zero", Scores(0.75, 0, 0, 0, 0, 0.75, 0, 0.75, 0), id="no vessel, some found"),
    pytest.param(Counts(fp=1, tn=3), "nan", Scores(0.75, 0, N, 0, N, 0.75, 0, N, 0), id="no vessel, some found"),
    pytest.param(Counts(fn=1, tn=3), "article", Scores(0.75, 0, -1, 0, 0, 1, 0, 0.5, 0), id="some vessel, none found"),
    pytest.param(Counts(fn=1, tn=3), "zero", Scores(0.75, 0, 0, 0, 0, 1, 0, 0.5, 0), id="some vessel, none found"),
    pytest.param(Counts(fn=1, tn=3), "nan", Scores(0.75, 0, N, N, 0, 1, 0, 0.5, 0), id="some vessel, none found"),
    pytest.param(
        Counts(3, 0, 1), "article", Scores(0.75, 6 / 7, -1, 1, 0.75, 0, 0.75, 0.375, 0), id="all vessel, some found"
    ),
    pytest.param(
        Counts(3, 0, 1), "zero", Scores(0.75, 6 / 7, 0, 1, 0.75, 0, 0.75, 0.75, 0), id="all vessel, some found"
    ),
    pytest.param(Counts(3, 0, 1), "nan", Scores(0.75, 6 / 7, N, 1, 0.75, N, 0.75, N, 0), id="all vessel, some found"),
    pytest.param(Counts(), "zero", NOTHING, id="nothing annotated"),
    pytest.param(Counts(), "nan", NOTHING, id="nothing annotated"),
]


@pytest.mark.parametrize(("counts", "undefined", "expected"), RULES)
def test_what_0_divided_by_0_is(counts, undefined, expected):
    assert scores(counts, undefined) == expected
    np.testing.assert_array_equal(tile_scores(as_array(counts), undefined), as_row(expected))


def test_scores_of_the_real_tile():
    counts = Counts(tp=5595, fp=122, fn=1863, tn=254564)
    found = scores(counts)
    assert (found.accuracy, found.f1, found.mcc) == (0.9924278259277344, 0.8493358633776091, 0.8533910225863214)
    assert (found.precision, found.recall, found.iou) == (5595 / 5717, 5595 / 7458, 5595 / 7580)
    assert {scores(counts, undefined) for undefined in UNDEFINED} == {found}


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
    zero, defined = asdict(scores(counts, "zero")), asdict(scores(counts, "nan"))
    article, written = asdict(scores(counts)), written_rules(*flat)
    for name, value, is_defined in of_scikit_learn(*flat):
        assert zero[name] == pytest.approx(value, rel=1e-14, abs=1e-14), name
        assert defined[name] == (zero[name] if is_defined else None), name
        assert article[name] == pytest.approx(zero[name] if is_defined else written[name], rel=1e-14), name


def of_scikit_learn(truth, mask):
    """Name of each score, its value by scikit-learn with 0 for 0 / 0, and whether it is defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each undefined score is one
        kappa = metrics.cohen_kappa_score(truth, mask)
        balanced = metrics.balanced_accuracy_score(truth, mask)
        both = 0 < truth.sum() < truth.size
        yield "accuracy", metrics.accuracy_score(truth, mask), True
        yield "mcc", metrics.matthews_corrcoef(truth, mask), both and 0 < mask.sum() < mask.size
        yield "balanced_accuracy", balanced, both
        yield "kappa", np.nan_to_num(kappa), not np.isnan(kappa)
        for name, metric in (
            ("f1", metrics.f1_score),
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
            ("specificity", partial(metrics.recall_score, pos_label=0)),
            ("iou", metrics.jaccard_score),
        ):
            low, high = (metric(truth.astype(int), mask.astype(int), zero_division=value) for value in (0.0, 1.0))
            yield name, low, low == high


def written_rules(truth, mask):
    """What the rule "article" says of scores that are 0 / 0, by the names of those that can be."""
    recall = mask[truth].mean() if truth.any() else float(not mask.any())
    specificity = 1 - mask[~truth].mean() if not truth.all() else float(mask.all())
    return {
        "f1": 1, "iou": 1, "kappa": 1, "mcc": 1 if (truth == mask).all() else -1,
        "precision": float(not truth.any()), "recall": recall, "specificity": specificity,
        "balanced_accuracy": (recall + specificity) / 2,
    }  # fmt: skip


@settings(deadline=None)
@given(parts=st.lists(VOLUMES, max_size=6), cut=st.integers(0, 6))
def test_sum_in_any_tree(parts, cut):
    halves = [reduce(add, half, Counts()) for half in (parts[:cut], parts[cut:])]
    assert halves[0] + halves[1] == halves[1] + halves[0] == reduce(add, parts, Counts())


@settings(deadline=None)
@given(counts=VOLUMES.filter(lambda counts: counts.total))
def test_mcc_is_exact_at_any_size(counts):
    tp, fp, fn, tn = as_array(counts).tolist()
    variances = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    if variances == 0:
        assert scores(counts).mcc == (1 if fp == fn == 0 else -1)
        return
    with localcontext(prec=120):
        exact = (tp * tn - fp * fn) / Decimal(variances).sqrt()
    assert scores(counts).mcc == float(exact)


@settings(deadline=None)
@given(counts=VOLUMES.filter(lambda counts: counts.total))
def test_scores_are_exact_at_any_size(counts):
    """Each from its definition in probabilities; a fraction becomes the nearest float."""
    found = asdict(scores(counts, "nan"))
    tp, fp, fn, tn = (Fraction(cell, counts.total) for cell in astuple(counts))
    chance = (tp + fp) * (tp + fn) + (tn + fp) * (tn + fn)
    for name, exact in {
        "accuracy": lambda: tp + tn,
        "f1": lambda: 2 / ((tp + fp) / tp + (tp + fn) / tp) if tp else 0 / (fp + fn),
        "precision": lambda: tp / (tp + fp),
        "recall": lambda: tp / (tp + fn),
        "specificity": lambda: tn / (tn + fp),
        "iou": lambda: tp / (1 - tn),
        "balanced_accuracy": lambda: (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "kappa": lambda: (tp + tn - chance) / (1 - chance),
    }.items():
        try:
            expected = float(exact())
        except ZeroDivisionError:
            expected = None
        assert found[name] == expected, name


@pytest.mark.parametrize("voxels", [112_000_000_000, 10**15 + 7, 10**30 + 1])
def test_right_and_wrong_masks_of_whole_volumes(voxels):
    vessel = voxels // 21
    assert scores(Counts(tp=vessel, tn=voxels - vessel)) == PERFECT
    wrong = scores(Counts(fp=voxels - vessel, fn=vessel))
    assert replace(wrong, kappa=0) == Scores(0, 0, -1, 0, 0, 0, 0, 0, 0)
    assert wrong.kappa == pytest.approx(-40 / 401, rel=1e-9)  # one of 21 is a vessel, and all are wrong
    half = scores(Counts(fp=voxels, fn=voxels))
    assert half.kappa == -1


@settings(deadline=None)
@given(tiles=st.lists(TILES, min_size=1, max_size=5), undefined=st.sampled_from(UNDEFINED))
def test_tile_scores_are_the_scores_of_each_tile(tiles, undefined):
    got = tile_scores(np.stack([as_array(counts) for counts in tiles]), undefined)
    rows = np.stack([as_row(scores(counts, undefined)) for counts in tiles])
    np.testing.assert_allclose(got, rows, rtol=0, atol=1e-14)
    once = [SCORES.index(name) for name in ("accuracy", "f1", "precision", "recall", "specificity", "iou")]
    np.testing.assert_array_equal(got[:, once], rows[:, once])
    whole = np.isin(rows, (-1, 0, 1))
    np.testing.assert_array_equal(got[whole], rows[whole])


@pytest.mark.parametrize("undefined", UNDEFINED)
def test_products_of_the_largest_tile_do_not_overflow(undefined):
    edge = (0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31)
    tiles = [Counts(*cells) for cells in product(edge, repeat=4) if sum(cells) <= 2**31]
    got = tile_scores(np.stack([as_array(counts) for counts in tiles]), undefined)
    rows = np.stack([as_row(scores(counts, undefined)) for counts in tiles])
    np.testing.assert_allclose(got, rows, rtol=0, atol=1e-14)


def test_tile_scores_keep_the_grid():
    assert tile_scores(np.zeros((2, 0, 3, 4), np.int64)).shape == (2, 0, 3, 9)
    assert score_parts(np.zeros((2, 0, 3, 4), np.int64)).shape == (2, 0, 3, SCORE_PARTS)
    with pytest.raises(ShapeMismatchError, match=r"counts: got shape \(4, 3\), expected \(..., 4\)"):
        tile_scores(np.zeros((4, 3), np.int64))


@settings(deadline=None)
@given(tiles=st.lists(TILES, max_size=6), seed=st.randoms(use_true_random=False), undefined=st.sampled_from(UNDEFINED))
def test_mean_over_annotated_tiles_in_any_order(tiles, seed, undefined):
    parts = [score_parts(as_array(counts), undefined) for counts in tiles]
    macro = mean_scores(sum(parts, np.zeros(SCORE_PARTS, np.int64)), undefined)
    seed.shuffle(parts)
    assert mean_scores(sum(parts, np.zeros(SCORE_PARTS, np.int64)), undefined) == macro
    annotated = [counts for counts in tiles if counts.total]
    if not annotated:
        assert macro is None
        return
    assert macro.tiles == len(annotated)
    for name in SCORES:
        values = [getattr(scores(counts, undefined), name) for counts in annotated]
        known = [value for value in values if value is not None]
        mean = getattr(macro.mean, name)
        assert mean == (pytest.approx(sum(known) / len(known), rel=0, abs=1e-14) if known else None)
        assert macro.undefined[name] == sum(getattr(scores(counts, "nan"), name) is None for counts in annotated)


@pytest.mark.parametrize("shape", [(0, 3), (5,), (3, 70, 100)])
def test_sum_of_many_tiles_is_that_of_each(shape):
    tiles = np.random.default_rng(3).integers(0, 4, (*shape, 4))
    for undefined in UNDEFINED:
        parts = score_parts(tiles, undefined).reshape(-1, SCORE_PARTS)
        np.testing.assert_array_equal(sum_scores(tiles, undefined), parts.sum(axis=0))


def test_means_say_in_how_many_tiles_a_score_is_undefined():
    tiles = np.array([[0, 0, 0, 4], [0, 0, 1, 3], [1, 1, 1, 1], [0, 0, 0, 0]])
    undefined = {
        "accuracy": 0, "f1": 1, "mcc": 2, "precision": 2, "recall": 1, "specificity": 0, "iou": 1,
        "balanced_accuracy": 1, "kappa": 1,
    }  # fmt: skip
    for rule, precision, mcc in (("article", 1.5 / 3, 0), ("zero", 0.5 / 3, 0), ("nan", 0.5, 0)):
        macro = mean_scores(sum_scores(tiles, rule), rule)
        assert (macro.tiles, macro.undefined) == (3, undefined)
        assert (macro.mean.precision, macro.mean.mcc) == (precision, mcc)
        assert macro.document() == asdict(macro.mean) | {"tiles": 3, "undefined": undefined}
    empty = mean_scores(sum_scores(tiles[:1], "nan"), "nan")
    assert empty.mean == Scores(1, N, N, N, N, 1, N, N, N)


def test_examples():
    assert doctest.testmod(confusion).failed == 0
