"""Images and labels with their levels: each half the size of the one before, in the plane only.

An image keeps its mean; a label keeps its vessels, because a capillary one voxel wide must not vanish when a person
zooms out. (What a confusion keeps, `storage.confusion_label` says.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError, ShapeMismatchError
from pipeline.geometry import Box, Triple, ceil_div
from pipeline.kernels.compiled import kernel
from pipeline.scratch import scratch
from pipeline.storage.store import ALL_FILL, FROM_A_COPY, SHARD, ShardedArray

Plane = NDArray[Any]
Reduce = Callable[[Plane, Plane], None]

TOP_SIDE = 512  # the last level fits into one tile


class Pyramid:
    """An image or label with its levels, written slice by slice."""

    def __init__(self, path: Path, levels: int, reduce: Reduce, way_out: str = FROM_A_COPY) -> None:
        self.path, self.way_out = path, way_out
        self.reduction = reduce
        self._count = levels

    @classmethod
    def create(cls, path: Path, shape: Triple, dtype: str, fill: int, reduce: Reduce) -> Pyramid:
        """Create all levels, empty."""
        shapes = level_shapes(shape[1:])
        for level, (height, width) in enumerate(shapes):
            ShardedArray.create(path / str(level), (shape[0], height, width), dtype, fill)
        return cls(path, len(shapes), reduce)

    @cached_property
    def levels(self) -> list[ShardedArray]:
        """Arrays of all levels, finest first."""
        return [self.full, *(self._open(level) for level in range(1, self._count))]

    @cached_property
    def full(self) -> ShardedArray:
        """Array of level 0."""
        return self._open(0)

    def _open(self, level: int) -> ShardedArray:
        array = ShardedArray(self.path / str(level), self.way_out)
        if array.shards.step != SHARD:  # records have one digest for each of these
            raise DamageError(f"{array.path}: has shards of {array.shards.step}, not {SHARD}; restore it from a copy")
        return array

    def start_levels(self, buffer: str) -> Levels:
        """Return what makes levels 1, 2, ... of a slice, in the `scratch` buffer of this name."""
        return Levels(self, buffer)

    def writer(self, box: Box, staging: Path, with_levels: bool) -> SliceWriter:
        """Return what writes a box of one slice; with its levels, if that is all of it."""
        return SliceWriter(self, box, staging, with_levels)

    def write_slice(self, z: int, plane: NDArray[Any], staging: Path) -> NDArray[np.uint64]:
        """Write one whole slice, (y, x), and its levels; return the digests of its shards, (y, x) of the shard grid."""
        box = Box.of_slice(z, plane.shape)
        writer = self.writer(box, staging, with_levels=True)
        for shard in self.full.shards.parts(box):
            for part in self.full.chunks.parts(shard):
                writer.write(part, plane[part.slices[1:]][None])
        digests: NDArray[np.uint64] = writer.finish()[0]
        return digests

    def rebuild_levels(self, z: int, digests: NDArray[np.uint64], staging: Path) -> None:
        """Write levels 1, 2, ... of a slice from its stored level 0, which is read shard by shard.

        Parameters
        ----------
        z : int
        digests : ndarray
            uint64 (y, x) of the shard grid: what was recorded of level 0.
        staging : Path
            See `ShardedArray.publish`.

        Raises
        ------
        DamageError
            If a shard is not what was recorded.
        """
        box = Box.of_slice(z, self.full.shape)
        writer = self.writer(box, staging, with_levels=True)
        for part in self.full.shards.parts(box):
            writer.reduce(part, self.full.read_checked(part, digests))
        writer.write_levels()

    def erase(self, box: Box) -> None:
        """Make a box of level 0 all fill, and the slice's levels too, where the box is whole slices."""
        self.full.erase(box)
        if box.shape[1:] == self.full.shape[1:]:
            for array in self.levels[1:]:
                array.erase(Box((box.start[0], 0, 0), (box.stop[0], *array.shape[1:])))

    def resize(self, slices: int) -> None:
        """Change the number of slices of every level: level 0, whose shape is the volume's, last."""
        for array in reversed(self.levels):
            array.resize(slices)


