"""Components of a whole volume in bounded memory: those that are too small fall through, whatever the slabs are.

The volume is cut into columns, a shard wide and all slices deep, and each column into slabs of as many slices as the
memory holds spans of. What touches no other slab is judged on the spot. Of the rest, which is open, a survey keeps a
number, a size and the spans of the sides, joins what touches, and judges it by what it is together. To sift is to find
the same components of the same slabs again, and to drop those that were found too small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MemoryLimitError
from pipeline.geometry import Box, Grid
from pipeline.kernels.components import Components, Face, Flags, Sides, join_faces, merge, pile, tile
from pipeline.kernels.spans import Spans, complement, find_spans, paint, stack
from pipeline.machine import gb
from pipeline.runner import Runner
from pipeline.scratch import scratch

Place = tuple[int, int]
"""A column: its row and column in the grid of shards."""

# The most that a span of a slab in work needs, where each is a component of its own: spans as they are read, stacked
# and selected, of vessels and background; label, size, number and flags.
SPAN_BYTES = 44
# An open component: parent, size and flag of its column, and once more while those of all columns are put together.
OPEN_BYTES = 40
# A span of a side, and once more while it is joined.
FACE_BYTES = 40


@dataclass(frozen=True, slots=True)
class Sieve:
    """Which components stay.

    Attributes
    ----------
    least : int
        Voxels that they must have.
    connectivity : int
        6, 18 or 26 neighbours.
    background : bool
        Whether they are of the background; then those stay, too, that touch the border of the volume or a gap.
    """

    least: int
    connectivity: int
    background: bool = False

    def turn(self, spans: Spans) -> Spans:
        """From the vessels of a slab to what is sifted, and back."""
        return complement(spans) if self.background else spans


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sieve lets through.

    Attributes
    ----------
    stays : mapping
        For each column whether its open components stay, bool, slab after slab.
    found, voxels : int
        Components, and their voxels; neither those of the background that touch the border.
    dropped, dropped_voxels : int
        Those of them that do not stay.
    """

    sieve: Sieve
    stays: Mapping[Place, Flags]
    found: int
    voxels: int
    dropped: int
    dropped_voxels: int


