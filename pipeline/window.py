"""The image under a filter, as it moves down a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.disk import SILENT_FILES
from pipeline.errors import DamageError, UnavailableError
from pipeline.geometry import Box, Triple, ceil_div
from pipeline.scratch import scratch
from pipeline.store import CHUNK, SHARD, ShardedArray
from pipeline.volume import Volume

Lost = list[tuple[Box, str]]
"""Voxels that could not be read, and why."""


def read_stored(volume: Volume, array: ShardedArray, box: Box, digests: NDArray[np.uint64], out: NDArray[Any]) -> Lost:
    """Read a box into ``out``; where shards are missing or damaged, read the others, and return what is lost.

    Parameters
    ----------
    volume : Volume
    array : ShardedArray
        One of its arrays.
    box : Box
        Voxels.
    digests : ndarray
        Recorded digests of the slices of the box, (z, y, x) of the shard grid.
    out : ndarray
        Of the box's shape; what is lost is 0 in it.
    """
    try:
        volume.check_stored(array, box, digests)
        array.read(box, out)
    except (DamageError, UnavailableError):
        return _read_shards(volume, array, box, digests, out)
    return []


def _read_shards(volume: Volume, array: ShardedArray, box: Box, digests: NDArray[np.uint64], out: NDArray[Any]) -> Lost:
    lost = []
    silent = 0
    for shard in array.shards.cover(box):
        part = array.shards.box(shard) & box
        values = np.zeros(part.shape, out.dtype)
        try:
            volume.check_stored(array, part, digests)
            array.read(part, values)
        except (DamageError, UnavailableError) as error:
            silent += isinstance(error, UnavailableError)
            if silent > SILENT_FILES:
                raise
            values[:] = 0
            lost.append((part, str(error)))
        out[part.relative_to(box.start).slices] = values
    return lost


@dataclass(slots=True)
class Window:
    """Rows of the planes that a filter covers, kept while one strip follows another.

    A strip needs a few rows of its neighbours, and a chunk is decoded as a whole: read strip by strip, seven chunks in
    ten are decoded twice. So rows are read to the end of their chunks, and what the next strip needs is moved up.

    Attributes
    ----------
    volume : Volume
    box : Box
        The block with its halo in the plane.
    halo : tuple
        Voxels (z, y, x) that the filter reads beyond a voxel.
    planes : sequence of int
        The slice that each plane is read from, top to bottom; slices repeat where values reflect.
    digests : ndarray
        uint64 (z, y, x) of the shard grid: recorded digests of the slices around the middle one.
    lost : list
        Voxels, of any plane, that could not be read, and why.
    """

    volume: Volume
    box: Box
    halo: Triple
    planes: Sequence[int]
    digests: NDArray[np.uint64]
    lost: Lost = field(default_factory=list)
    _buffer: NDArray[Any] = field(init=False)
    _top: int = field(init=False)
    _bottom: int = field(init=False)

    def __post_init__(self) -> None:
        rows = min(self.box.shape[1], SHARD[1] + CHUNK[1] + 2 * ceil_div(self.halo[1], CHUNK[1]) * CHUNK[1])
        shape = (len(self.planes), rows, self.box.shape[2])
        self._buffer = scratch.array("window", shape, self.volume.dtype)
        self._top = self._bottom = self.box.start[1]

    def move(self, strip: Box) -> tuple[Triple, NDArray[Any]]:
        """Move down to a strip, and return the voxel where the planes begin, and the planes (z, y, x)."""
        top = max(strip.start[1] - self.halo[1], self.box.start[1])
        kept = self._bottom - top
        if kept > 0 and top > self._top:
            self._buffer[:, :kept] = self._buffer[:, top - self._top : self._bottom - self._top]
        whole_chunks = ceil_div(strip.stop[1] + self.halo[1], CHUNK[1]) * CHUNK[1]
        bottom = min(whole_chunks, self.box.stop[1])
        if bottom > self._bottom:
            self._read(kept, self._bottom, bottom)
        self._top, self._bottom = top, max(bottom, self._bottom)
        return (strip.start[0], top, self.box.start[2]), self._buffer[:, : self._bottom - top]

    def _read(self, row: int, top: int, bottom: int) -> None:
        """Read the rows ``top`` to ``bottom`` of every plane into the buffer from ``row`` on."""
        rows = slice(row, row + bottom - top)
        middle = len(self.planes) // 2
        array = self.volume.image.full
        for position, z in enumerate(self.planes):
            before = self.planes.index(z)
            if before < position:
                self._buffer[position, rows] = self._buffer[before, rows]
                continue
            box = Box((z, top, self.box.start[2]), (z + 1, bottom, self.box.stop[2]))
            nth = middle + z - self.planes[middle]
            out = self._buffer[position : position + 1, rows]
            self.lost += read_stored(self.volume, array, box, self.digests[nth : nth + 1], out)