class Levels:
    """Levels 1, 2, ... of one slice, made of its chunks as they come."""

    def __init__(self, pyramid: Pyramid, buffer: str) -> None:
        self._reduce = pyramid.reduction
        self._first = [scratch.array(buffer, array.shape[1:], array.dtype) for array in pyramid.levels[1:2]]

    def take(self, part: Box, values: NDArray[Any]) -> None:
        """Take whole chunks, (1, y, x), in any order; of those that come twice, the last ones count."""
        (_, top, left), (_, bottom, right) = part.start, part.stop
        for first in self._first:
            self._reduce(values[0], first[top // 2 : (bottom + 1) // 2, left // 2 : (right + 1) // 2])

    def planes(self) -> Iterator[Plane]:
        """Levels 1, 2, ..., (y, x), once all of the slice is in, each valid until the next one."""
        for first in self._first:
            yield from itertools.chain([first], reduced_levels(first, self._reduce))


class SliceWriter:
    """Writes a box of one slice of a pyramid, chunk by chunk while each is in cache; then the slice's levels."""

    def __init__(self, pyramid: Pyramid, box: Box, staging: Path, with_levels: bool) -> None:
        self._pyramid, self._z, self._staging = pyramid, box.start[0], staging
        self._cells = pyramid.full.shards.cover(box)
        self._digests = np.zeros(self._cells.shape, np.uint64)
        self._encoder = pyramid.full.encoder()
        self._levels = pyramid.start_levels("level 1") if with_levels else None

    def write(self, part: Box, values: NDArray[Any]) -> None:
        """Write chunks of one shard, (1, y, x); those of a shard come in C order, and before those of the next one."""
        full = self._pyramid.full
        shards, chunks = full.shards.cover(part), full.chunks.cover(part)
        if full.chunks.voxels(chunks) != part or values.shape != part.shape or shards.size != 1:
            raise ShapeMismatchError(
                f"{full.path}: {part} with values of {values.shape} is no box of chunks of a shard"
            )
        shard = shards.start
        (_, row, column), (_, rows, columns) = chunks.start, full.chunks_of_shard
        self._encoder.add(values[0], (row % rows, column % columns))
        self.reduce(part, values)
        if part.stop == full.shards.box(shard).stop:
            place = tuple(index - first for index, first in zip(shard, self._cells.start, strict=True))
            self._digests[place] = full.publish(shard, self._encoder.finish(), self._staging)
            self._encoder = full.encoder()

    def reduce(self, part: Box, values: NDArray[Any]) -> None:
        """Take whole chunks into level 1."""
        if self._levels is not None:
            self._levels.take(part, values)

    def discard(self, part: Box) -> None:
        """Make a shard that was written all fill."""
        full = self._pyramid.full
        full.erase(part)
        (shard,) = full.shards.cover(part)
        self._digests[tuple(index - first for index, first in zip(shard, self._cells.start, strict=True))] = ALL_FILL
        self.reduce(part, np.full(part.shape, full.fill, full.dtype))

    def write_levels(self) -> None:
        """Write levels 1, 2, ..., once all of the slice is in."""
        if self._levels is not None:
            for array, plane in zip(self._pyramid.levels[1:], self._levels.planes(), strict=True):
                array.write(Box.of_slice(self._z, plane.shape), plane[None], self._staging)

    def finish(self) -> NDArray[np.uint64]:
        """Write the levels, and return the digests of the shards that were written, (1, y, x) of the shard grid."""
        self.write_levels()
        return self._digests


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Shapes (y, x) of all levels of a slice, from full size until both sides are at most 512."""
    shapes = [shape]
    while max(shapes[-1]) > TOP_SIDE:
        shapes.append((ceil_div(shapes[-1][0], 2), ceil_div(shapes[-1][1], 2)))
    return shapes


def reduced_levels(plane: Plane, reduce: Reduce) -> Iterator[Plane]:
    """Levels 1, 2, ... of a whole slice.

    Parameters
    ----------
    plane : ndarray
        Level 0, (y, x), uint8 or uint16.
    reduce : callable
        ``reduce_image`` or ``reduce_label``.
    """
    for shape in level_shapes((plane.shape[0], plane.shape[1]))[1:]:
        smaller = np.empty(shape, plane.dtype)
        reduce(plane, smaller)
        yield smaller
        plane = smaller


@kernel
def reduce_image(plane: Plane, out: Plane) -> None:
    """Mean of the voxels that exist in each 2x2 group, rounded half up.

    Parameters
    ----------
    plane : ndarray
        (y, x), uint8 or uint16.
    out : ndarray
        (ceil(y / 2), ceil(x / 2)), of the same type; written.
    """
    height, width = plane.shape
    for row in range(out.shape[0]):
        upper = plane[2 * row]
        lower = plane[min(2 * row + 1, height - 1)]  # an odd last row counts twice, which leaves its mean as it is
        for column in range(width // 2):
            left, right = 2 * column, 2 * column + 1
            total = np.uint32(upper[left]) + np.uint32(upper[right]) + np.uint32(lower[left]) + np.uint32(lower[right])
            out[row, column] = (total + np.uint32(2)) >> np.uint32(2)
        if width % 2:
            total = np.uint32(upper[width - 1]) + np.uint32(lower[width - 1])
            out[row, out.shape[1] - 1] = (total + np.uint32(1)) >> np.uint32(1)


@kernel
def reduce_label(plane: Plane, out: Plane) -> None:
    """Reduce 2x2 groups of a label: vessel (255) where any is, not annotated (127) where all are, else background.

    Parameters
    ----------
    plane : ndarray
        (y, x) uint8 of 0, 127 and 255.
    out : ndarray
        (ceil(y / 2), ceil(x / 2)) uint8; written.
    """
    height, width = plane.shape
    for row in range(out.shape[0]):
        upper = plane[2 * row]
        lower = plane[min(2 * row + 1, height - 1)]
        for column in range(width // 2):
            left, right = 2 * column, 2 * column + 1
            # 255 is the only value with its top bit set, and of 0 and 127 `and` leaves 127 only where all are
            some = upper[left] | upper[right] | lower[left] | lower[right]
            every = upper[left] & upper[right] & lower[left] & lower[right]
            out[row, column] = np.uint8(255) if some & np.uint8(128) else every
        if width % 2:
            some = upper[width - 1] | lower[width - 1]
            every = upper[width - 1] & lower[width - 1]
            out[row, out.shape[1] - 1] = np.uint8(255) if some & np.uint8(128) else every
