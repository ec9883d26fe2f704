"""Grids of tiles, shards and blocks: they partition the volume, and nest or are refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.geometry import Box, Grid, ceil_div, check_nesting

WHOLE = (4, 8026, 17480)


def triples(low, high):
    return st.tuples(*[st.integers(low, high)] * 3)


@st.composite
def grids(draw):
    return Grid(draw(triples(1, 14)), draw(triples(1, 16)))


@st.composite
def boxes(draw, low=-4, high=18):
    start = draw(triples(low, high))
    return Box(start, tuple(edge + draw(st.integers(-2, 8)) for edge in start))


def paint(shape, box):
    """Mask of a box in an array, by comparing every coordinate."""
    axes = np.ogrid[tuple(slice(length) for length in shape)]
    inside = np.ones(shape, bool)
    for axis, start, stop in zip(axes, box.start, box.stop, strict=True):
        inside = inside & (axis >= start) & (axis < stop)
    return inside


@settings(deadline=None, max_examples=60)
@given(grid=grids())
def test_tiles_partition_the_volume(grid):
    painted = np.zeros(grid.shape, int)
    cells = list(Box.whole(grid.cells))
    for cell in cells:
        box = grid.box(cell)
        assert box.size > 0
        painted[box.slices] += 1
    assert (painted == 1).all()
    assert sum(grid.box(cell).size for cell in cells) == Box.whole(grid.shape).size


@settings(deadline=None, max_examples=80)
@given(grid=grids(), box=boxes())
def test_cover_is_every_cell_that_the_box_touches(grid, box):
    touched = {cell for cell in Box.whole(grid.cells) if (grid.box(cell) & box).size}
    assert set(grid.cover(box)) == touched


@settings(deadline=None, max_examples=80)
@given(grid=grids(), box=boxes())
def test_round_out_is_the_smallest_box_of_whole_cells(grid, box):
    rounded = grid.round_out(box)
    expected = np.zeros(grid.shape, bool)
    for cell in grid.cover(box):
        expected[grid.box(cell).slices] = True
    np.testing.assert_array_equal(paint(grid.shape, rounded), expected)
    assert (expected | ~paint(grid.shape, box)).all()
    assert grid.round_out(rounded) == rounded


@settings(deadline=None, max_examples=100)
@given(shape=triples(1, 12), outer=triples(1, 14), inner=triples(1, 14))
def test_owns_means_that_no_cell_is_cut(shape, outer, inner):
    large, small = Grid(shape, outer), Grid(shape, inner)
    if large.owns(small):
        assert all(large.cover(small.box(cell)).size == 1 for cell in Box.whole(small.cells))


@settings(deadline=None, max_examples=60)
@given(first=boxes(0, 6), second=boxes(0, 6))
def test_intersection_holds_what_is_in_both(first, second):
    shape = (14, 14, 14)
    np.testing.assert_array_equal(paint(shape, first & second), paint(shape, first) & paint(shape, second))
    assert (first & second).size == (paint(shape, first) & paint(shape, second)).sum()


@settings(deadline=None, max_examples=30)
@given(box=boxes(), origin=triples(-5, 5), halo=triples(0, 4))
def test_a_box_moves_and_grows(box, origin, halo):
    moved = box.relative_to(origin)
    assert moved.shape == box.shape
    assert moved.relative_to(tuple(-edge for edge in origin)) == box
    grown = box.grow(halo)
    assert grown.grow(tuple(-margin for margin in halo)) == box
    if box.size:
        assert grown.shape == tuple(length + 2 * margin for length, margin in zip(box.shape, halo, strict=True))


def test_a_box_in_numbers():
    box = Box((1, 2, 3), (2, 4, 7))
    assert box.shape == (1, 2, 4)
    assert box.size == 8
    assert box.slices == (slice(1, 2), slice(2, 4), slice(3, 7))
    assert list(box) == list(product([1], [2, 3], [3, 4, 5, 6]))
    assert str(box) == "z=1:2,y=2:4,x=3:7"


@pytest.mark.parametrize(("length", "step", "count"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8026, 512, 16)])
def test_ceil_div(length, step, count):
    assert ceil_div(length, step) == count


def test_the_kesm_volume_has_447440_tiles():
    tiles = Grid((799, 8026, 17480), (1, 512, 512))
    assert tiles.cells == (799, 16, 35)
    assert Box.whole(tiles.cells).size == 447_440
    assert tiles.box((798, 15, 34)) == Box((798, 7680, 17408), (799, 8026, 17480))


@pytest.mark.parametrize(
    ("shape", "tile", "block"),
    [
        (WHOLE, 512, (1, 8026, 17480)),
        (WHOLE, 2048, (1, 2048, 2048)),
        (WHOLE, 256, (1, 4096, 17480)),
        ((1, 512, 512), 512, (1, 512, 512)),
        ((1, 300, 700), 256, (1, 300, 700)),
    ],
    ids=["slices", "shards", "rows", "one-tile", "one-shard"],
)
def test_nesting_is_proved(shape, tile, block):
    check_nesting(Grid(shape, (1, tile, tile)), Grid(shape, (1, 2048, 2048)), Grid(shape, block))


@pytest.mark.parametrize(
    ("shape", "tile", "block", "message"),
    [
        (WHOLE, 500, WHOLE, r"tile: got 500, which does not divide the shard of 2048 voxels; .*such as 256, 512"),
        ((1, 300, 700), 300, (1, 300, 700), "tile: got 300, which does not divide the shard"),
        (WHOLE, 512, (1, 3000, 17480), r"block: \(1, 3000, 17480\) voxels would cut shards of \(1, 2048, 2048\)"),
        (WHOLE, 512, (1, 8026, 512), r"block: \(1, 8026, 512\) voxels would cut shards"),
    ],
    ids=["tile", "tile-of-one-shard", "block-rows", "block-columns"],
)
def test_what_does_not_nest_is_refused(shape, tile, block, message):
    with pytest.raises(ConfigError, match=message):
        check_nesting(Grid(shape, (1, tile, tile)), Grid(shape, (1, 2048, 2048)), Grid(shape, block))


def test_grids_of_different_volumes_never_nest():
    assert not Grid((1, 8, 8), (1, 8, 8)).owns(Grid((1, 8, 9), (1, 8, 8)))