class Sifter:
    """A mask that is sifted.

    Parameters
    ----------
    grid : Grid
        Of what is read and written at once: cells one slice thick.
    known : ndarray
        bool (z,): slices that there are. The others are gaps, across which nothing is connected.
    read : callable
        Returns a cell, (y, x) of uint8: 255 vessel, 0 background; valid until the next call of this thread.
    runner : callable
        Calls a function on every column, several at a time.
    capacity : int
        Spans of a slab, at least; a slab has more only where one slice has.
    kept_bytes : int, optional
        What may be kept of the open components.
    """

    def __init__(
        self,
        grid: Grid,
        known: Flags,
        read: Callable[[Box], NDArray[np.uint8]],
        runner: Runner,
        capacity: int,
        kept_bytes: int | None = None,
    ) -> None:
        self._grid, self._known, self._read, self._runner = grid, known, read, runner
        self._capacity, self._kept_bytes = capacity, kept_bytes
        _, rows, columns = grid.cells
        self._places = [(row, column) for row in range(rows) for column in range(columns)] if known.any() else []

    def survey(self, sieve: Sieve, passed: Sequence[Verdict] = (), what: str = "") -> Verdict:
        """Find what a sieve lets through of what other sieves have left.

        Raises
        ------
        MemoryLimitError
            If too many components are open.
        """
        allowance = _Allowance(self._kept_bytes)
        columns = self._runner(lambda place: self._survey(place, sieve, passed, allowance), self._places, what)
        bases = np.cumsum([0, *(len(column.parents) for column in columns)]).tolist()
        parents = _joined([column.parents + base for column, base in zip(columns, bases, strict=False)], np.int64)
        sizes = _joined([column.sizes for column in columns], np.int64)
        excused = _joined([column.excused for column in columns], np.bool_)
        for one, other in self._faces(columns, bases):
            join_faces(one, other, sieve.connectivity, parents)
        merge(parents, sizes, excused)
        stays = (sizes >= sieve.least) | excused
        roots = parents == np.arange(len(parents))
        tally = sum((column.tally for column in columns), _tally(sizes[roots], excused[roots], stays[roots]))
        spans = zip(self._places, bases[:-1], bases[1:], strict=True)
        return Verdict(sieve, {place: stays[start:stop] for place, start, stop in spans}, *map(int, tally))

    def write(self, passed: Sequence[Verdict], write: Callable[[Box, NDArray[np.uint8]], None], what: str = "") -> None:
        """Hand on all cells, (y, x) of uint8, as the sieves leave them; those of a column one after another."""

        def work(place: Place) -> None:
            for slab in self._sifted(place, passed):
                for step in range(slab.spans.shape[0]):
                    box = self._grid.box((slab.first + step, *place))
                    plane = scratch.array("plane", box.shape[1:], np.uint8)
                    paint(slab.spans, step, plane)
                    write(box, plane)

        self._runner(work, self._places, what)

    def _survey(self, place: Place, sieve: Sieve, passed: Sequence[Verdict], allowance: _Allowance) -> _Column:
        """Find the components of one column."""
        parents, above = np.zeros(0, np.int64), None
        firsts, sizes, excused, sides = [], [], [], []
        tally = np.zeros(4, np.int64)
        for slab in self._sifted(place, passed):
            judged = _Judged.of(sieve, slab)
            opened, components = judged.opened, judged.components
            numbers = len(parents) + np.cumsum(opened) - 1
            parents = _grown(parents, int(np.count_nonzero(opened)))
            if above is not None:
                join_faces(above, components.plane_z(0, numbers), sieve.connectivity, parents)
            above = components.plane_z(slab.spans.shape[0] - 1, numbers) if slab.inner[1] else None
            firsts.append(slab.first)
            sizes.append(judged.sizes[opened])
            excused.append(judged.excused[opened])
            sides.append(_side_faces(components, numbers, slab.inner))
            tally += _tally(judged.sizes[~opened], judged.excused[~opened], judged.stays[~opened])
            allowance.take(OPEN_BYTES * len(sizes[-1]))
            allowance.take(FACE_BYTES * sum(len(face.owners) for face in sides[-1] if face is not None))
        slices = len(self._known)
        faces = [_piled(of_side, firsts, slices) for of_side in zip(*sides, strict=True)]
        return _Column(parents, np.concatenate(sizes), np.concatenate(excused), faces, tally)

    def _faces(self, columns: Sequence[_Column], bases: Sequence[int]) -> Iterator[tuple[Face, Face]]:
        """Planes of the volume that face each other where columns meet."""
        _, rows, across = self._grid.cells
        numbers = np.arange(rows * across).reshape(rows, across)

        def plane(of_columns: Sequence[int], side: int) -> Face:
            faces = [face for number in of_columns if (face := columns[number].faces[side]) is not None]
            return tile(faces, [bases[number] for number in of_columns])

        if not columns:
            return
        for row in range(rows - 1):
            yield plane(numbers[row].tolist(), 1), plane(numbers[row + 1].tolist(), 0)
        for column in range(across - 1):
            yield plane(numbers[:, column].tolist(), 3), plane(numbers[:, column + 1].tolist(), 2)

    def _sifted(self, place: Place, passed: Sequence[Verdict]) -> Iterator[_Slab]:
        """Slabs of a column as the sieves leave them."""
        used = [0] * len(passed)
        for read in self._slabs(place):
            slab = read
            for number, verdict in enumerate(passed):
                judged = _Judged.of(verdict.sieve, slab)
                opened = int(np.count_nonzero(judged.opened))
                judged.stays[judged.opened] = verdict.stays[place][used[number] : used[number] + opened]
                used[number] += opened
                left = verdict.sieve.turn(judged.components.select(judged.stays))
                slab = replace(slab, spans=left)
            yield slab

    def _slabs(self, place: Place) -> Iterator[_Slab]:
        """Cut a column into slabs: the same each time, for it is read again as it was."""
        parts: list[Spans] = []
        spans = 0
        for z, known in enumerate(self._known.tolist()):
            found = find_spans(self._read(self._grid.box((z, *place)))) if known else None
            if parts and (found is None or spans + len(found.starts) > self._capacity):
                yield self._slab(place, z, parts)
                parts, spans = [], 0
            if found is not None:
                parts.append(found)
                spans += len(found.starts)
        if parts:
            yield self._slab(place, len(self._known), parts)

    def _slab(self, place: Place, stop: int, parts: Sequence[Spans]) -> _Slab:
        """A slab of the slices before one."""
        first = stop - len(parts)
        (row, column), (slices, rows, columns) = place, self._grid.cells
        known = self._known
        before, behind = first > 0 and bool(known[first - 1]), stop < slices and bool(known[stop])
        return _Slab(first, stack(parts), (before, behind, row > 0, row + 1 < rows, column > 0, column + 1 < columns))


