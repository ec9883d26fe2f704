"""Components of slabs, given as spans: those of SciPy, whatever the slab is put together from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.errors import ConfigError
from pipeline.kernels.components import Components, Face, join_faces, merge, pile, tile
from pipeline.kernels.spans import Spans, find_spans
from tests.test_spans import masks, painted, quick, spans_of

RANKS = {6: 1, 18: 2, 26: 3}
NEIGHBOURS = st.sampled_from([6, 18, 26])

# A voxel, and one a step away along one, two and three axes.
STEPS = [((0, 0, 1), {6, 18, 26}), ((0, 1, 1), {18, 26}), ((1, 1, 0), {18, 26}), ((1, 1, 1), {26}), ((1, -1, 1), {26})]


def volume_labels(components: Components) -> NDArray[np.int64]:
    """Labels of all voxels, -1 in the background."""
    spans, out = components.spans, np.full(components.spans.shape, -1)
    lines = out.reshape(-1, spans.shape[2])
    for row, line in enumerate(lines):
        for index in range(spans.rows[row], spans.rows[row + 1]):
            line[spans.starts[index] : spans.stops[index]] = components.labels[index]
    return out


def scipy_labels(mask: NDArray[np.bool_], connectivity: int) -> NDArray[np.int64]:
    """Labels of SciPy, numbered in the order of first voxels, -1 in the background."""
    found, _ = ndimage.label(mask, ndimage.generate_binary_structure(3, RANKS[connectivity]))
    _, first, which = np.unique(found, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(np.where(found.reshape(-1)[first] == 0, -1, first)))
    labels = order[which.reshape(mask.shape)] - (0 if mask.all() else 1)
    return np.where(mask, labels, -1)


# ---- components


@pytest.mark.parametrize(("step", "connected"), STEPS, ids=str)
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_neighbours(step: tuple[int, int, int], connected: set[int], connectivity: int) -> None:
    mask = np.zeros((3, 3, 3), np.bool_)
    mask[1, 1, 1] = mask[tuple(np.add(1, step))] = True
    assert Components.of(spans_of(mask), connectivity).count == (1 if connectivity in connected else 2)


@quick
@given(mask=masks(8), connectivity=NEIGHBOURS)
def test_labels_are_those_of_scipy(mask: NDArray[np.bool_], connectivity: int) -> None:
    components = Components.of(spans_of(mask), connectivity)
    found, expected = volume_labels(components), scipy_labels(mask, connectivity)
    np.testing.assert_array_equal(found, expected)
    assert components.count == expected.max() + 1
    np.testing.assert_array_equal(components.sizes(), np.bincount(expected[mask], minlength=components.count))


def test_a_spiral_is_one() -> None:
    """Rows that are joined late: the first span of the last arm meets the first arm's after all."""
    mask = np.zeros((1, 9, 9), np.bool_)
    mask[0, 0], mask[0, :, 8], mask[0, 8], mask[0, 2:, 0], mask[0, 2, :7], mask[0, 2:7, 6], mask[0, 6, 2:7] = [True] * 7
    assert Components.of(spans_of(mask), 6).count == ndimage.label(mask)[1] == 1


def test_no_voxel_at_all() -> None:
    components = Components.of(spans_of(np.zeros((2, 3, 4), np.bool_)), 26)
    assert (components.count, components.sizes().size, components.touching((True,) * 6).size) == (0, 0, 0)


def test_sizes_of_more_voxels_than_four_bytes_count() -> None:
    rows = 70_000  # of 65,535 voxels each
    spans = Spans(np.arange(rows + 1), np.zeros(rows, np.uint16), np.full(rows, 2**16 - 1, np.uint16), (1, rows, 65535))
    assert Components.of(spans, 6).sizes().tolist() == [rows * 65535]


def test_an_unknown_neighbourhood() -> None:
    with pytest.raises(ConfigError, match="connectivity: got 8, expected 6, 18 or 26"):
        Components.of(spans_of(np.ones((1, 1, 1), np.bool_)), 8)


