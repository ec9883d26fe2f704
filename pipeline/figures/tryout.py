"""Grey levels behind the filter, and what every method makes of them: of a tile voxel by voxel, of more from tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError, MissingInputError
from pipeline.figures.subject import Request, Subject, find_subject, one_slice, truth_slices
from pipeline.findings.census import Census, choose_truth
from pipeline.findings.salvage import Salvage
from pipeline.geometry import Box, Grid
from pipeline.kernels.bins import WINDOWED_LEVELS, bin_tops, rebin
from pipeline.kernels.confusion import Counts, scores
from pipeline.kernels.histogram import TRUTH_UNLABELLED, TRUTH_VESSEL, UNLABELLED, level_counts
from pipeline.kernels.tally import valid_histograms
from pipeline.kernels.threshold import LEVEL_OF
from pipeline.methods.comparison import ceiling, tile_counts
from pipeline.segmentation.scene import Scene
from pipeline.segmentation.window import covered_planes
from pipeline.settings.recipe import Recipe
from pipeline.storage.store import BY_A_RUN
from pipeline.storage.tables import RunTables
from pipeline.storage.volume import Volume
from pipeline.views.excerpt import Excerpt, read_excerpt, require_slice
from pipeline.views.rendition import read_compared


@dataclass(frozen=True, eq=False)
class Distribution:
    """Grey levels of some voxels, after the filter.

    Attributes
    ----------
    subject : Subject
    share : tuple of int
        Tiles that are done, of all.
    table : ndarray
        int64 (3, levels): background, vessel, not annotated.
    tops : ndarray
        int64 (levels,): highest grey level that each column counts.
    dark : bool
        Whether levels are inverted.
    levels : dict
        Of each method that finds one, as a column of the table.
    own : tuple or None
        Lowest, median and highest level of the run's tiles.
    counts : Counts or None
        Of the run's mask.
    """

    subject: Subject
    share: tuple[int, int]
    table: NDArray[np.int64]
    tops: NDArray[np.int64]
    dark: bool
    levels: dict[str, float]
    own: tuple[float, float, float] | None = None
    counts: Counts | None = None

    @property
    def split(self) -> bool:
        """Whether some are annotated."""
        return bool(self.table[:UNLABELLED].any())

    def grey(self, level: float) -> float:
        """Grey level of a level of the table: one within a bin of many is the bin's highest."""
        if self.tops[-1] == len(self.tops) - 1:
            return level
        return float(self.tops[int(level)]) if level >= 0 else float(self.tops[0] - 1)

    def counts_at(self, level: float) -> Counts:
        """Counts if all that is above one level were vessel."""
        return Counts(*tile_counts(self.table, np.array(level)).tolist())


@dataclass(frozen=True, eq=False)
class Attempted:
    """Mask of one method on a tile; no score where nothing is annotated."""

    method: str
    level: float
    mask: NDArray[np.bool_]
    mcc: float | None


@dataclass(frozen=True, eq=False)
class Trial:
    """Every method on one tile, and the best level that there is; and the methods without a level."""

    subject: Subject
    excerpt: Excerpt
    attempts: Sequence[Attempted]
    without: Sequence[str]


def read_distribution(volume: Volume, request: Request, pixels: int) -> Distribution:  # noqa: ARG001  (as all kinds)
    """Grey levels of the tiles of a region, and the levels that methods find in them all together."""
    subject = find_subject(volume, request, needs_run=True)
    tables, recipe = RunTables(volume, subject.run), subject.recipe
    known = subject.truth if subject.truth in tables.truths() else None
    truth = choose_truth(volume, subject.run, request.truth or known)
    found = subject.census(truth)
    dark = recipe.foreground == "dark"
    window = volume.filtered_window(dark)
    shown = found.done
    if truth is not None:
        table, shown = _traced_greys(subject, tables, truth, found)
    elif subject.box == Box.whole(volume.shape) or tables.block == (1, *volume.shape[1:]) == subject.box.shape:
        table = _all_greys(subject, tables)
    elif subject.box.shape[0] == 1 and found.tiles.size == 1:
        table = np.zeros((3, WINDOWED_LEVELS), np.int64)
        table[UNLABELLED] = _bins(_filtered(volume, recipe, subject.box)[1], window)
    else:
        raise MissingInputError(
            f"{volume.path}: run {subject.run!r} was compared with no truth, so grey levels are known of the whole "
            "volume and of one tile (--at) only; leave out the region, or compare it with `kesm run --truth`"
        )
    if subject.damage and not table.any():
        box, reason = subject.damage[0]
        raise DamageError(f"{volume.path}: no grey levels of {subject.where} can be read: {box}: {reason}; {BY_A_RUN}")
    levels = found.level[shown & ~np.isnan(found.level)]
    own = (float(levels.min()), float(np.median(levels)), float(levels.max())) if levels.size else None
    counts = None if found.counts is None else Counts(*found.counts[shown].sum(axis=0).tolist())
    return Distribution(
        replace(subject, truth=truth), found.share, table, bin_tops(window), dark, method_levels(table), own, counts
    )


