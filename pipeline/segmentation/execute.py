"""The graph of a run, its reduction, and the outcome.

The graph is a `map_blocks` over the grid of blocks, without array arguments: a task reads its own window, leaves what
it knows of its tiles in their tables, and returns sums over them, which one tree adds up.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError
from pipeline.events import BlockDone, BlocksSettled, JobDone, JobsStarted, Observer
from pipeline.geometry import Box, Triple
from pipeline.kernels.confusion import SCORE_PARTS, Macro, Undefined, mean_scores, sum_scores
from pipeline.segmentation.engine import Engine
from pipeline.segmentation.job import Job
from pipeline.segmentation.plan import Plan
from pipeline.segmentation.record import Column, recorded
from pipeline.segmentation.segment import build_confusion, build_pyramid, run_block
from pipeline.segmentation.survey import slice_counts
from pipeline.settings.recipe import Recipe
from pipeline.storage.keys import stale_confusions, stale_pyramids, unfinished
from pipeline.storage.painting import Painting
from pipeline.storage.store import ShardedArray
from pipeline.storage.tables import Grids, RunTables
from pipeline.storage.volume import Volume

Sums: TypeAlias = NDArray[np.int64]

SPLIT_EVERY = 8  # children of each node of the reduction tree


@dataclass(frozen=True, slots=True)
class Outcome:
    """Sums over the tiles of a run.

    Attributes
    ----------
    totals : ndarray
        int64 (len(Column),).
    macro : Macro or None
        Mean scores over the annotated tiles, and how many those are.
    """

    totals: NDArray[np.int64]
    macro: Macro | None

    @classmethod
    def of(cls, sums: Sums, undefined: Undefined) -> Outcome:
        """Take sums apart, whose scores were made by this rule."""
        return cls(sums[: len(Column)], mean_scores(sums[len(Column) :], undefined))


def execute(plan: Plan, job: Job, tables: RunTables, engine: Engine, observer: Observer, again: bool = True) -> Outcome:
    """Run the blocks of a plan that are not done, and sum what they return with what the others have recorded.

    Masks that cannot be read back for their levels are made ``again``, once.

    Raises
    ------
    StorageError
        If results cannot be written.
    SchedulerError
        If the scheduler or its workers are lost.
    """
    observer(JobsStarted(plan.blocks.size))
    slices, sums, settled = _look(plan, tables)
    if settled.count:
        observer(settled)
    if slices:
        with engine.listen(observer) as notify:
            sums = sums + engine.compute(build_graph(plan, job, notify, slices))[0]
    again_of = {build_pyramid: _stale(plan, tables), build_confusion: _stale_confusions(plan, tables)}
    lost = engine.compute(*[dask.delayed(build)(job, z) for build, stale in again_of.items() for z in stale])
    if any(lost):  # a mask that was done is damaged, and its blocks are disowned: they are made again, now
        if not again:
            raise DamageError("; ".join(filter(None, lost)))
        return execute(plan, job, tables, engine, observer, again=False)
    return Outcome.of(sums, plan.undefined)


def pooled_counts(plan: Plan, engine: Engine, observer: Observer) -> NDArray[np.int64]:
    """Count the filtered voxels of the whole volume by grey level, int64 (levels,): a task a slice, and a tree.

    Raises
    ------
    DamageError
        If a slice cannot be read.
    """
    volume = Volume(plan.volume)
    present = [int(z) for z in np.flatnonzero(volume.slices.present())]
    levels = 1 << 8 * volume.dtype.itemsize
    if not present:
        return np.zeros(levels, np.int64)
    observer(JobsStarted(len(present), "pooling"))
    with engine.listen(observer) as notify:
        counts = da.map_blocks(
            _PoolTask(plan.volume, plan.recipe, plan.block, _ranges(present), notify),
            chunks=((1,) * len(present), (levels,)),
            dtype=np.int64,
            meta=np.empty((0, 0), np.int64),
            name=f"pool-{uuid.uuid4().hex}",
        )
        total: NDArray[np.int64] = engine.compute(counts.sum(axis=0, split_every=SPLIT_EVERY))[0]
    return total


def finished(plan: Plan, tables: RunTables, observer: Observer) -> Outcome | None:
    """Outcome of a plan of which nothing is left to do, from the tables; None if there is."""
    if _stale(plan, tables) or _stale_confusions(plan, tables):
        return None
    slices, sums, settled = _look(plan, tables)
    if slices:
        return None
    observer(JobsStarted(plan.blocks.size))
    observer(settled)
    return Outcome.of(sums, plan.undefined)


def _look(plan: Plan, tables: RunTables) -> tuple[list[int], Sums, BlocksSettled]:
    """Slices that have something to do, and the sums of the others."""
    volume = Volume(plan.volume)
    worked = plan.grids.tiles.cover(plan.grids.blocks.voxels(plan.blocks))
    slices = unfinished(volume, tables, plan.truth, worked, plan.confusion)
    record = recorded(volume, tables, plan.truth, plan.grids.tiles.cover(plan.region), slices)
    sums = _sums(record, plan.undefined)
    a_slice = plan.blocks.shape[1] * plan.blocks.shape[2]
    reused = int(record[..., Column.REUSED].any(axis=(1, 2)).sum())
    settled = BlocksSettled((worked.shape[0] - len(slices)) * a_slice, reused * a_slice, _counts(sums))
    return slices, sums, settled


def _stale(plan: Plan, tables: RunTables) -> list[int]:
    """Slices whose levels do not show their mask: blocks that are whole slices have written them."""
    if plan.block[1:] == plan.grids.tiles.shape[1:]:
        return []
    return stale_pyramids(tables, range(plan.region.start[0], plan.region.stop[0]))


def _stale_confusions(plan: Plan, tables: RunTables) -> list[int]:
    """The same of what shows the confusion, where that is kept."""
    painting = Painting.of(Volume(plan.volume), tables)
    if painting is None or plan.block[1:] == plan.grids.tiles.shape[1:]:
        return []
    return stale_confusions(painting.tables, range(plan.region.start[0], plan.region.stop[0]))


def build_graph(plan: Plan, job: Job, notify: Observer, slices: Sequence[int]) -> da.Array:
    """Return the sums of some slices as a Dask array, int64 (len(Column) + SCORE_PARTS,): a task a block, and a tree.

    Dask fuses a block and its first sum into one task.
    """
    blocks = plan.blocks
    sums = da.map_blocks(
        _Task(
            job, plan.grids, plan.grids.tiles.cover(plan.region), plan.undefined, _ranges(slices), blocks.start, notify
        ),
        chunks=((1,) * len(slices), (1,) * blocks.shape[1], (1,) * blocks.shape[2], (len(Column) + SCORE_PARTS,)),
        dtype=np.int64,
        meta=np.empty((0, 0, 0, 0), np.int64),  # without it, map_blocks calls the function while the graph is built
        name=f"segment-{job.token}",
    )
    axes = (0, 1, 2)
    return sums.sum(axis=axes, split_every=dict.fromkeys(axes, SPLIT_EVERY))


def lazy_array(array: ShardedArray) -> da.Array:
    """Return a stored image or label as a lazy Dask array, one chunk for each shard, read when it is computed."""
    chunks = tuple(
        tuple(min(step, length - start) for start in range(0, length, step))
        for length, step in zip(array.shape, array.shards.step, strict=True)
    )
    return da.map_blocks(
        _read_shard,
        path=array.path,
        chunks=chunks,
        dtype=array.dtype,
        meta=np.empty((0, 0, 0), array.dtype),
        name=f"kesm-{uuid.uuid4().hex}",  # the same file may hold other voxels after the next run
    )


@dataclass(frozen=True, slots=True)
class _PoolTask:
    """The task that counts a slice."""

    volume: Path
    recipe: Recipe
    block: Triple
    slices: tuple[range, ...]
    notify: Observer

    def __call__(self, block_id: tuple[int, ...]) -> NDArray[np.int64]:
        """Return the counts of the slice, with an axis of length 1."""
        counts = slice_counts(Volume(self.volume), self.recipe, _nth(self.slices, block_id[0]), self.block)
        self.notify(JobDone())
        return counts[None]


@dataclass(frozen=True, slots=True)
class _Task:
    """The task of a block: all that it must know but for its place, and the same for all."""

    job: Job
    grids: Grids
    region: Box  # tiles that are scored
    undefined: Undefined
    slices: tuple[range, ...]
    first: Triple
    notify: Observer

    def __call__(self, block_id: tuple[int, ...]) -> NDArray[np.int64]:
        """Do the block; return the sums over those of its tiles that are scored, with three axes of length 1."""
        _, row, column = self.first
        index = _nth(self.slices, block_id[0]), row + block_id[1], column + block_id[2]
        record = run_block(self.job, index)
        sums = record.sum(axis=(0, 1, 2))
        self.notify(
            BlockDone(
                voxels=int(sums[Column.VOXELS]),
                counts=_counts(sums),
                reused=bool(sums[Column.REUSED] > 0),
                failed=bool(sums[Column.FAILED] > 0),
            )
        )
        tiles = self.grids.block_tiles(index)
        scored = record[(tiles & self.region).relative_to(tiles.start).slices]
        return _sums(scored, self.undefined)[None, None, None]


def _sums(record: NDArray[np.int64], undefined: Undefined) -> NDArray[np.int64]:
    """Columns, and parts of the scores, of tiles (z, y, x), summed."""
    parts = sum_scores(record[..., : Column.VOXELS], undefined)
    sums: NDArray[np.int64] = np.concatenate([record.sum(axis=(0, 1, 2)), parts])
    return sums


def _counts(sums: NDArray[np.int64]) -> tuple[int, int, int, int]:
    return int(sums[Column.TP]), int(sums[Column.FP]), int(sums[Column.FN]), int(sums[Column.TN])


def _ranges(slices: Sequence[int]) -> tuple[range, ...]:
    """Ascending numbers as ranges without a gap: what every task carries must not grow with their number."""
    starts = [position for position, z in enumerate(slices) if position == 0 or slices[position - 1] != z - 1]
    return tuple(
        range(slices[start], slices[stop - 1] + 1)
        for start, stop in zip(starts, [*starts[1:], len(slices)], strict=True)
    )


def _nth(ranges: tuple[range, ...], position: int) -> int:
    for span in ranges:
        if position < len(span):
            return span[position]
        position -= len(span)
    raise IndexError(position)


def _read_shard(path: Any, block_id: Triple) -> NDArray[Any]:
    array = ShardedArray(path)
    return array.read(array.shards.box(block_id))
