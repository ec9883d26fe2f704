"""Sieves: what they leave is what SciPy leaves of the whole volume, whatever the slabs, shards and gaps are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from dask import array as da
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import DamageError, MemoryLimitError
from pipeline.geometry import Box, Grid
from pipeline.objects.sieve import Sieve, Sifter, Verdict

RANKS = {6: 1, 18: 2, 26: 3}
NEIGHBOURS = st.sampled_from([6, 18, 26])
Mask = NDArray[np.bool_]
Tally = tuple[int, int, int, int]


def in_order(function: Callable[[Any], Any], items: Sequence[Any], what: str = "") -> list[Any]:
    return [function(item) for item in items]


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], what: str = "") -> list[Any]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(function, items))


def sift(
    mask: Mask,
    sieves: Sequence[Sieve],
    cell: tuple[int, int],
    capacity: int,
    known: NDArray[np.bool_] | None = None,
    runner: Any = in_order,
) -> tuple[Mask, list[Tally]]:
    """What is left of a mask, and what each verdict says."""
    values = np.where(mask, 255, 0).astype(np.uint8)
    there = np.ones(len(mask), np.bool_) if known is None else known
    sifter = Sifter(Grid(mask.shape, (1, *cell)), there, lambda box: values[box.slices][0], runner, capacity)
    verdicts: list[Verdict] = []
    for sieve in sieves:
        verdicts.append(sifter.survey(sieve, verdicts))
    out = np.full(mask.shape, 7, np.uint8)

    def write(box: Box, plane: NDArray[np.uint8]) -> None:
        assert (out[box.slices] == 7).all()  # each once
        out[box.slices] = plane

    sifter.write(verdicts, write)
    assert ((out == 7) == ~there[:, None, None]).all()
    tallies = [(each.found, each.voxels, each.dropped, each.dropped_voxels) for each in verdicts]
    return out == 255, tallies


def oracle(mask: Mask, sieves: Sequence[Sieve], known: NDArray[np.bool_]) -> tuple[Mask, list[Tally]]:
    """The same by SciPy, for each stretch of slices between two gaps."""
    left, tallies = mask & known[:, None, None], []
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known, [0]])))
    for sieve in sieves:
        tally = np.zeros(4, np.int64)
        for first, stop in edges.reshape(-1, 2):
            part = left[first:stop]
            structure = ndimage.generate_binary_structure(3, RANKS[sieve.connectivity])
            labels, count = ndimage.label(~part if sieve.background else part, structure)
            sizes = np.bincount(labels.reshape(-1), minlength=count + 1)
            rim = np.zeros(count + 1, np.bool_)
            for axis in range(3) if sieve.background else ():
                rim[np.take(labels, [0, -1], axis=axis)] = True
            rim[0] = True  # what is not sifted
            drops = (sizes < sieve.least) & ~rim
            tally += [(~rim).sum(), sizes[~rim].sum(), drops.sum(), sizes[drops].sum()]
            part[drops[labels]] = sieve.background
        tallies.append(tuple(tally.tolist()))
    return left, tallies


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 12), st.integers(1, 14)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random(shape) < draw(st.sampled_from([0.05, 0.2, 0.4, 0.6, 0.8, 0.95]))
    known = rng.random(shape[0]) < draw(st.sampled_from([0.6, 1.0]))
    sieves = [
        Sieve(draw(st.integers(1, 30)), draw(NEIGHBOURS), background)
        for background in draw(st.sampled_from([(False,), (True,), (False, True), (True, False)]))
    ]
    cell = draw(st.integers(1, shape[1] + 1)), draw(st.integers(1, shape[2] + 1))
    return {"mask": mask, "sieves": sieves, "cell": cell, "capacity": draw(st.integers(0, 150)), "known": known}


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_equals_scipy_on_the_whole_volume(case: dict[str, Any]) -> None:
    found, tallies = sift(**case)
    expected, expected_tallies = oracle(case["mask"], case["sieves"], case["known"])
    np.testing.assert_array_equal(found, expected & case["known"][:, None, None])
    assert tallies == expected_tallies


@pytest.mark.parametrize("capacity", [0, 300, 10**9], ids=["slice by slice", "some slices", "whole columns"])
@pytest.mark.parametrize("cell", [(7, 5), (16, 64), (48, 64)], ids=str)
def test_threads_and_slabs_leave_the_same(cell: tuple[int, int], capacity: int) -> None:
    rng = np.random.default_rng(3)
    vessels = ndimage.gaussian_filter(rng.standard_normal((20, 48, 64)), 1.2) > 0.02
    mask = (vessels & (rng.random(vessels.shape) > 0.02)) | (rng.random(vessels.shape) < 0.02)
    sieves, known = [Sieve(41, 26), Sieve(21, 6, background=True)], np.arange(20) != 13
    found, tallies = sift(mask, sieves, cell, capacity, known, in_threads)
    expected, expected_tallies = oracle(mask, sieves, known)
    np.testing.assert_array_equal(found, expected)
    assert tallies == expected_tallies
    assert all(dropped > 5 for _, _, dropped, _ in tallies)


def test_as_many_objects_as_dask_image_finds() -> None:
    ndmeasure = pytest.importorskip("dask_image.ndmeasure")
    mask = np.random.default_rng(4).random((8, 24, 24)) < 0.12
    labels, count = ndmeasure.label(da.from_array(mask, chunks=(3, 10, 24)), np.ones((3, 3, 3)))
    (found, voxels, dropped, _), *_ = sift(mask, [Sieve(4, 26)], (10, 24), 30)[1]
    sizes = np.bincount(np.asarray(labels).reshape(-1))[1:]
    assert (found, voxels, dropped) == (int(count), mask.sum(), (sizes < 4).sum())


# ---- what the words mean


def rod(length: int) -> Mask:
    """A rod through the corner at which eight slabs meet, step by step along a diagonal."""
    mask = np.zeros((8, 8, 8), np.bool_)
    for step in range(length):
        mask[step, step, step] = True
    return mask


@pytest.mark.parametrize(("least", "left"), [(6, 6), (7, 0)])
def test_objects_below_the_least_size_go(least: int, left: int) -> None:
    found, tallies = sift(rod(6), [Sieve(least, 26)], (4, 4), 4)
    assert (found.sum(), tallies) == (left, [(1, 6, int(left == 0), 6 - left)])


@pytest.mark.parametrize("cell", [(8, 8), (4, 4), (1, 1)], ids=str)
def test_corners_connect_only_where_neighbours_are_26(cell: tuple[int, int]) -> None:
    assert [sift(rod(6), [Sieve(1, neighbours)], cell, 1)[1][0][0] for neighbours in (6, 18, 26)] == [6, 6, 1]


def test_nothing_connects_across_a_gap() -> None:
    mask = np.zeros((5, 4, 4), np.bool_)
    mask[:, 1, 1] = True
    known = np.array([True, True, False, True, True])
    assert sift(mask, [Sieve(5, 26)], (4, 4), 100)[0].sum() == 5
    assert sift(mask, [Sieve(5, 26)], (4, 4), 100, known)[0].sum() == 0
    assert sift(mask, [Sieve(2, 26)], (4, 4), 100, known)[1] == [(2, 4, 0, 0)]


def shell(z: int, side: int = 3) -> Mask:
    """A block with one hole, of which the first slice is ``z``."""
    mask = np.zeros((7, 6, 6), np.bool_)
    mask[z : z + side, 1:4, 1:4] = True
    mask[z + 1, 2, 2] = False
    return mask


def test_a_hole_is_what_nothing_leads_out_of() -> None:
    fill = [Sieve(2, 6, background=True)]
    assert sift(shell(2), fill, (2, 2), 1)[1] == [(1, 1, 1, 1)]
    opened = shell(2)
    opened[3, 2, 1] = False
    assert sift(opened, fill, (2, 2), 1)[1] == [(0, 0, 0, 0)]


@pytest.mark.parametrize("gap", [2, 4], ids=["before", "behind"])
def test_a_hole_beside_a_gap_may_go_on_in_it(gap: int) -> None:
    known = np.arange(7) != gap
    assert sift(shell(2), [Sieve(2, 6, background=True)], (6, 6), 100, known)[1] == [(0, 0, 0, 0)]


def test_an_object_in_a_hole_goes_before_the_hole_is_measured() -> None:
    mask = np.zeros((7, 9, 9), np.bool_)
    mask[1:6, 1:6, 1:6], mask[2:5, 2:5, 2:5], mask[3, 3, 3] = True, False, True
    sieves = [Sieve(2, 26), Sieve(28, 6, background=True)]
    found, tallies = sift(mask, sieves, (4, 4), 20)
    assert tallies == [(2, 125 - 26, 1, 1), (1, 27, 1, 27)]
    assert found.sum() == 125


def test_a_volume_without_slices_is_left_alone() -> None:
    found, tallies = sift(np.ones((3, 4, 5), np.bool_), [Sieve(9, 6)], (2, 2), 9, np.zeros(3, np.bool_))
    assert (found.any(), tallies) == (False, [(0, 0, 0, 0)])


# ---- what goes wrong


def test_what_cannot_be_read_ends_it() -> None:
    def read(box: Box) -> NDArray[np.uint8]:
        raise DamageError(str(box))

    with pytest.raises(DamageError, match="z=0:1,y=0:2,x=0:2"):
        Sifter(Grid((1, 2, 2), (1, 2, 2)), np.ones(1, np.bool_), read, in_order, 9).survey(Sieve(1, 6))


def test_too_much_that_lies_in_several_slabs_is_refused() -> None:
    noise = np.where(np.random.default_rng(5).random((6, 40, 40)) < 0.1, 255, 0).astype(np.uint8)
    grid, known = Grid(noise.shape, (1, 8, 8)), np.ones(6, np.bool_)
    enough = Sifter(grid, known, lambda box: noise[box.slices][0], in_order, 50, 10**6)
    little = Sifter(grid, known, lambda box: noise[box.slices][0], in_order, 50, 10**4)
    assert enough.survey(Sieve(3, 26)).found > 0
    with pytest.raises(MemoryLimitError, match="and they need more; allow more with --memory"):
        little.survey(Sieve(3, 26))
