"""Scorecards against the same by definition: every table at the level of all that share one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.kernels.histogram import BACKGROUND, VESSEL
from pipeline.kernels.threshold import LEVEL_OF
from pipeline.methods.scorecard import Scorecard

SHAPE = (3, 2, 2)  # slices, rows, columns
METHODS = ("otsu", "mean", "triangle")
SCOPES = ("tile", "slice", "volume")
TABLES = arrays(np.uint32, (*SHAPE, 3, 6), elements=st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 2**20)))
FLAGS = arrays(np.bool_, SHAPE)


def level_of(method, table):
    """Level of a table of Python integers."""
    grey = np.array(table, object).sum(axis=0)
    return LEVEL_OF[method](grey.astype(np.int64)) if grey.any() else math.nan


def counts_at(table, level):
    """Counts of a table, (3, levels), at a level."""
    found = [0, 0, 0, 0]
    for row, kinds in ((VESSEL, (0, 2)), (BACKGROUND, (1, 3))):
        for grey, voxels in enumerate(table[row]):
            found[kinds[0] if grey > level else kinds[1]] += int(voxels)
    return found


def judged(tables, done, right, annotated, scopes=SCOPES):
    card = Scorecard(METHODS, scopes, np.zeros(tables.shape[-2:], np.int64))
    for z in range(len(tables)):
        card.add(tables[z].copy(), done[z], right[z], annotated[z])
    return card


@settings(max_examples=60, deadline=None)
@given(tables=TABLES, done=FLAGS, right=FLAGS, annotated=st.lists(st.booleans(), min_size=3, max_size=3))
def test_counts_are_by_definition(tables, done, right, annotated):
    right &= done
    card = judged(tables, done, right, annotated)
    found = card.counts()
    levels_from = np.where(done[..., None, None], tables.astype(object), 0)
    scored = np.where(right[..., None, None], tables.astype(object), 0)
    np.testing.assert_array_equal(card.pooled, levels_from.sum(axis=(0, 1, 2)).astype(np.int64))
    np.testing.assert_array_equal(card.scored_pooled, scored[annotated].sum(axis=(0, 1, 2)).astype(np.int64))
    assert list(found) == [(method, scope) for method in METHODS for scope in SCOPES]
    for (method, scope), rows in found.items():
        expected = []
        for z in np.flatnonzero(annotated):
            shared = {"slice": levels_from[z].sum(axis=(0, 1)), "volume": levels_from.sum(axis=(0, 1, 2))}
            row = [
                counts_at(scored[z, y, x], level_of(method, shared.get(scope, scored[z, y, x])))
                for y, x in np.ndindex(*SHAPE[1:])
            ]
            expected.append(np.sum(row, axis=0))
        np.testing.assert_array_equal(rows, np.array(expected, np.int64).reshape(-1, 4))


def test_sums_of_tables_do_not_overflow():
    tables = np.full((*SHAPE, 3, 4), 2**31, np.uint32)
    there = np.ones(SHAPE, bool)
    card = judged(tables, there, there, [True] * 3)
    assert (card.pooled == math.prod(SHAPE) * 2**31).all()
    assert all((rows.sum(axis=1) == 4 * 8 * 2**31).all() for rows in card.counts().values())


@pytest.mark.parametrize("scopes", [("slice",), ("tile", "volume")])
def test_only_what_is_asked_for_is_judged(scopes):
    tables = np.ones((*SHAPE, 3, 4), np.uint32)
    there = np.ones(SHAPE, bool)
    card = judged(tables, there, there, [True] * 3, scopes)
    assert [scope for _, scope in card.counts()] == [*scopes] * len(METHODS)
    assert bool(card.by_tile) is ("tile" in scopes)
