"""The work on one block: where kernels meet storage.

A block is read once into buffers that each thread keeps, and every tile is filtered, counted, thresholded and masked
while it is in cache; `segmentation.bookkeeping` records the results.
"""

from __future__ import annotations

import traceback
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
    DamageError,
    LockedError,
    MemoryLimitError,
    PipelineError,
    StorageError,
    TargetError,
    UnavailableError,
)
from pipeline.geometry import Box, Grid, Triple
from pipeline.scratch import scratch
from pipeline.segmentation.bookkeeping import Bookkeeping
from pipeline.segmentation.denoise import denoiser
from pipeline.segmentation.drawing import Drawing
from pipeline.segmentation.job import Job, open_job
from pipeline.segmentation.results import Results
from pipeline.segmentation.scene import Scene
from pipeline.segmentation.survey import (
    TileLevels,
    decide_levels,
    scene_counts,
    scene_survey,
    slice_counts,
    slice_survey,
)
from pipeline.segmentation.tile import Array, Given, TileRule, count_drawn, segment_tiles
from pipeline.segmentation.window import CheckedShard, Lost, covered_planes
from pipeline.settings.recipe import FixedThreshold, LocalThreshold
from pipeline.storage.keys import counts_keys, mask_keys, other_inputs, pyramid_key
from pipeline.storage.painting import Painter
from pipeline.storage.pyramid import SliceWriter
from pipeline.storage.store import digest_bytes
from pipeline.storage.tables import Signal