@dataclass(frozen=True, slots=True)
class _Slab:
    """Some slices of a column.

    Attributes
    ----------
    first : int
        The first of them.
    spans : Spans
        Vessels.
    inner : tuple
        Sides at which the volume goes on.
    """

    first: int
    spans: Spans
    inner: Sides


@dataclass(frozen=True, slots=True)
class _Judged:
    """Components of a slab, and arrays (count,): which are open, which touch the border, which stay if not open."""

    components: Components
    sizes: NDArray[np.int64]
    opened: Flags
    excused: Flags
    stays: Flags

    @classmethod
    def of(cls, sieve: Sieve, slab: _Slab) -> _Judged:
        components = Components.of(sieve.turn(slab.spans), sieve.connectivity)
        sizes, opened = components.sizes(), components.touching(slab.inner)
        first, last, top, bottom, left, right = (sieve.background and not inner for inner in slab.inner)
        excused = components.touching((first, last, top, bottom, left, right))
        return cls(components, sizes, opened, excused, (sizes >= sieve.least) | excused)


@dataclass(frozen=True, slots=True)
class _Column:
    """What is kept of a column: its open components, its four sides in the plane, and what is known of the others."""

    parents: NDArray[np.int64]
    sizes: NDArray[np.int64]
    excused: Flags
    faces: Sequence[Face | None]
    tally: NDArray[np.int64]


class _Allowance:
    """What may be kept; shared by threads."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._taken, self._lock = limit, 0, Lock()

    def take(self, size: int) -> None:
        with self._lock:
            self._taken += size
            if self._limit is not None and self._taken > self._limit:
                raise MemoryLimitError(
                    f"memory: {gb(self._limit)} are left for components that lie in several slabs of the "
                    "volume, and they need more; allow more with --memory, or clean a mask with less noise"
                )


def _grown(parents: NDArray[np.int64], more: int) -> NDArray[np.int64]:
    """Parents of so many components more, each of which is its own."""
    return np.concatenate([parents, np.arange(len(parents), len(parents) + more)])


def _side_faces(components: Components, numbers: NDArray[np.int64], inner: Sides) -> tuple[Face | None, ...]:
    """Sides in the plane at which the volume goes on: along y the first and the last, along x."""
    height = components.spans.shape[1]
    return (
        components.plane_y(0, numbers) if inner[2] else None,
        components.plane_y(height - 1, numbers) if inner[3] else None,
        components.plane_x(last=False, numbers=numbers) if inner[4] else None,
        components.plane_x(last=True, numbers=numbers) if inner[5] else None,
    )


def _piled(faces: Sequence[Face | None], firsts: Sequence[int], slices: int) -> Face | None:
    there = [face for face in faces if face is not None]  # all of them, or none
    return pile(there, firsts, slices) if there else None


def _tally(sizes: NDArray[np.int64], excused: Flags, stays: Flags) -> NDArray[np.int64]:
    """Number and voxels of components, and of those that do not stay; those at the border are none."""
    return np.array(
        [np.count_nonzero(~excused), sizes[~excused].sum(), np.count_nonzero(~stays), sizes[~stays].sum()], np.int64
    )


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
