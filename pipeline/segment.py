"""The work on one block: where kernels meet storage.

A block is read once into buffers that each thread keeps, every tile is filtered, counted, thresholded and masked while
it is in cache, and the results are recorded in an order that a crash at any instant cannot make a lie of: status
pending, mask, tables, status done, and the mask's key last.
"""

from __future__ import annotations

import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.denoise import denoiser
from pipeline.drawing import Drawing
from pipeline.errors import DamageError, LockedError, PipelineError, StorageError, TargetError, UnavailableError
from pipeline.geometry import Box, Grid, Triple
from pipeline.histogram import WINDOWED_LEVELS
from pipeline.keys import counts_keys, has_shards, mask_keys, other_inputs, pyramid_key
from pipeline.ledger import Ledger
from pipeline.painting import Painter, Painting
from pipeline.pyramid import Pyramid, SliceWriter
from pipeline.quality import Measure
from pipeline.recipe import FixedThreshold, LocalThreshold, Recipe
from pipeline.record import Column, done_record
from pipeline.scene import Scene
from pipeline.scratch import scratch
from pipeline.store import ABSENT, ALL_FILL, digest_bytes
from pipeline.survey import TileLevels, scene_counts, scene_survey, settle, slice_counts, slice_survey
from pipeline.tables import RunTables, Signal, Status, TruthTables
from pipeline.tile import Array, Given, TileRule, TileTables, count_drawn, segment_tiles
from pipeline.volume import Volume, beside
from pipeline.window import CheckedShard, Lost, covered_planes


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker must know of a run; small, and the same for all its blocks.

    ``token`` is new for each attempt, so that a worker never uses handles on a volume that has grown since.
    """

    volume: Path
    name: str
    recipe: Recipe
    truth: str | None
    token: str
    confusion: bool = False  # whether what the truth says of the mask is shown

    @property
    def staging(self) -> Path:
        """Folder where this attempt's shards are written before they are renamed.

        It is also its licence: the next attempt removes it, and who has lost it records nothing any more. (Tasks of a
        cluster go on for a while after their client has gone.)
        """
        return beside(self.volume, "staging") / f"run-{self.name}" / self.token


def run_block(job: Job, index: Triple) -> NDArray[np.int64]:
    """Do what is not done of one block, and return its tiles' part of the result.

    Damage inside the block is recorded with its reason and does not stop the run; what would stop every other block
    too (a full disk) is raised.

    Returns
    -------
    ndarray
        int64 (z, y, x, len(Column)) on the block's tiles.

    Raises
    ------
    StorageError
        If results cannot be written.
    LockedError
        If another attempt has taken over.
    """
    block = _Block(job, index)
    try:
        return block.run()
    except (LockedError, StorageError, MemoryError):
        raise
    except UnavailableError as error:
        return block.fail(str(error)) if block.touched else block.put_off(str(error))
    except PipelineError as error:
        return block.fail(str(error), error.trace if isinstance(error, TargetError) else "")
    except Exception as error:  # whatever it is, the other blocks go on and the reason is kept
        return block.fail(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def build_pyramid(job: Job, z: int) -> str | None:
    """Write the mask's levels of a slice whose blocks were parts of it.

    Returns
    -------
    str or None
        Why it could not: the mask cannot be read back. The blocks that this is due to are disowned.
    """
    handles = _open(job)
    key = pyramid_key(handles.tables, z)
    digests = handles.tables.shard_digest.read((slice(z, z + 1),))[0]
    try:
        handles.mask.rebuild_levels(z, digests, job.staging)
    except DamageError as error:
        mask, grids = handles.mask.full, handles.tables.grids
        for part in mask.shards.parts(Box.of_slice(z, mask.shape)):
            try:
                mask.read_checked(part, digests)
            except DamageError as damage:
                (block,) = grids.blocks.cover(part)
                handles.tables.disown(block, str(damage))
        return str(error)
    handles.tables.pyramid_key.write((slice(z, z + 1),), key)
    return None


def build_confusion(job: Job, z: int) -> str | None:
    """Write the levels of what shows the confusion of a slice whose blocks were parts of it; see `build_pyramid`."""
    painting = _open(job).painting
    return None if painting is None else painting.rebuild_levels(z, job.staging)


@dataclass(frozen=True, slots=True)
class _Handles:
    """A volume as one process has it open for one attempt."""

    volume: Volume
    mask: Pyramid
    tables: RunTables
    truth: tuple[Pyramid, Ledger] | None
    truth_tables: TruthTables | None
    painting: Painting | None


@lru_cache(maxsize=4)
def _open(job: Job) -> _Handles:
    volume = Volume(job.volume)
    tables = RunTables(volume, job.name)
    truth_tables = tables.truth(job.truth) if job.truth else None
    if truth_tables is not None:
        _ = truth_tables.all  # opened now: one that is damaged must not be met when something was taken back already
    return _Handles(
        volume=volume,
        mask=volume.label(job.name),
        tables=tables,
        truth=volume.truth(job.truth) if job.truth else None,
        truth_tables=truth_tables,
        painting=Painting.of(volume, tables),
    )


class _Block:
    """One block of one run: its place, its inputs, its results."""

    def __init__(self, job: Job, index: Triple) -> None:
        self.job = job
        self.index = index
        self.handles = _open(job)
        self.grids = self.handles.tables.grids
        self.box = self.grids.blocks.box(index)
        self.tiles = self.grids.block_tiles(index)
        self.cells = self.tiles.slices
        self.z = self.box.start[0]
        self._slice_cells = (slice(self.z, self.z + 1),)
        self._block = tuple(slice(place, place + 1) for place in index)
        self.masked = False  # whether the mask is done, and only counts are missing
        self.touched = False  # whether anything was taken back or written

    def run(self) -> NDArray[np.int64]:
        image_digests, planes = self._image_inputs()
        if not planes:
            return self._leave_empty()
        around = other_inputs(self.handles.volume, self.job.recipe, self.z, self.z + 1)[0]
        keys = mask_keys(self.job.recipe, image_digests, self.grids, self.tiles, self.handles.tables.level, around)
        masked = self.masked = self._is_masked(keys)  # before the truth is looked at: a damaged one costs no mask
        truth_digests = self._truth_inputs()
        count_keys = None if truth_digests is None else counts_keys(keys, truth_digests, self.grids, self.tiles)
        if masked and self._is_counted(count_keys) and self._is_painted(count_keys):
            return self._record(reused=True)

        self.touched = True
        self._forget(masked)
        results = self._compute(planes, image_digests, truth_digests, write_mask=not masked)
        self._check_unchanged(image_digests, truth_digests)
        self._check_licence()
        self._remember(results, keys, count_keys)
        return self._record(failed=results.failed | results.uncounted)

    def fail(self, reason: str, trace: str = "") -> NDArray[np.int64]:
        """Leave fill in the mask, zero in the counts, and the reason in the documents; a mask that is done stays."""
        self._check_licence()
        self._forget(self.masked)
        self._empty(Status.FAILED)
        truth = self.job.truth if self.masked else None
        self.handles.tables.record_failure(self.index, [(self.box, reason)], truth, trace)
        return self._record(failed=np.ones(self.tiles.shape, np.bool_))

    def put_off(self, reason: str) -> NDArray[np.int64]:
        """Call the block failed, and leave what there is as it is: nobody could look at it."""
        self._check_licence()
        self.handles.tables.status.write(self.cells, Status.FAILED)
        self.handles.tables.record_failure(self.index, [(self.box, reason)])
        return self._record(failed=np.ones(self.tiles.shape, np.bool_))

    def _leave_empty(self) -> NDArray[np.int64]:
        """Leave a slice that does not exist as one that never did."""
        if (self.handles.tables.status.read(self.cells) != Status.ABSENT).any():
            self._check_licence()
            self._forget(masked=False)
            self._empty(Status.ABSENT)
            self.handles.tables.clear_failure(self.index, self.job.truth)
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

    def _record(self, reused: bool = False, failed: Array | None = None) -> NDArray[np.int64]:
        """What the block adds to the result, read back from its tables."""
        truth_tables = self.handles.truth_tables
        counts = 0 if truth_tables is None else truth_tables.counts.read(self.cells)
        record = done_record(self.handles.tables, self.tiles, counts)
        record[..., Column.REUSED] = reused
        if failed is not None:
            record[failed] = 0
            record[failed, Column.FAILED] = 1
        return record

    def _is_masked(self, keys: Array) -> bool:
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

    def _image_inputs(self) -> tuple[NDArray[np.uint64], list[int]]:
        return covered_planes(self.handles.volume, self.z, self.job.recipe.halo[0])

    def _truth_inputs(self) -> NDArray[np.uint64] | None:
        if self.handles.truth is None:
            return None
        return self.handles.truth[1].shard_digests(self.z, self.z + 1)

    def _compute(
        self, planes: list[int], image_digests: Array, truth_digests: Array | None, write_mask: bool
    ) -> _Results:
        """Work through the block chunk by chunk: what was read of one is in cache when it is used and written."""
        volume, recipe = self.handles.volume, self.job.recipe
        halo = recipe.halo
        whole = self.box.shape[1:] == volume.shape[1:]  # else the levels follow when all blocks of the slice are done
        shared = None if whole else self._shared(None)  # before the scene, whose memory it uses
        scene, truth_lost = Scene.of(volume, recipe, self.box, planes, image_digests), Lost()
        shared = self._shared(scene) if whole else shared
        drawing = Drawing(scene, shared) if recipe.drawn and not isinstance(shared, float) else None
        rule = self._rule(shared if isinstance(shared, float) else None)
        results = _Results.empty(rule, self.tiles.shape, with_truth=truth_digests is not None)
        if drawing is not None:
            drawing.prepare(self.box, self._units)
            if recipe.threshold.judges and drawing.levels is not None:
                silent = drawing.levels.silent[self.tiles.slices[1:]]
                results.signal[0] = np.where(silent, Signal.NONE, Signal.THERE)
        writer = self.handles.mask.writer(self.box, self.job.staging, with_levels=whole) if write_mask else None
        painter = self._painter(truth_digests, whole)
        for shard in self.grids.shards.parts(self.box):
            scene.load(shard)
            self._give_up(results, scene.window.lost, halo, results.failed)
            with self._open_truth(shard, truth_digests, truth_lost) as truth:
                for part in self._units.parts(shard):
                    mask = scratch.array("mask", part.shape, np.uint8)
                    traced = self._read_truth(part, truth)
                    self._segment(part, scene, drawing, traced, mask, results)
                    if writer is not None:
                        writer.write(part, mask)
                    if painter is not None and traced is not None:
                        where = self.grids.tiles.cover(part).relative_to(self.tiles.start).slices
                        painter.paint(part, mask[0], traced[0], scene.valid_in(part), results.failed[where][0])
            if painter is not None and truth_lost.parts:
                painter.discard(shard)
            self._give_up(results, truth_lost, (0, 0, 0), results.uncounted)
        results.forget_lost()
        self._finish(results, writer, painter)
        return results

    def _finish(self, results: _Results, writer: SliceWriter | None, painter: Painter | None) -> None:
        """Write the levels, where the block is whole slices, and keep the digests of what was written."""
        if writer is not None:
            results.shard_digest = writer.finish()
            if self.box.shape[1:] == self.handles.volume.shape[1:]:
                key = digest_bytes(results.shard_digest.tobytes())
                self.handles.tables.pyramid_key.write(self._slice_cells, key)
        if painter is not None:
            results.painted = painter.finish()

    def _painter(self, truth_digests: Array | None, whole: bool) -> Painter | None:
        """What shows the confusion; None where nothing is to be shown, and what there was is erased."""
        painting = self.handles.painting
        if not self.job.confusion or painting is None:
            return None
        if truth_digests is None or not truth_digests.any():  # nobody annotated the slice
            painting.erase(self.index)
            return None
        return Painter(painting.label.writer(self.box, self.job.staging, with_levels=whole), self.job.recipe.tile)

    def _give_up(self, results: _Results, lost: Lost, halo: Triple, tiles: Array) -> None:
        """Mark the tiles that need voxels which could not be read, and keep why."""
        for part, reason in lost.parts:
            (_, top, left), (_, bottom, right) = part.start, part.stop
            here = Box((self.z, top, left), (self.z + 1, bottom, right)).grow((0, *halo[1:])) & self.box
            cells = self.grids.tiles.cover(here)
            tiles[cells.relative_to(self.tiles.start).slices] = True
            results.reasons.setdefault(reason, []).append(cells)
        lost.parts.clear()

    def _segment(
        self, part: Box, scene: Scene, drawing: Drawing | None, truth: Array | None, mask: Array, results: _Results
    ) -> None:
        """Segment the tiles of a part into ``mask``, and fill in their part of the tables."""
        rule, labels = results.rule, None if truth is None else truth[0]
        cells = self.grids.tiles.cover(part)
        inside = cells.relative_to(self.tiles.start)
        if drawing is None:
            (_, top, left), (_, first_row, first_column) = part.start, scene.window.box.start
            start = top - first_row, left - first_column
            tables = segment_tiles(scene.window.values, start, labels, mask[0], rule, scene.corrected(inside))
        else:
            drawing.draw(part, mask[0])
            (filtered,), valid = scene.filtered(part), scene.valid_in(part)
            given = Given(drawing.levels_of(cells), scene.measured(part, inside))
            tables = count_drawn(filtered, mask[0], labels, valid, given, rule)
        where = inside.slices
        results.take(where[1:], tables)
        for row, column in np.argwhere(results.failed[where][0]):
            top, left = int(row) * rule.side, int(column) * rule.side
            mask[0, top : top + rule.side, left : left + rule.side] = 0

    @property
    def _units(self) -> Grid:
        """What is worked on at once: a chunk, or a shard where a tile is larger than a chunk."""
        full = self.handles.mask.full
        return full.chunks if full.chunks.owns(self.grids.tiles) else full.shards

    def _open_truth(self, shard: Box, digests: Array | None, lost: Lost) -> AbstractContextManager[CheckedShard | None]:
        """Return the truth of a shard, or None where nobody annotated the slice."""
        if self.handles.truth is None or digests is None or not digests.any():
            return nullcontext()
        array = self.handles.truth[0].full
        (index,) = array.shards.cover(shard)
        return CheckedShard(array, index, int(digests[0, index[1], index[2]]), lost, "encoded truth")

    def _read_truth(self, part: Box, truth: CheckedShard | None) -> Array | None:
        if truth is None:
            return None
        values = scratch.array("truth", part.shape, np.uint8)
        truth.read(part, values)
        return values

    def _shared(self, scene: Scene | None) -> float | TileLevels | None:
        """Level that all tiles of the block have, or those that they get; None where each finds its own.

        What a slice decides needs all of it: which a scene of the whole slice has, and else is read in addition.
        """
        recipe, tables, volume = self.job.recipe, self.handles.tables, self.handles.volume
        threshold = recipe.threshold
        if recipe.segmenter is not None or isinstance(threshold, LocalThreshold):
            return None
        if not recipe.drawn:
            if threshold.scope == "volume" and tables.level is None:  # there was no slice when it was looked for
                raise DamageError("the volume has no level yet; run again")
            if threshold.scope != "slice":
                return tables.level
            counts = (
                slice_counts(volume, recipe, self.z, tables.block) if scene is None else scene_counts(scene, self.box)
            )
            return threshold.level(counts)
        if isinstance(threshold, FixedThreshold):
            return TileLevels.constant(threshold.level_value, self.grids.tiles.cells[1:])
        if scene is None:
            survey = slice_survey(volume, recipe, self.z, tables.block, self._units)
        else:
            survey = scene_survey(scene, self.box, self._units)
        return settle(survey, recipe, volume, tables.level)

    def _rule(self, level: float | None) -> TileRule:
        """How a tile becomes a mask; with the grey levels that the stored histograms resolve, on the filtered scale."""
        recipe, volume = self.job.recipe, self.handles.volume
        return TileRule(
            side=recipe.tile,
            denoise=denoiser(recipe),
            levels=self._own_levels if level is None else lambda tables: np.full(len(tables), level),
            bins=volume.filtered_window(recipe.foreground == "dark"),
        )

    def _own_levels(self, tables: NDArray[np.uint32]) -> NDArray[np.float64]:
        threshold = self.job.recipe.threshold
        return np.full(len(tables), np.nan) if isinstance(threshold, LocalThreshold) else threshold.levels(tables)

    def _forget(self, masked: bool) -> None:
        """Take back what the ledger says of what is about to change."""
        painting = self.handles.painting
        if not masked:
            self.handles.tables.take_back(self.index)
            if painting is not None and not self.job.confusion:  # it shall not show the errors of an older mask
                painting.erase(self.index)
        elif self.handles.truth_tables is not None:
            self.handles.truth_tables.counts_key.write(self.cells, ABSENT)
            if painting is not None and self.job.confusion:
                painting.forget(self.index)

    def _check_unchanged(self, image_digests: Array, truth_digests: Array | None) -> None:
        now, _ = self._image_inputs()
        truth = self._truth_inputs()
        if (now != image_digests).any() or (truth is not None and (truth != truth_digests).any()):
            raise DamageError(f"slice {self.z}: its image or truth changed while it was worked on; run again")

    def _remember(self, results: _Results, keys: Array, count_keys: Array | None) -> None:
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
        tables.clear_failure(self.index, self.job.truth)
        if results.reasons:
            parts = [(self._around(found), why) for why, found in results.reasons.items()]
            mask_failed = results.shard_digest is not None and results.failed.any()
            tables.record_failure(self.index, parts, None if mask_failed else self.job.truth)
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


@dataclass(slots=True)
class _Results:
    """Tables of one block, as they are filled; with the tiles that fail or only are not counted, and why."""

    rule: TileRule
    threshold: NDArray[np.float64]
    signal: NDArray[np.uint8]
    seam: NDArray[np.int64]
    vessel: NDArray[np.int64]
    quality: NDArray[np.float32]
    grey: NDArray[np.int64]
    counts: NDArray[np.int64] | None
    histogram: NDArray[np.uint32] | None
    failed: NDArray[np.bool_]
    uncounted: NDArray[np.bool_]
    shard_digest: NDArray[np.uint64] | None = None
    painted: NDArray[np.uint64] | None = None
    reasons: dict[str, list[Box]] = field(default_factory=dict)

    @classmethod
    def empty(cls, rule: TileRule, tiles: Triple, with_truth: bool) -> _Results:
        return cls(
            rule=rule,
            threshold=np.full(tiles, np.nan),
            signal=np.full(tiles, Signal.NOT_ASKED, np.uint8),
            seam=np.zeros((*tiles, 4), np.int64),
            vessel=np.zeros(tiles, np.int64),
            quality=np.full((*tiles, len(Measure)), np.nan, np.float32),
            grey=np.zeros(WINDOWED_LEVELS, np.int64),
            counts=np.zeros((*tiles, 4), np.int64) if with_truth else None,
            histogram=np.zeros((*tiles, 3, WINDOWED_LEVELS), np.uint32) if with_truth else None,
            failed=np.zeros(tiles, np.bool_),
            uncounted=np.zeros(tiles, np.bool_),
        )

    def take(self, where: tuple[slice, slice], tables: TileTables) -> None:
        """Take the tables of some tiles."""
        self.threshold[0][where] = tables.threshold
        self.seam[0][where] = tables.seam
        self.vessel[0][where] = tables.vessel
        self.quality[0][where] = tables.quality
        self.grey += tables.histogram.sum(axis=(0, 1, 2), dtype=np.int64)
        if self.counts is not None and self.histogram is not None:
            self.counts[0][where] = tables.counts
            self.histogram[0][where] = tables.histogram

    def forget_lost(self) -> None:
        """Let tiles that failed, or whose truth turned out to be lost, count as nothing."""
        self.threshold[self.failed] = np.nan
        self.seam[self.failed] = 0
        self.vessel[self.failed] = 0
        self.quality[self.failed] = np.nan
        if self.counts is not None and self.histogram is not None:
            lost = self.failed | self.uncounted
            self.counts[lost] = 0
            self.histogram[lost] = 0
