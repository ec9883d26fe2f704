"""What a run records of a block, in an order that a crash at any instant cannot make a lie of.

Status pending comes first, then the mask, the tables, status done, and the mask's key last.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LockedError
from pipeline.geometry import Box, Triple
from pipeline.segmentation.job import Job, open_job
from pipeline.segmentation.record import Column, done_record
from pipeline.segmentation.results import Results
from pipeline.segmentation.tile import Array
from pipeline.storage.keys import has_shards
from pipeline.storage.store import ABSENT, ALL_FILL
from pipeline.storage.tables import Status


class Bookkeeping:
    """The record of one block of one run.

    Attributes
    ----------
    masked : bool
        Whether the mask is done, and only counts are missing; who has asked `is_masked` says so here.
    touched : bool
        Whether anything was taken back or written.
    """

    def __init__(self, job: Job, index: Triple) -> None:
        self.job = job
        self.index = index
        self.handles = open_job(job)
        self.grids = self.handles.tables.grids
        self.box = self.grids.blocks.box(index)
        self.tiles = self.grids.block_tiles(index)
        self.cells = self.tiles.slices
        self.z = self.box.start[0]
        self._slice_cells = (slice(self.z, self.z + 1),)
        self._block = tuple(slice(place, place + 1) for place in index)
        self.masked = False
        self.touched = False

    def fail(self, reason: str, trace: str = "") -> NDArray[np.int64]:
        """Leave fill in the mask, zero in the counts, and the reason in the documents; a mask that is done stays."""
        self._check_licence()
        self.forget()
        self._empty(Status.FAILED)
        truth = self.job.truth if self.masked else None
        self.handles.tables.journal.record_failure(self.index, [(self.box, reason)], truth, trace)
        return self.record(failed=np.ones(self.tiles.shape, np.bool_))

    def put_off(self, reason: str) -> NDArray[np.int64]:
        """Call the block failed, and leave what there is as it is: nobody could look at it."""
        self._check_licence()
        self.handles.tables.status.write(self.cells, Status.FAILED)
        self.handles.tables.journal.record_failure(self.index, [(self.box, reason)])
        return self.record(failed=np.ones(self.tiles.shape, np.bool_))

    def leave_empty(self) -> NDArray[np.int64]:
        """Leave a slice that does not exist as one that never did."""
        if (self.handles.tables.status.read(self.cells) != Status.ABSENT).any():
            self._check_licence()
            self.forget()
            self._empty(Status.ABSENT)
            self.handles.tables.journal.clear_failure(self.index, self.job.truth)
        record = np.zeros((*self.tiles.shape, len(Column)), np.int64)
        record[..., Column.ABSENT] = 1
        return record

    def _empty(self, status: Status) -> None:
        """Make mask and tables what they are before there is anything in them."""
        tables, painting = self.handles.tables, self.handles.painting
        if painting is not None and (self.job.confusion or not self.masked):
            painting.erase(self.index, exists=status is not Status.ABSENT)
        if self.handles.truth_tables is not None:
            self.handles.truth_tables.counts.write(self.cells, 0)
            self.handles.truth_tables.histogram.write(self.cells, 0)
        if not self.masked:
            self.handles.mask.erase(self.box)
            tables.shard_digest.write(self._shards(), ABSENT if status is Status.ABSENT else ALL_FILL)
            for table in tables.of_mask.values():
                table.write(self.cells, table.fill)
            tables.grey.write(self._block, 0)
            if self.box.shape[1:] == self.handles.volume.shape[1:]:  # then the levels are gone too
                tables.pyramid_key.write(self._slice_cells, ABSENT)
            tables.status.write(self.cells, status)

    def record(self, reused: bool = False, failed: Array | None = None) -> NDArray[np.int64]:
        """What the block adds to the result, read back from its tables."""
        truth_tables = self.handles.truth_tables
        counts = 0 if truth_tables is None else truth_tables.counts.read(self.cells)
        record = done_record(self.handles.tables, self.tiles, counts)
        record[..., Column.REUSED] = reused
        if failed is not None:
            record[failed] = 0
            record[failed, Column.FAILED] = 1
        return record

    def is_compared(self, keys: Array | None) -> bool:
        """Whether the mask was compared with the same truth, and the confusion is shown, where these are asked for."""
        return self._is_counted(keys) and self._is_painted(keys)

    def is_masked(self, keys: Array) -> bool:
        """Whether the mask was made from the same, and is still there with its tables."""
        tables = self.handles.tables
        return (
            bool((tables.mask_key.read(self.cells) == keys).all())
            and bool((tables.status.read(self.cells) == Status.DONE).all())
            and all(table.stored(self.cells).all() and table.read(self.cells).size for table in tables.of_mask.values())
            and self._has_shards()
        )

    def _has_shards(self) -> bool:
        digests = np.zeros((1, *self.grids.shards.cells[1:]), np.uint64)
        digests[self.grids.shards.cover(self.box).relative_to((self.z, 0, 0)).slices] = (
            self.handles.tables.shard_digest.read(self._shards())
        )
        return has_shards(self.handles.mask.full, self.box, digests)

    def _is_counted(self, keys: Array | None) -> bool:
        """Whether the mask was compared with the same truth, if with any, and the result is still there."""
        tables = self.handles.truth_tables
        return tables is None or (
            bool((tables.counts_key.read(self.cells) == keys).all())
            and bool(tables.counts.stored(self.cells).all() and tables.counts.read(self.cells).size)
            and bool(tables.histogram.stored(self.cells).all())
        )

    def _is_painted(self, keys: Array | None) -> bool:
        """Whether the confusion is shown of the same, if it is to be shown."""
        painting = self.handles.painting
        return not self.job.confusion or (
            painting is not None and keys is not None and painting.shows(self.index, keys)
        )

    def _check_licence(self) -> None:
        if not self.job.staging.is_dir():
            raise LockedError(f"{self.job.volume}: another process has taken over run {self.job.name!r}")

    def forget(self) -> None:
        """Take back what the ledger says of what is about to change."""
        self.touched = True
        painting = self.handles.painting
        if not self.masked:
            self.handles.tables.take_back(self.index)
            if painting is not None and not self.job.confusion:  # it shall not show the errors of an older mask
                painting.erase(self.index)
        elif self.handles.truth_tables is not None:
            self.handles.truth_tables.counts_key.write(self.cells, ABSENT)
            if painting is not None and self.job.confusion:
                painting.forget(self.index)

    def remember(self, results: Results, keys: Array, count_keys: Array | None) -> None:
        """Record what was made of the block: the key of its mask last."""
        self._check_licence()
        tables, truth_tables = self.handles.tables, self.handles.truth_tables
        if results.shard_digest is not None:
            for name, table in tables.of_mask.items():
                table.write(self.cells, getattr(results, name))
            tables.grey.write(self._block, results.grey)
            tables.shard_digest.write(self._shards(), results.shard_digest)
        if truth_tables and results.counts is not None and results.histogram is not None and count_keys is not None:
            truth_tables.counts.write(self.cells, results.counts)
            truth_tables.histogram.write(self.cells, results.histogram)
            recorded = np.where(results.failed | results.uncounted, ABSENT, count_keys)
            truth_tables.counts_key.write(self.cells, recorded)
            if self.handles.painting is not None and self.job.confusion:
                self.handles.painting.record(self.index, results.painted, recorded)
        tables.journal.clear_failure(self.index, self.job.truth)
        if results.reasons:
            parts = [(self._around(found), why) for why, found in results.reasons.items()]
            mask_failed = results.shard_digest is not None and results.failed.any()
            tables.journal.record_failure(self.index, parts, None if mask_failed else self.job.truth)
        if results.shard_digest is not None:
            tables.status.write(self.cells, np.where(results.failed, Status.FAILED, Status.DONE))
            # last: a block with its key needs nothing any more
            tables.mask_key.write(self.cells, np.where(results.failed, ABSENT, keys))

    def _around(self, parts: list[Box]) -> Box:
        """Voxels of the smallest box around some boxes of tiles."""
        starts, stops = zip(*((part.start, part.stop) for part in parts), strict=True)
        low, high = np.min(starts, axis=0).tolist(), np.max(stops, axis=0).tolist()
        return self.grids.tiles.voxels(Box(tuple(low), tuple(high)))

    def _shards(self) -> tuple[slice, slice, slice]:
        return self.grids.shards.cover(self.box).slices