def _traced_greys(
    subject: Subject, tables: RunTables, truth: str, found: Census
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sum of the joint tables of tiles, (3, levels), and of which: those that are done and can be read."""
    table, shown = np.zeros((3, WINDOWED_LEVELS), np.int64), found.done.copy()
    for at, z in enumerate(range(found.tiles.start[0], found.tiles.stop[0])):
        if shown[at].any():
            salvage = Salvage(tables, Box((z, *found.tiles.start[1:]), (z + 1, *found.tiles.stop[1:])))
            (tiles,) = salvage.read(tables.truth(truth).histogram)
            shown[at] &= salvage.readable[0]
            table += tiles[shown[at]].sum(axis=0, dtype=np.int64)
            subject.keep(salvage.damage)
    return table, shown


def _all_greys(subject: Subject, tables: RunTables) -> NDArray[np.int64]:
    """Grey levels of whole blocks, (3, levels), as far as they can be read."""
    table, blocks = np.zeros((3, WINDOWED_LEVELS), np.int64), tables.grids.blocks
    for block in blocks.cover(subject.box):
        greys, reasons = tables.grey.survey(Box(block, tuple(np.add(block, 1).tolist())).slices)
        table[UNLABELLED] += greys[0, 0, 0]
        subject.keep([(blocks.box(block), reason) for reason in reasons])
    return table


def read_curves(volume: Volume, request: Request, pixels: int) -> Distribution:
    """As `read_distribution`, of annotated voxels of both kinds."""
    subject = find_subject(volume, request, needs_run=True)
    truth = subject.require_truth()
    found = read_distribution(volume, replace(request, truth=truth), pixels)
    if not found.table[:UNLABELLED].any(axis=1).all():
        raise MissingInputError(
            f"{volume.path}: truth {truth!r} has not both vessel and background in {subject.where}, and curves need "
            f"both{subject.elsewhere}"
        )
    return found


def read_trial(volume: Volume, request: Request, pixels: int) -> Trial:  # noqa: ARG001  (tiles are shown whole)
    """Every method on one tile, behind the filter of the run's recipe."""
    subject = find_subject(volume, request, needs_run=False)
    if volume.truths():
        subject.require_truth()
    recipe = subject.recipe
    subject = replace(subject, box=_one_tile(subject, request, recipe.tile))
    z = subject.box.start[0]
    there = subject.truth is not None and volume.truth(subject.truth)[1].present()[z]
    truth = subject.truth if there or request.truth is not None else None
    excerpt = read_excerpt(volume, subject.box, 1, 0, truth)
    filtered, table, valid = _filtered(volume, recipe, subject.box, excerpt.truth)
    if valid is not None and excerpt.truth is not None:
        excerpt = replace(excerpt, truth=np.where(valid != 0, excerpt.truth, np.uint8(TRUTH_UNLABELLED)))
    levels: dict[str, float] = method_levels(table)
    if not levels:
        raise MissingInputError(
            f"{volume.path}: no method finds a level in {subject.where}, as nothing of it is valid; choose another --at"
        )
    best = ceiling(table)
    if best is not None:
        levels["best there is"] = best.level
    attempts = []
    for method, level in levels.items():
        mask = filtered > level
        if valid is not None:
            mask &= valid != 0
        counts = Counts(*tile_counts(table, np.array(level)).tolist())
        attempts.append(Attempted(method, level, mask, scores(counts).mcc))
    return Trial(replace(subject, truth=truth), excerpt, attempts, [each for each in LEVEL_OF if each not in levels])


def _one_tile(subject: Subject, request: Request, side: int) -> Box:
    """The tile that was asked for, or the one with most annotated vessel in the slice, or the middle one."""
    if request.at is not None:
        return subject.box
    subject = one_slice(subject, request, truth_slices(subject))
    z, grid = subject.box.start[0], Grid(subject.volume.shape, (1, side, side))
    tiles = grid.cover(subject.box)
    _, rows, columns = tiles.shape
    chosen = (z, tiles.start[1] + (rows - 1) // 2, tiles.start[2] + (columns - 1) // 2)  # the last ones may be cut
    if subject.truth is not None and subject.volume.truth(subject.truth)[1].present()[z]:
        traced = read_compared(subject.volume, subject.truth, subject.name, grid.voxels(tiles))
        first = grid.voxels(tiles).start
        found = {cell: (traced[grid.box(cell).relative_to(first).slices[1:]] == TRUTH_VESSEL).sum() for cell in tiles}
        if max(found.values()):
            chosen = max(found, key=found.__getitem__)
    return grid.box(chosen)


def _filtered(
    volume: Volume, recipe: Recipe, box: Box, truth: NDArray[np.uint8] | None = None
) -> tuple[NDArray[Any], NDArray[np.uint32], NDArray[np.uint8] | None]:
    """Voxels of one tile after the filter, (y, x); their joint table, (3, levels); and which are valid."""
    z = box.start[0]
    require_slice(volume, z)
    digests, planes = covered_planes(volume, z, recipe.halo[0])
    correct = recipe.correct is not None and recipe.correct.slicewise
    around = Box.of_slice(z, volume.shape) if correct else box
    scene = Scene.of(volume, recipe, around, planes, digests)
    scene.load(around)
    for _, reason in scene.window.lost.parts:
        raise DamageError(f"{box} cannot be filtered: {reason}")
    filtered, valid = scene.filtered(box)[0].copy(), scene.valid_in(box)
    table = np.zeros((1, 3, 1 << 8 * filtered.dtype.itemsize), np.uint32)
    valid_histograms(filtered, truth, valid, max(filtered.shape), 0, table)
    return filtered, table[0], valid


def _bins(table: NDArray[np.uint32], window: tuple[int, int]) -> NDArray[np.int64]:
    """All voxels of a joint table in the bins of stored ones."""
    out = np.zeros((1, 3, WINDOWED_LEVELS), np.uint32)
    rebin(table[None], window, out)
    return level_counts(out[0])


def method_levels(table: NDArray[Any]) -> dict[str, float]:
    """Level of all voxels of a joint table, (3, levels), by each method that finds one."""
    counts = table.sum(axis=0, dtype=np.int64)
    found = {method: float(level_of(counts)) for method, level_of in LEVEL_OF.items()}
    return {method: level for method, level in found.items() if not np.isnan(level)}
