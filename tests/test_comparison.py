"""Comparison of candidates against loops over voxels, scikit-learn, and resampling one candidate at a time."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial, reduce
from itertools import pairwise
from operator import add
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.stats import bootstrap
from sklearn import metrics

from pipeline.errors import ConfigError, ShapeMismatchError
from pipeline.kernels.confusion import Counts, scores
from pipeline.kernels.histogram import joint_histogram, otsu_level
from pipeline.methods import comparison
from pipeline.methods.comparison import (
    LEAST_SLICES,
    Candidate,
    Interval,
    average_precision,
    ceiling,
    confidence_level,
    curves,
    describe,
    held_out,
    rank,
    roc_auc,
    tile_counts,
)

TILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "kesm-tile"
OTSU, YEN, LI = (Candidate(method, "tile", "median") for method in ("otsu", "yen", "li"))
LEVELS = st.one_of(st.floats(-3, 12), st.sampled_from([math.nan, math.inf, -math.inf]))
TABLES = arrays(
    st.sampled_from([np.uint32, np.int64]),
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.just(3), st.integers(1, 9)),
    elements=st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 2**20)),
)
"""(slices, rows, columns, 3, levels)"""
SMALL = arrays(np.uint32, st.tuples(st.just(3), st.integers(1, 9)), elements=st.integers(0, 4))
"""(3, levels), few enough to list the voxels."""
ROWS = st.lists(st.tuples(*[st.integers(0, 20)] * 2, *[st.booleans()] * 2), min_size=1, max_size=12)


def loop_counts(table, level):
    """Counts of one table by a loop over its grey levels."""
    counts = Counts()
    for grey in range(table.shape[1]):
        background, vessel = int(table[0, grey]), int(table[1, grey])
        counts += Counts(tp=vessel, fp=background) if grey > level else Counts(fn=vessel, tn=background)
    return counts


def voxels_of(table):
    """Truth and grey level of every annotated voxel."""
    truth = np.repeat([0, 1], table[:2].sum(axis=1, dtype=np.int64))
    grey = np.concatenate([np.repeat(np.arange(table.shape[1]), row) for row in table[:2].astype(np.int64)])
    return truth, grey


def made_up(rng, slices, vessels, quality):
    """Counts of slices whose vessels, of the given numbers, are found with some quality."""
    tp = rng.binomial(vessels, np.clip(quality + rng.normal(0, 0.05, slices), 0, 1))
    fp = rng.binomial(1000, 0.05, slices)
    return np.stack([tp, fp, vessels - tp, 20_000 - fp], axis=-1)


def some_counts(slices, qualities, seed=1):
    rng = np.random.default_rng(seed)
    vessels = rng.integers(200, 900, slices)
    return {candidate: made_up(rng, slices, vessels, quality) for candidate, quality in qualities.items()}


def total(rows):
    return reduce(add, (Counts(*row) for row in rows.tolist()), Counts())


@settings(max_examples=60, deadline=None)
@given(tables=TABLES, data=st.data())
def test_counts_are_sums_over_grey_levels(tables, data):
    levels = data.draw(arrays(np.float64, tables.shape[:3], elements=LEVELS))
    counts = tile_counts(tables, levels)
    assert (counts.shape, counts.dtype) == ((*tables.shape[:3], 4), np.int64)
    for at in np.ndindex(levels.shape):
        assert Counts(*counts[at].tolist()) == loop_counts(tables[at], levels[at])


@pytest.mark.parametrize(
    ("shape", "levels"), [((2, 3, 8), (3,)), ((2, 3, 8), (2, 1)), ((2, 4, 8), (2,))], ids=["number", "axes", "rows"]
)
def test_counts_refuse_other_shapes(shape, levels):
    with pytest.raises(ShapeMismatchError, match=rf"levels: got shape .* for tables \({shape[0]}, .*expected one for"):
        tile_counts(np.zeros(shape, np.uint32), np.zeros(levels))


@settings(max_examples=60, deadline=None)
@given(table=SMALL.filter(lambda table: table[:2].any(axis=1).all()))
def test_curves_are_those_of_every_level(table):
    found = curves(table)
    for position, level in enumerate(range(-1, table.shape[1])):
        counts = loop_counts(table, level)
        marked = counts.tp + counts.fp
        assert found.wrong[position] == counts.fp / (counts.fp + counts.tn)
        assert found.recall[position] == counts.tp / (counts.tp + counts.fn)
        np.testing.assert_equal(found.precision[position], counts.tp / marked if marked else math.nan)
    assert len(found.wrong) == len(found.recall) == len(found.precision) == 1 + table.shape[1]


def test_counts_of_views_and_read_only_arrays():
    tables = np.random.default_rng(1).integers(0, 9, (4, 3, 3, 3, 8), np.uint32)
    levels = np.random.default_rng(2).uniform(0, 8, (4, 3, 3))
    levels.flags.writeable = tables.flags.writeable = False
    np.testing.assert_array_equal(
        tile_counts(tables[::2, 1:], levels[::2, 1:]), tile_counts(tables, levels)[::2, 1:], strict=True
    )


@pytest.mark.parametrize("metric", ["mcc", "f1"])
@settings(max_examples=60, deadline=None)
@given(table=SMALL)
def test_ceiling_tries_every_level(metric, table):
    tried = {level: scores(loop_counts(table, level)) for level in range(-1, table.shape[-1])}
    found = ceiling(table, metric)
    if tried[-1].mcc is None:
        assert found is None
    else:
        best = max(tried, key=lambda level: getattr(tried[level], metric))
        assert found == (best, tried[best].mcc, tried[best].f1)


@settings(max_examples=60, deadline=None)
@given(table=arrays(np.int64, (3, 4), elements=st.integers(1, 10**11)))
def test_ceiling_of_a_volume_is_exact(table):
    def exact(level):
        counts = loop_counts(table, level)
        covariance = counts.tp * counts.tn - counts.fp * counts.fn
        ends = (counts.tp + counts.fp) * (counts.tn + counts.fn), (counts.tp + counts.fn) * (counts.tn + counts.fp)
        return Fraction(covariance * abs(covariance), ends[0] * ends[1]) if all(ends) else -1

    best = max(range(-1, 4), key=exact)
    found = ceiling(table)
    assert found.mcc == scores(loop_counts(table, best)).mcc == scores(loop_counts(table, found.level)).mcc
    assert found.level == best or exact(found.level) == pytest.approx(exact(best), rel=1e-15)


@pytest.mark.parametrize(
    ("table", "best"),
    [
        ([[0, 0], [0, 0], [5, 5]], None),
        ([[0, 0], [2, 3], [0, 0]], (-1, 1.0, 1.0)),
        ([[2, 3], [0, 0], [0, 0]], (1, 1.0, 1.0)),
        ([[0, 3], [0, 2], [0, 0]], (-1, -1.0, 4 / 7)),
        ([[4, 0], [0, 2], [0, 9]], (0, 1.0, 1.0)),
        ([[0, 4], [2, 0], [0, 9]], (-1, -1.0, 1 / 2)),
    ],
    ids=["not annotated", "vessel", "background", "one level", "apart", "upside down"],
)
def test_ceilings_of_odd_tables(table, best):
    assert ceiling(np.array(table, np.uint32)) == best


@settings(max_examples=60, deadline=None)
@given(table=SMALL)
def test_areas_under_curves(table):
    truth, grey = voxels_of(table)
    if 0 < truth.sum() < truth.size:
        assert roc_auc(table) == pytest.approx(metrics.roc_auc_score(truth, grey), abs=1e-12)
    else:
        assert roc_auc(table) is None
    if truth.any():
        assert average_precision(table) == pytest.approx(metrics.average_precision_score(truth, grey), abs=1e-12)
    else:
        assert average_precision(table) is None


def test_areas_of_a_volume():
    table = np.array([[10**11, 10**10, 0], [0, 10**9, 10**9], [1, 1, 1]])
    assert roc_auc(table) == (10**9 * (2 * 10**11 + 10**10) + 10**9 * 22 * 10**10) / (2 * 2 * 10**9 * 11 * 10**10)
    assert average_precision(table) == pytest.approx((1 + 2 / 12) / 2, abs=1e-15)


@pytest.mark.parametrize("metric", ["mcc", "f1"])
@pytest.mark.parametrize("slices", [5, 8, 20])
def test_intervals_are_those_of_one_candidate_at_a_time(slices, metric):
    counts = some_counts(slices, {OTSU: 0.8, YEN: 0.82, LI: 0.6})
    counts[OTSU][0] = counts[YEN][0] = counts[LI][0] = 0  # not annotated
    counts = {candidate: np.concatenate([rows, rows[-1:]]) for candidate, rows in counts.items()}
    ranking = rank(counts, metric, resamples=200, seed=5)
    assert (ranking.metric, ranking.slices) == (metric, slices)

    def score(candidate, drawn):
        return getattr(scores(total(counts[candidate][1:][drawn])), metric)

    best = ranking.places[0].candidate
    assert [score(place.candidate, slice(None)) for place in ranking.places] == sorted(
        (score(candidate, slice(None)) for candidate in counts), reverse=True
    )
    for place in ranking.places:
        interval, behind = (
            bootstrap(
                (np.arange(slices),),
                statistic,
                n_resamples=200,
                confidence_level=confidence_level(slices),
                method="percentile",
                vectorized=False,
                rng=np.random.default_rng(5),
            ).confidence_interval
            for statistic in (
                partial(score, place.candidate),
                lambda drawn, other=place.candidate: score(best, drawn) - score(other, drawn),
            )
        )
        assert place.interval == place.intervals[metric] == pytest.approx(interval, abs=1e-12)
        assert place.behind_interval == pytest.approx(behind, abs=1e-12)
        assert place.behind == score(best, slice(None)) - score(place.candidate, slice(None))
        assert place.counts == total(counts[place.candidate])
        assert place.scores == scores(place.counts)
        assert place.told_apart is bool(behind.low > 0 or behind.high < 0)


def test_intervals_of_five_slices_are_nearly_those_of_all_3125_draws():
    counts = some_counts(5, {OTSU: 0.8})
    draws = np.stack(np.meshgrid(*[range(5)] * 5), axis=-1).reshape(-1, 5)
    found = [scores(total(counts[OTSU][draw])).mcc for draw in draws]
    place = rank(counts, resamples=50_000).places[0]
    tail = (1 - confidence_level(5)) / 2
    assert place.interval == pytest.approx(np.quantile(found, (tail, 1 - tail)), abs=0.1 * np.ptp(found))


def test_percentiles_of_many_slices_need_no_widening():
    levels = [confidence_level(slices) for slices in (5, 8, 20, 10_000)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == pytest.approx(0.9981, abs=1e-4)
    assert levels[-1] == pytest.approx(0.95, abs=1e-4)


def test_ranking_is_reproducible_and_pairs_the_slices():
    counts = some_counts(8, {OTSU: 0.8, YEN: 0.82, LI: 0.6})
    backwards = dict(reversed(counts.items()))
    assert rank(counts) == rank(counts, seed=0) == rank(backwards)
    assert rank(counts, seed=1) != rank(counts)
    twice = counts | {Candidate("otsu", "volume", "median"): counts[OTSU]}
    intervals = {place.candidate: place.interval for place in rank(twice).places}
    assert intervals[OTSU] == intervals[Candidate("otsu", "volume", "median")]


def test_clear_and_unclear_differences():
    counts = some_counts(8, {OTSU: 0.8, YEN: 0.8, LI: 0.4})
    counts[Candidate("copy", "tile", "median")] = counts[OTSU]
    ranking = rank(counts)
    found = {place.candidate.method: place for place in ranking.places}
    assert [found[method].told_apart for method in ("otsu", "yen", "copy", "li")] == [False, False, False, True]
    assert found["li"].behind_interval.low > 0.1
    best = ranking.places[0]
    assert (best.behind, best.behind_interval) == (0, (0, 0))


def test_equals_keep_their_order():
    rows = some_counts(4, {OTSU: 0.8})[OTSU]
    ranking = rank({YEN: rows, OTSU: rows, LI: rows})
    assert [place.candidate for place in ranking.places] == [YEN, OTSU, LI]
    assert held_out({YEN: rows, OTSU: rows, LI: rows}, folds=2).chosen == (YEN, YEN)


def test_both_scores_have_intervals_whichever_ranks():
    counts = some_counts(6, {OTSU: 0.8, YEN: 0.6})
    by_mcc, by_f1 = (rank(counts, metric, resamples=100) for metric in ("mcc", "f1"))
    for one, other in zip(by_mcc.places, by_f1.places, strict=True):
        assert one.intervals == other.intervals == {"mcc": one.interval, "f1": other.interval}


def test_equals_are_named_as_such():
    counts = some_counts(6, {LI: 0.6, OTSU: 0.8})
    counts |= {Candidate("otsu", scope, "median"): counts[OTSU] for scope in ("slice", "smooth")}
    counts[Candidate("mine", "recipe", "none")] = counts[OTSU]
    ranking = rank(counts, resamples=100)
    assert [ranking.number(place) for place in ranking.places] == [1, 1, 1, 1, 5]
    assert len(ranking.leaders) == 4
    said = {describe(ranking, place) for place in ranking.leaders}
    assert len(said) == 1
    assert said.pop().startswith(
        "otsu per tile after median, otsu per slice, smooth otsu and recipe mine after none are equally good, "
        "and best: MCC 0."
    )
    counts |= {Candidate("yen", scope, "median"): counts[OTSU] for scope in ("tile", "slice")}
    ranking = rank(counts, resamples=100)
    assert "otsu per slice, smooth otsu and 3 others are equally good" in describe(ranking, ranking.places[0])


@pytest.mark.parametrize("slices", [1, 2])
def test_one_or_two_slices_have_no_interval(slices):
    counts = some_counts(slices, {OTSU: 0.8, YEN: 0.6})
    counts = {candidate: np.concatenate([rows, 0 * rows]) for candidate, rows in counts.items()}
    ranking = rank(counts)
    assert [place.candidate for place in ranking.places] == [OTSU, YEN]
    for place in ranking.places:
        assert (place.interval, place.behind_interval, place.told_apart, place.intervals) == (None, None, None, {})
    assert describe(ranking, ranking.places[1]).endswith(
        f"; an interval takes 5 annotated slices, and there are {slices}"
    )


@settings(max_examples=40, deadline=None)
@given(truth=ROWS, data=st.data(), metric=st.sampled_from(["mcc", "f1"]))
def test_any_counts_are_ranked(truth, data, metric):
    # Slices without vessels or background, or without either, and masks that are empty or full.
    counts = {}
    for candidate in (OTSU, YEN):
        rows = []
        for vessel, background, *some in truth:
            tp, fp = (
                data.draw(st.sampled_from([0, most // 2, most])) if any(some) else most for most in (vessel, background)
            )
            rows.append([tp, fp, vessel - tp, background - fp])
        counts[candidate] = np.array(rows, np.int64)
    annotated = sum(vessel + background > 0 for vessel, background, *_ in truth)
    if not annotated:
        with pytest.raises(ConfigError, match="truth: got no annotated voxel"):
            rank(counts, metric)
        return
    ranking = rank(counts, metric, resamples=50)
    assert ranking.slices == annotated
    for place in ranking.places:
        assert place.behind >= 0
        if annotated >= LEAST_SLICES:
            assert np.isfinite([*place.interval, *place.behind_interval]).all()
        assert describe(ranking, place)


@pytest.mark.parametrize("metric", ["mcc", "f1"])
@pytest.mark.parametrize(("slices", "folds"), [(2, 2), (7, 3), (8, 8), (9, 4)])
def test_held_out_is_a_loop_over_folds(slices, folds, metric):
    counts = some_counts(slices, {OTSU: 0.8, YEN: 0.8, LI: 0.79}, seed=slices)
    bounds = [0]
    for fold in range(folds):
        bounds.append(bounds[-1] + slices // folds + (fold < slices % folds))
    chosen, held = [], Counts()
    for start, stop in pairwise(bounds):
        found = {}
        for candidate, rows in counts.items():
            others = [rows[index] for index in range(slices) if not start <= index < stop]
            found[candidate] = getattr(scores(total(np.stack(others))), metric)
        chosen.append(max(found, key=found.__getitem__))
        held += total(counts[chosen[-1]][start:stop])
    result = held_out(counts, folds, metric)
    assert (result.chosen, result.counts, result.scores) == (tuple(chosen), held, scores(held))


def test_held_out_slices_have_no_part_in_the_choice():
    # Each is perfect on its own slice and bad elsewhere: on the other slice it is always the wrong one.
    good, bad = [10, 0, 0, 90], [5, 5, 5, 85]
    counts = {OTSU: np.array([good, bad]), YEN: np.array([bad, good])}
    result = held_out(counts, folds=2)
    assert result.chosen == (YEN, OTSU)
    assert result.counts == Counts(10, 10, 10, 170)
    assert result.scores.mcc < rank(counts).places[0].scores.mcc


@pytest.mark.parametrize("folds", [0, 1, 4])
def test_held_out_refuses_folds(folds):
    counts = some_counts(4, {OTSU: 0.8})
    counts[OTSU][2] = 0
    with pytest.raises(ConfigError, match=f"folds: got {folds}, expected at least 2, and at most the 3 slices"):
        held_out(counts, folds)


@pytest.mark.parametrize("judge", [rank, held_out], ids=["rank", "held_out"])
def test_candidates_that_cannot_be_compared(judge):
    rows = some_counts(6, {OTSU: 0.8})[OTSU]
    with pytest.raises(ConfigError, match="candidates: got none"):
        judge({})
    with pytest.raises(ConfigError, match="truth: got no annotated voxel"):
        judge({OTSU: 0 * rows})
    failed = np.concatenate([rows[:-1], rows[-1:] // 2])
    for other in (failed, rows[:-1], rows[:, ::-1]):
        with pytest.raises(ShapeMismatchError, match=r"counts: yen per tile after median was judged on \d+ voxels"):
            judge({OTSU: rows, YEN: other})


def test_sentences():
    rows = np.array([[90, 4, 10, 900], [80, 6, 20, 900], [85, 2, 15, 900], [80, 4, 20, 900]] * 2)
    counts = {
        OTSU: rows,
        YEN: rows + np.array([[4, 0, -4, 0], [-6, 0, 6, 0]] * 4),
        Candidate("otsu", "volume", "median"): rows + np.array([0, 4, 0, -4]),
        Candidate("li", "slice", "gauss"): rows + np.array([-20, 0, 20, 0]),
    }
    ranking = rank(counts, "f1")
    assert [describe(ranking, place) for place in ranking.places] == [
        "otsu per tile after median is best: F1 0.892 [0.869, 0.916]",
        "otsu and yen cannot be told apart: F1 difference 0.006 [-0.016, 0.030]",
        "otsu per tile is better than otsu per volume: F1 difference 0.019 [0.018, 0.019]",
        "otsu per tile after median is better than li per slice after gauss: F1 difference 0.132 [0.127, 0.137]",
    ]
    ranking = rank(counts, "mcc")
    assert describe(ranking, ranking.places[1]).endswith("told apart: MCC difference 0.006 [-0.016, 0.030]")


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.0024, Interval(-0.0041, 0.0094), "0.002 [-0.004, 0.009]"),
        (0.5, Interval(0.25, 0.75), "0.500 [0.250, 0.750]"),
        (0.0003, Interval(0.00004, 0.0005), "0.00030 [0.00004, 0.00050]"),
        (0.1, Interval(0.0, 1e-12), "0.100000 [0.000000, 0.000000]"),
        (0.0, Interval(0.0, 0.0), "0.000 [0.000, 0.000]"),
        (0.0, None, "0.000"),
        (-1.0, None, "-1.000"),
    ],
    ids=str,
)
def test_numbers_in_sentences(value, interval, text):
    assert comparison._with_interval(value, interval) == text


@pytest.fixture(scope="module")
def real_table():
    if not TILE.is_dir():
        pytest.skip("the real tile is not part of the repository")
    image_module = pytest.importorskip("PIL.Image")
    image, label = (np.asarray(image_module.open(TILE / name)) for name in ("grayscale.png", "groundtruth.png"))
    filtered = ndimage.median_filter(255 - image, 3, mode="reflect")
    table = np.empty((3, 256), np.uint32)
    joint_histogram(filtered, np.where(label > 0, 255, 0).astype(np.uint8), table)
    return table


@pytest.mark.parametrize(
    ("level", "mcc"),
    [
        (79, 0.853391),
        (65, 0.877205),
        (55, 0.756320),
        (34.147, 0.062802),
        (36, 0.071248),
        (43.935, 0.152871),
        (6, 0.017017),
    ],
    ids=["otsu", "yen", "triangle", "li", "isodata", "mean", "minimum"],
)
def test_real_tile(real_table, level, mcc):
    counts = tile_counts(real_table, np.array(level, np.float64))
    assert scores(Counts(*counts.tolist())).mcc == pytest.approx(mcc, abs=5e-7)


def test_best_level_of_the_real_tile(real_table):
    best = ceiling(real_table)
    assert best.level == 68
    assert best.mcc == pytest.approx(0.880470, abs=5e-7)
    truth, grey = voxels_of(real_table)
    assert roc_auc(real_table) == pytest.approx(metrics.roc_auc_score(truth, grey), abs=1e-12)
    assert average_precision(real_table) == pytest.approx(metrics.average_precision_score(truth, grey), abs=1e-12)


def test_real_tile_is_ranked(real_table):
    levels = {OTSU: float(otsu_level(real_table.sum(axis=0))), YEN: 65.0}
    counts = {one: tile_counts(real_table[None], np.array([level])) for one, level in levels.items()}
    ranking = rank(counts)
    assert [(place.candidate, place.scores.mcc) for place in ranking.places][1] == (OTSU, 0.8533910225863214)
    assert describe(ranking, ranking.places[1]) == (
        "yen and otsu: MCC difference 0.024; an interval takes 5 annotated slices, and there are 1"
    )