def run_block(job: Job, index: Triple) -> NDArray[np.int64]:
    """Do what is not done of one block, and return its tiles' part of the result.

    Damage inside the block is recorded with its reason and does not stop the run; what would stop every other block
    too (a full disk, no memory) is raised.

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
    MemoryLimitError
        If there is less memory than was planned with.
    """
    book = Bookkeeping(job, index)
    try:
        return _Block(book).run()
    except (LockedError, StorageError, MemoryLimitError):
        raise
    except MemoryError as error:
        raise MemoryLimitError(
            f"{job.volume}, {book.box}: there is no memory left for this block; run again with fewer --threads, or a "
            "smaller --memory; what is done is kept"
        ) from error
    except UnavailableError as error:
        return book.fail(str(error)) if book.touched else book.put_off(str(error))
    except PipelineError as error:
        return book.fail(str(error), error.trace if isinstance(error, TargetError) else "")
    except Exception as error:  # whatever it is, the other blocks go on and the reason is kept
        return book.fail(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def build_pyramid(job: Job, z: int) -> str | None:
    """Write the mask's levels of a slice whose blocks were parts of it.

    Returns
    -------
    str or None
        Why it could not: the mask cannot be read back. The blocks that this is due to are disowned.
    """
    handles = open_job(job)
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
    painting = open_job(job).painting
    return None if painting is None else painting.rebuild_levels(z, job.staging)


class _Block:
    """The work on one block: its inputs, and what they become."""

    def __init__(self, book: Bookkeeping) -> None:
        self.book = book
        self.job, self.handles, self.grids = book.job, book.handles, book.grids
        self.box, self.tiles, self.z = book.box, book.tiles, book.z

    def run(self) -> NDArray[np.int64]:
        book = self.book
        image_digests, planes = self._image_inputs()
        if not planes:
            return book.leave_empty()
        around = other_inputs(self.handles.volume, self.job.recipe, self.z, self.z + 1)[0]
        keys = mask_keys(self.job.recipe, image_digests, self.grids, self.tiles, self.handles.tables.level, around)
        book.masked = book.is_masked(keys)  # before the truth is looked at: a damaged one costs no mask
        truth_digests = self._truth_inputs()
        count_keys = None if truth_digests is None else counts_keys(keys, truth_digests, self.grids, self.tiles)
        if book.masked and book.is_compared(count_keys):
            return book.record(reused=True)

        book.forget()
        results = self._compute(planes, image_digests, truth_digests, write_mask=not book.masked)
        self._check_unchanged(image_digests, truth_digests)
        book.remember(results, keys, count_keys)
        return book.record(failed=results.failed | results.uncounted)

    def _image_inputs(self) -> tuple[NDArray[np.uint64], list[int]]:
        return covered_planes(self.handles.volume, self.z, self.job.recipe.halo[0])

    def _truth_inputs(self) -> NDArray[np.uint64] | None:
        if self.handles.truth is None:
            return None
        return self.handles.truth[1].shard_digests(self.z, self.z + 1)

    def _compute(
        self, planes: list[int], image_digests: Array, truth_digests: Array | None, write_mask: bool
    ) -> Results:
        """Work through the block chunk by chunk: what was read of one is in cache when it is used and written."""
        volume, recipe = self.handles.volume, self.job.recipe
        halo = recipe.halo
        whole = self.box.shape[1:] == volume.shape[1:]  # else the levels follow when all blocks of the slice are done
        decided = None if whole else self._decide(None)  # before the scene, whose memory it uses
        scene, truth_lost = Scene.of(volume, recipe, self.box, planes, image_digests), Lost()
        level, levels = decided or self._decide(scene)
        drawing = Drawing(scene, levels) if recipe.drawn else None
        rule = self._rule(level)
        results = Results.empty(rule, self.tiles.shape, with_truth=truth_digests is not None)
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

    def _finish(self, results: Results, writer: SliceWriter | None, painter: Painter | None) -> None:
        """Write the levels, where the block is whole slices, and keep the digests of what was written."""
        if writer is not None:
            results.shard_digest = writer.finish()
            if self.box.shape[1:] == self.handles.volume.shape[1:]:
                key = digest_bytes(results.shard_digest.tobytes())
                self.handles.tables.pyramid_key.write((slice(self.z, self.z + 1),), key)
        if painter is not None:
            results.painted = painter.finish()

    def _painter(self, truth_digests: Array | None, whole: bool) -> Painter | None:
        """What shows the confusion; None where nothing is to be shown, and what there was is erased."""
        painting = self.handles.painting
        if not self.job.confusion or painting is None:
            return None
        if truth_digests is None or not truth_digests.any():  # nobody annotated the slice
            painting.erase(self.book.index)
            return None
        return Painter(painting.label.writer(self.box, self.job.staging, with_levels=whole), self.job.recipe.tile)

    def _give_up(self, results: Results, lost: Lost, halo: Triple, tiles: Array) -> None:
        """Mark the tiles that need voxels which could not be read, and keep why."""
        for part, reason in lost.parts:
            (_, top, left), (_, bottom, right) = part.start, part.stop
            here = Box((self.z, top, left), (self.z + 1, bottom, right)).grow((0, *halo[1:])) & self.box
            cells = self.grids.tiles.cover(here)
            tiles[cells.relative_to(self.tiles.start).slices] = True
            results.reasons.setdefault(reason, []).append(cells)
        lost.parts.clear()

    def _segment(
        self, part: Box, scene: Scene, drawing: Drawing | None, truth: Array | None, mask: Array, results: Results
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

    def _decide(self, scene: Scene | None) -> tuple[float | None, TileLevels | None]:
        """Level that all tiles of the block have, or those of tiles that are drawn; None where each finds its own.

        What a slice decides needs all of it: which a scene of the whole slice has, and else is read in addition.
        """
        return (None, self._drawn_levels(scene)) if self.job.recipe.drawn else (self._common_level(scene), None)

    def _common_level(self, scene: Scene | None) -> float | None:
        recipe, tables, volume = self.job.recipe, self.handles.tables, self.handles.volume
        threshold = recipe.threshold
        if isinstance(threshold, LocalThreshold):  # which is drawn
            return None
        if threshold.scope == "volume" and tables.level is None:  # there was no slice when it was looked for
            raise DamageError("the volume has no level yet; run again")
        if threshold.scope != "slice":
            return tables.level
        counts = slice_counts(volume, recipe, self.z, tables.block) if scene is None else scene_counts(scene, self.box)
        return threshold.level(counts)

    def _drawn_levels(self, scene: Scene | None) -> TileLevels | None:
        recipe, tables, volume = self.job.recipe, self.handles.tables, self.handles.volume
        threshold = recipe.threshold
        if recipe.segmenter is not None or isinstance(threshold, LocalThreshold):
            return None
        if isinstance(threshold, FixedThreshold):
            return TileLevels.constant(threshold.level_value, self.grids.tiles.cells[1:])
        if scene is None:
            survey = slice_survey(volume, recipe, self.z, tables.block, self._units)
        else:
            survey = scene_survey(scene, self.box, self._units)
        return decide_levels(survey, recipe, volume, tables.level)

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

    def _check_unchanged(self, image_digests: Array, truth_digests: Array | None) -> None:
        now, _ = self._image_inputs()
        truth = self._truth_inputs()
        if (now != image_digests).any() or (truth is not None and (truth != truth_digests).any()):
            raise DamageError(f"slice {self.z}: its image or truth changed while it was worked on; run again")
