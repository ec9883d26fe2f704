"""Voxels read back: the shards of one slice against their digests, and its levels against level 0."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import kernel
from pipeline.errors import DamageError, PipelineError
from pipeline.geometry import Box, Triple
from pipeline.pyramid import Pyramid, reduced_levels
from pipeline.scratch import scratch
from pipeline.store import ABSENT, ALL_FILL, SHARD, ShardedArray
from pipeline.volume import RECORD_WAY_OUT

Array = NDArray[Any]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was recorded.

    Attributes
    ----------
    array : str
        Folder of the array, or of the document, inside the volume.
    shard : str or None
        File of its shard, or chunk where it is a table; None where all of it is concerned.
    region : Box
        Voxels of the volume that it shows or tells of.
    reason : str
    run : str or None
        The run that can make it again, if one can.
    """

    array: str
    shard: str | None
    region: Box
    reason: str
    run: str | None = None

    @property
    def place(self) -> str:
        """Path inside the volume."""
        return self.array if self.shard is None else f"{self.array}/{self.shard}"

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.place}: {self.region}: {self.reason}"

    def document(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return asdict(self) | {"region": str(self.region)}


@dataclass(frozen=True, slots=True)
class Kind:
    """What there is to know of an image, truth or mask, whatever the slice.

    Attributes
    ----------
    pyramid : Pyramid
    folder : Path
        Of the pyramid, inside the volume.
    values : tuple or None
        The values that its voxels may have, if those are few.
    run : str or None
        The run that has made it.
    """

    pyramid: Pyramid
    folder: Path
    values: tuple[int, int, int] | None = None
    run: str | None = None


class Readback:
    """One slice of an image, truth or mask, as its strips come from top to bottom.

    Parameters
    ----------
    kind : Kind
    z : int
    digests : ndarray
        uint64 (y, x) of the shard grid: what was recorded; ``ABSENT`` where that is not known, and nothing is checked.

    Attributes
    ----------
    right : ndarray
        Shards that are as recorded, (y, x) of the shard grid.
    bytes : int
        Decoded voxels that were read.
    """

    def __init__(self, kind: Kind, z: int, digests: NDArray[np.uint64]) -> None:
        self.findings: list[Finding] = []
        self.right: Flags = np.zeros(digests.shape, np.bool_)
        self.shards = int((digests != ABSENT).sum())
        self.bytes = 0
        self._kind, self._z, self._digests = kind, z, digests
        one = kind.pyramid.levels[1:2] if self.shards else []
        self._first = [scratch.array(f"level 1 of {kind.folder}", level.shape[1:], level.dtype) for level in one]

    def read(self, strip: Box, buffer: str) -> Array | None:
        """Read a row of shards and compare it with its digests; None where nothing is known of any.

        Parameters
        ----------
        strip : Box
        buffer : str
            Name of the memory that is used again, valid until the next call with this name.
        """
        array = self._kind.pyramid.full
        cells = array.shards.cover(strip)
        if not self._digests[cells.slices[1:]].any():
            return None
        values, unread = self._read(array, strip, buffer)
        found = array.digests(strip, values)
        for shard in cells:
            recorded, digest = int(self._digests[shard[1:]]), int(found[0, 0, shard[2]])
            if recorded == ABSENT:
                continue
            if shard in unread:
                self._tell(0, shard, unread[shard])
            elif digest != recorded:
                self._tell(0, shard, _change(recorded, array.shard_file(shard).is_file()))
            else:
                self.right[shard[1:]] = True
        self._check_values(strip, values)
        for first in self._first:
            self._kind.pyramid.reduction(values[0], first[strip.start[1] // 2 : (strip.stop[1] + 1) // 2])
        return values

    def compare_levels(self) -> None:
        """Compare levels 1, 2, ... with level 0; not where that is not as recorded: so much is told already."""
        for first in self._first if self.right.all() else ():
            planes = itertools.chain([first], reduced_levels(first, self._kind.pyramid.reduction))
            for level, plane in enumerate(planes, 1):
                self._compare_level(level, plane)

    def _check_values(self, strip: Box, values: Array) -> None:
        """Find voxels that are neither of the values which a label may have."""
        allowed = self._kind.values
        # All at once: rows of a shard are not contiguous here, which takes four times as long.
        if allowed is None or only_values(values[0], *allowed):
            return
        shards = self._kind.pyramid.full.shards
        for shard in shards.cover(strip):
            part = shards.box(shard).relative_to(strip.start).slices
            if self.right[shard[1:]] and not only_values(values[part][0], *allowed):
                self.right[shard[1:]] = False
                self._tell(0, shard, f"has voxels other than {', '.join(map(str, sorted(set(allowed))))}")

    def _compare_level(self, level: int, plane: Array) -> None:
        array = self._kind.pyramid.levels[level]
        for strip in strips(self._z, *plane.shape):
            values, unread = self._read(array, strip, "stored level")
            for shard in array.shards.cover(strip):
                part = array.shards.box(shard)
                if shard in unread:
                    self._tell(level, shard, unread[shard])
                elif not np.array_equal(values[part.relative_to(strip.start).slices][0], plane[part.slices[1:]]):
                    there = array.shard_file(shard).is_file()
                    self._tell(level, shard, "does not show the voxels of level 0" if there else "is missing")

    def _read(self, array: ShardedArray, strip: Box, buffer: str) -> tuple[Array, dict[Triple, PipelineError]]:
        """Read a row of shards, or what can be read of it, and why the others cannot be."""
        values = scratch.array(buffer, strip.shape, array.dtype)
        self.bytes += values.nbytes
        unread: dict[Triple, PipelineError] = {}
        try:
            array.read(strip, values)
        except PipelineError:
            for shard in array.shards.cover(strip):
                part = array.shards.box(shard)
                try:
                    values[part.relative_to(strip.start).slices] = array.read(part)
                except PipelineError as error:
                    unread[shard] = error
        return values, unread

    def _tell(self, level: int, shard: Triple, reason: str | PipelineError) -> None:
        pyramid, run = self._kind.pyramid, self._kind.run
        array = pyramid.levels[level]
        (z, top, left), (end, bottom, right) = array.shards.box(shard).start, array.shards.box(shard).stop
        shown = Box((z, top << level, left << level), (end, bottom << level, right << level))
        if isinstance(reason, DamageError):
            text = f"cannot be decoded ({reason.__cause__})"
        elif isinstance(reason, PipelineError):  # it may be whole: its storage refuses it, or does not answer
            text, run = str(reason), None
        else:
            text = reason
        self.findings.append(
            Finding(
                array=str(self._kind.folder / str(level)),
                shard=str(array.shard_file(shard).relative_to(array.path)),
                region=shown & Box.whole(pyramid.full.shape),
                reason=text if self._kind.run else f"{text}; {RECORD_WAY_OUT}",
                run=run,
            )
        )


def _change(recorded: int, stored: bool) -> str:
    """What has become of a shard that has other voxels now."""
    if recorded == ALL_FILL:
        return "has voxels where only fill was recorded"
    return "has other voxels than were recorded" if stored else "is missing"


def strips(z: int, height: int, width: int) -> Iterator[Box]:
    """One slice cut into rows of shards."""
    for top in range(0, height, SHARD[1]):
        yield Box((z, top, 0), (z + 1, min(top + SHARD[1], height), width))


@kernel
def only_values(plane: Array, first: int, second: int, third: int) -> bool:
    """Whether a plane (y, x) of uint8 holds nothing but three values."""
    others = False
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            value = plane[row, column]
            others |= (value != first) & (value != second) & (value != third)
    return not others
