"""The image under a filter, as it moves down a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Box, Triple, ceil_div
from pipeline.scratch import scratch
from pipeline.store import CHUNK, SHARD
from pipeline.volume import Volume


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
    """

    volume: Volume
    box: Box
    halo: Triple
    planes: Sequence[int]
    digests: NDArray[np.uint64]
    _buffer: NDArray[Any] = field(init=False)
    _top: int = field(init=False)
    _bottom: int = field(init=False)

    def __post_init__(self) -> None:
        rows = min(self.box.shape[1], SHARD[1] + CHUNK[1] + 2 * ceil_div(self.halo[1], CHUNK[1]) * CHUNK[1])
        shape = (len(self.planes), rows, self.box.shape[2])
        self._buffer = scratch.array("window", shape, self.volume.dtype)
        self._top = self._bottom = self.box.start[1]

    def move(self, strip: Box) -> tuple[Triple, NDArray[Any]]:
        """Move down to a strip, and return the voxel where the planes begin, and the planes (z, y, x).

        Raises
        ------
        DamageError
            If a shard is missing or cannot be decoded.
        """
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
            self.volume.check_stored(array, box, self.digests[nth : nth + 1])
            array.read(box, self._buffer[position : position + 1, rows])
