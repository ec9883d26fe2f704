"""The image under a filter: the planes of one block with their halo, decoded shard by shard as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError, PipelineError, UnavailableError
from pipeline.geometry import Box, Triple
from pipeline.kernels.median import reflect
from pipeline.scratch import scratch
from pipeline.storage.disk import SILENT_FILES
from pipeline.storage.store import ABSENT, ShardedArray
from pipeline.storage.volume import Volume


@dataclass(slots=True)
class Lost:
    """Voxels of a block that could not be read, and why."""

    parts: list[tuple[Box, str]] = field(default_factory=list)
    _silent: int = 0

    @property
    def reasons(self) -> str:
        """Why, in a line."""
        return "; ".join(dict.fromkeys(reason for _, reason in self.parts))

    def note(self, part: Box, error: PipelineError) -> None:
        """Note voxels that are lost; more than a few that are so because nobody answers are an error."""
        self._silent += isinstance(error, UnavailableError)
        if self._silent > SILENT_FILES:
            raise error
        self.parts.append((part, str(error)))


class CheckedShard:
    """One shard that is read chunk after chunk, each when it is needed, and checked against its record in the end.

    If a chunk cannot be read, or the shard is not what was recorded, all of it is noted as lost; what could not be read
    is 0.
    """

    def __init__(self, array: ShardedArray, shard: Triple, recorded: int, lost: Lost, buffer: str) -> None:
        self._array, self._shard, self._recorded, self._lost = array, shard, recorded, lost
        self._opened = array.open_shard(shard, buffer)
        self._right = True

    def __enter__(self) -> CheckedShard:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._attempt(lambda: self._array.check(self._shard, self._recorded, self._opened.digest))

    def read(self, part: Box, out: NDArray[Any]) -> None:
        """Read some of its chunks; all of them in C order before it is left."""
        self._attempt(lambda: self._opened.read(part, out))
        if not self._right:
            out[...] = 0

    def _attempt(self, step: Callable[[], None]) -> None:
        if not self._right:
            return
        try:
            step()
        except (DamageError, UnavailableError) as error:
            self._right = False
            self._lost.note(self._array.shards.box(self._shard), error)


def covered_planes(volume: Volume, z: int, depth: int) -> tuple[NDArray[np.uint64], list[int]]:
    """What a filter that reads so many slices above and below meets around a slice.

    Returns
    -------
    digests : ndarray
        uint64 (2 * depth + 1, y, x) of the shard grid: recorded digests of the slices, absent ones 0.
    planes : list of int
        The slice that each plane of the window is read from; empty where the middle one is absent. Beyond the volume,
        and beyond a gap, slices reflect.
    """
    first, last = max(0, z - depth), min(volume.shape[0], z + depth + 1)
    found = volume.slices.shard_digests(first, last)
    digests = np.zeros((2 * depth + 1, *found.shape[1:]), np.uint64)
    digests[first - z + depth : last - z + depth] = found
    here: NDArray[np.bool_] = np.any(digests != ABSENT, axis=(1, 2))
    if not here[depth]:
        return digests, []
    before = next((step for step in range(1, depth + 1) if not here[depth - step]), depth + 1) - 1
    after = next((step for step in range(1, depth + 1) if not here[depth + step]), depth + 1) - 1
    # A run of slices that goes on beyond the window must not reflect at the window's end, and never does: the
    # filter reads no further than `depth`.
    length = before + after + 1
    return digests, [z - before + reflect(step + before, length) for step in range(-depth, depth + 1)]


@dataclass(slots=True)
class Window:
    """The planes that a filter covers, for one block.

    Neighbours need each other's edges, and a chunk is decoded as a whole: so all planes of the block have a place here,
    and a shard is decoded once, when the first of those that need it comes.

    Attributes
    ----------
    array : ShardedArray
        Of the image, or of a label.
    box : Box
        The block with its halo in the plane.
    halo : tuple
        Voxels (z, y, x) that the filter reads beyond a voxel.
    planes : sequence of int
        The slice that each plane is read from, top to bottom; slices repeat where values reflect.
    digests : ndarray
        uint64 (z, y, x) of the shard grid: recorded digests of the slices around the middle one.
    buffer : str
        Name of the memory that a thread keeps for the planes.
    lost : Lost
        Voxels, of any plane, that could not be read.
    values : ndarray
        (z, y, x): the planes, from the first voxel of ``box``; right where they were loaded.
    """

    array: ShardedArray
    box: Box
    halo: Triple
    planes: Sequence[int]
    digests: NDArray[np.uint64]
    buffer: str = "window"
    lost: Lost = field(default_factory=Lost)
    values: NDArray[Any] = field(init=False)
    _loaded: set[Triple] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.values = scratch.array(self.buffer, (len(self.planes), *self.box.shape[1:]), self.array.dtype)

    def load(self, part: Box) -> None:
        """Make the voxels right that the filter reads for a part of the block."""
        array = self.array
        for shard in array.shards.cover(part.grow((0, *self.halo[1:])) & self.box):
            if shard not in self._loaded:
                self._loaded.add(shard)
                self._load(array, shard)

    def _load(self, array: ShardedArray, shard: Triple) -> None:
        middle = len(self.planes) // 2
        whole = array.shards.box(shard)
        inside = whole & self.box
        _, rows, columns = inside.relative_to(self.box.start).slices
        for position, z in enumerate(self.planes):
            out = self.values[position : position + 1, rows, columns]
            before = self.planes.index(z)
            if before < position:
                out[...] = self.values[before : before + 1, rows, columns]
                continue
            recorded = int(self.digests[middle + z - self.planes[middle], shard[1], shard[2]])
            # A shard of which only the edge is needed is read whole all the same: else it could not be checked.
            values = out if inside == whole else scratch.array("neighbour", whole.shape, array.dtype)
            with CheckedShard(array, (z, *shard[1:]), recorded, self.lost, "encoded image") as opened:
                opened.read(array.shards.box((z, *shard[1:])), values)
            if values is not out:
                out[...] = values[inside.relative_to(whole.start).slices]
