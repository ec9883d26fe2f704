"""The label that shows where a run is wrong: kept beside its mask, block by block, and never older than that.

Its key of a tile is that of the counts that the tile shows. It is taken back before anything is written, and recorded
last; a mask that is made anew without it has the blocks of the label erased before its first voxel is written.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DamageError
from pipeline.geometry import Box, Triple
from pipeline.scratch import scratch
from pipeline.storage.confusion_label import confuse, confusion_name
from pipeline.storage.keys import has_shards, levels_key
from pipeline.storage.pyramid import Pyramid, SliceWriter
from pipeline.storage.store import ABSENT, ALL_FILL
from pipeline.storage.tables import ConfusionTables, Grids, RunTables, has_documents
from pipeline.storage.volume import Volume

Plane = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Painting:
    """The confusion of a run as one process has it open.

    Attributes
    ----------
    label : Pyramid
    truth : str
        What the run is compared with.
    """

    label: Pyramid
    truth: str
    tables: ConfusionTables
    grids: Grids

    @classmethod
    def of(cls, volume: Volume, tables: RunTables) -> Painting | None:
        """Open that of a run; None where none is kept."""
        info = volume.confusion(tables.name)
        if info is None or info.truth is None or info.truth not in tables.truths():
            return None
        kept = tables.truth(info.truth).confusion
        return None if kept is None else cls(volume.label(info.name), info.truth, kept, tables.grids)

    def shows(self, block: Triple, keys: NDArray[np.uint64]) -> bool:
        """Whether a block shows the counts of these keys, and its shards are there."""
        box, cells = self.grids.blocks.box(block), self.grids.block_tiles(block).slices
        if (self.tables.key.read(cells) != keys).any():
            return False
        z = box.start[0]
        digests = self.tables.digest.read((slice(z, z + 1),))
        return has_shards(self.label.full, box, digests)

    def forget(self, block: Triple) -> None:
        """Take back what is recorded of a block, before it changes."""
        self.tables.key.write(self.grids.block_tiles(block).slices, ABSENT)

    def erase(self, block: Triple, exists: bool = True) -> None:
        """Let a block, of a slice that exists or does not, show nothing; its keys were taken back."""
        box = self.grids.blocks.box(block)
        self.label.erase(box)
        self._record(block, np.uint64(ALL_FILL if exists else ABSENT))

    def record(self, block: Triple, digests: NDArray[np.uint64] | None, keys: NDArray[np.uint64]) -> None:
        """Record what a block shows, the keys last; without digests, it was erased."""
        if digests is not None:
            self._record(block, digests)
        self.tables.key.write(self.grids.block_tiles(block).slices, keys)

    def rebuild_levels(self, z: int, staging: Path) -> str | None:
        """Write the levels of a slice whose blocks are parts of it.

        Returns
        -------
        str or None
            Why they are not those of what was recorded: shards cannot be read back. Their blocks are erased.
        """
        digests = self.tables.digest.read((slice(z, z + 1),))[0]
        try:
            self.label.rebuild_levels(z, digests, staging)
        except DamageError as error:
            full = self.label.full
            for part in full.shards.parts(Box.of_slice(z, full.shape)):
                try:
                    full.read_checked(part, digests)
                except DamageError:
                    (block,) = self.grids.blocks.cover(part)
                    self.forget(block)
                    self.erase(block)
            return str(error)
        self._record_levels(z)
        return None

    def _record(self, block: Triple, digests: NDArray[np.uint64] | np.uint64) -> None:
        box = self.grids.blocks.box(block)
        self.tables.digest.write(self.grids.shards.cover(box).slices, digests)
        if box.shape[1:] == self.label.full.shape[1:]:  # then its levels were written, too
            self._record_levels(box.start[0])

    def _record_levels(self, z: int) -> None:
        self.tables.pyramid_key.write((slice(z, z + 1),), levels_key(self.tables.digest, z))


class Painter:
    """Writes the confusion of a block, part by part while mask and truth are in cache."""

    def __init__(self, writer: SliceWriter, side: int) -> None:
        self._writer, self._side = writer, side

    def paint(self, part: Box, mask: Plane, truth: Plane, valid: Plane | None, failed: NDArray[np.bool_]) -> None:
        """Write chunks of one shard; see `SliceWriter.write`.

        Parameters
        ----------
        part : Box
        mask : ndarray
            (y, x) uint8: 0 background, 255 vessel.
        truth : ndarray
            (y, x) uint8: 0 background, 255 vessel, 127 not annotated.
        valid : ndarray or None
            (y, x) uint8: not 0 where voxels count.
        failed : ndarray
            bool (y, x): tiles that have no mask, and show nothing.
        """
        shown = scratch.array("confusion", part.shape, np.uint8)
        confuse(mask, truth, shown[0])
        if valid is not None:
            shown[0][valid == 0] = 0
        for row, column in np.argwhere(failed):
            top, left = int(row) * self._side, int(column) * self._side
            shown[0, top : top + self._side, left : left + self._side] = 0
        self._writer.write(part, shown)

    def discard(self, shard: Box) -> None:
        """Let a shard show nothing: its truth turned out to be lost."""
        self._writer.discard(shard)

    def finish(self) -> NDArray[np.uint64]:
        """Write the levels, where the block is whole slices; return the digests of its shards."""
        return self._writer.finish()


def prepare_painting(volume: Volume, tables: RunTables, truth: str | None) -> None:
    """Create the confusion of a run with a truth, in place of one with another, or remove one that nothing vouches for.

    Without a truth, one that is kept stays. The caller holds volume and run.
    """
    if truth is not None:
        check_paintable(volume, tables.name)
    painting, info = Painting.of(volume, tables), volume.confusion(tables.name)
    if (painting is None and info is not None) or (truth is not None and (painting is None or painting.truth != truth)):
        remove_painting(volume, tables.name)
        tables.remove_confusions()
    if truth is not None and Painting.of(volume, tables) is None:
        shutil.rmtree(volume.path / "labels" / confusion_name(tables.name), ignore_errors=True)  # of who died here
        volume.create_confusion(tables.name, truth)
        tables.create_confusion(truth)
        volume.publish_label(confusion_name(tables.name))


def remove_painting(volume: Volume, run: str) -> None:
    """Remove the label that shows the confusion of a run, if there is one; the caller holds volume and run."""
    if volume.confusion(run) is not None:
        volume.withdraw_label(confusion_name(run))
        shutil.rmtree(volume.path / "labels" / confusion_name(run))


def check_paintable(volume: Volume, run: str) -> None:
    """Refuse to show the confusion of a run where the name of that label belongs to something else.

    Raises
    ------
    ConfigError
    """
    name = confusion_name(run)
    if (name in volume.labels() and volume.confusion(run) is None) or has_documents(volume, name):
        raise ConfigError(
            f"confusion: {name!r} is another label or run of {volume.path} already; choose another --name for the run"
        )