@quick
@given(mask=masks(), sides=st.tuples(*[st.booleans()] * 6), connectivity=NEIGHBOURS)
def test_touching(mask: NDArray[np.bool_], sides: Any, connectivity: int) -> None:
    components = Components.of(spans_of(mask), connectivity)
    labels, expected = volume_labels(components), set()
    for side, asked in enumerate(sides):
        if asked:
            expected |= set(np.take(labels, -(side % 2), axis=side // 2).reshape(-1).tolist()) - {-1}
    assert set(np.flatnonzero(components.touching(sides)).tolist()) == expected


@quick
@given(mask=masks(), connectivity=NEIGHBOURS, seed=st.integers(0, 2**32))
def test_select(mask: NDArray[np.bool_], connectivity: int, seed: int) -> None:
    components = Components.of(spans_of(mask), connectivity)
    chosen = np.random.default_rng(seed).random(components.count) < 0.5
    labels = volume_labels(components)
    expected = mask & np.append(chosen, False)[labels]
    np.testing.assert_array_equal(painted(components.select(chosen)), expected)


# ---- faces


def voxels(face: Face) -> NDArray[np.int64]:
    """Owners of the voxels of a face, -1 in the background."""
    out, spans = np.full(face.spans.shape[1:], -1), face.spans
    for row, line in enumerate(out):
        for index in range(spans.rows[row], spans.rows[row + 1]):
            line[spans.starts[index] : spans.stops[index]] = face.owners[index]
    return out


@quick
@given(mask=masks(), connectivity=NEIGHBOURS)
def test_planes(mask: NDArray[np.bool_], connectivity: int) -> None:
    components = Components.of(spans_of(mask), connectivity)
    numbers = 10 * np.arange(components.count)
    labels = volume_labels(components)
    owners = np.where(labels < 0, -1, 10 * labels)
    for z in range(mask.shape[0]):
        np.testing.assert_array_equal(voxels(components.plane_z(z, numbers)), owners[z])
    for y in range(mask.shape[1]):
        np.testing.assert_array_equal(voxels(components.plane_y(y, numbers)), owners[:, y])
    for last in (False, True):
        np.testing.assert_array_equal(voxels(components.plane_x(last, numbers)), owners[:, :, -last])


def face_of(owners: NDArray[np.int64]) -> Face:
    """Face of a plane of owners, -1 in the background; neighbours are of one."""
    spans = find_spans(owners >= 0)
    lines = np.repeat(np.arange(len(owners)), np.diff(spans.rows))
    return Face(spans, owners[lines, spans.starts])


def rows_of_owners(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return scipy_labels(mask[None], 6)[0]


@quick
@given(mask=masks(), gap=st.integers(0, 3))
def test_faces_are_piled_with_gaps(mask: NDArray[np.bool_], gap: int) -> None:
    owners = [rows_of_owners(plane) for plane in mask]
    height, width = mask.shape[1:]
    firsts = [index * (height + gap) for index in range(len(mask))]
    length = firsts[-1] + height + gap
    expected = np.full((length, width), -1)
    for plane, first in zip(owners, firsts, strict=True):
        expected[first : first + height] = plane
    np.testing.assert_array_equal(voxels(pile([face_of(plane) for plane in owners], firsts, length)), expected)


@quick
@given(mask=masks(), bases=st.lists(st.integers(0, 100), min_size=5, max_size=5))
def test_faces_are_tiled(mask: NDArray[np.bool_], bases: Sequence[int]) -> None:
    owners = [rows_of_owners(plane) for plane in mask]
    expected = np.concatenate(
        [np.where(each < 0, -1, each + base) for each, base in zip(owners, bases, strict=False)], axis=1
    )
    found = tile([face_of(each) for each in owners], bases[: len(owners)])
    np.testing.assert_array_equal(voxels(found), expected)
    assert found.spans.shape == (1, *expected.shape)


@quick
@given(
    planes=arrays.arrays(np.bool_, (2, 5, 7)),
    connectivity=NEIGHBOURS,
    count=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_joined_faces_are_a_graph(planes: NDArray[np.bool_], connectivity: int, count: int, seed: int) -> None:
    """Components that touch, and what they have together: as SciPy's graph of the touching pairs has it."""
    rng = np.random.default_rng(seed)
    pieces = [rows_of_owners(plane) for plane in planes]
    names = rng.integers(count, size=64)  # several pieces may be of one component
    one, other = (np.where(piece < 0, -1, names[piece + offset]) for piece, offset in zip(pieces, (0, 32), strict=True))
    parents = np.arange(count)
    join_faces(face_of(one), face_of(other), connectivity, parents)
    structure = ndimage.generate_binary_structure(3, RANKS[connectivity])
    pairs = [
        (one[y, x], other[y + dy, x + dx])
        for y, x in np.argwhere(one >= 0).tolist()
        for dy, dx in (np.argwhere(structure[2]) - 1).tolist()
        if 0 <= y + dy < 5 and 0 <= x + dx < 7 and other[y + dy, x + dx] >= 0
    ]
    # within a plane, pieces that touch at a corner are of one component only if they were before: here they may not be
    for plane in (one, other):
        pairs += [
            (plane[y, x], plane[y + dy, x + dx])
            for y, x in np.argwhere(plane >= 0).tolist()
            for dy, dx in (np.argwhere(structure[1]) - 1).tolist()
            if 0 <= y + dy < 5 and 0 <= x + dx < 7 and plane[y + dy, x + dx] >= 0
        ]
    edges = np.array(pairs, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (count, count))
    _, together = connected_components(graph, directed=False)
    sizes, flags = rng.integers(1, 2**40, count), rng.random(count) < 0.3
    expected_sizes = [int(sizes[together == each].sum()) for each in together]
    expected_flags = [bool(flags[together == each].any()) for each in together]
    merge(parents, sizes, flags)
    assert parents.tolist() == [int(np.argmax(together == each)) for each in together]
    assert (sizes.tolist(), flags.tolist()) == (expected_sizes, expected_flags)


def test_long_chains_are_merged() -> None:
    count = 1000
    parents = np.maximum(np.arange(count) - 1, 0)
    sizes, flags = np.ones(count, np.int64), np.arange(count) == count - 1
    merge(parents, sizes, flags)
    assert not parents.any()
    assert set(sizes.tolist()) == {count}
    assert flags.all()
