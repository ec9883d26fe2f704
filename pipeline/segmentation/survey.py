"""What a whole slice says of the levels of its tiles, before any of them becomes a mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamageError
from pipeline.geometry import Box, Grid, Triple
from pipeline.kernels.histogram import UNLABELLED, count_tiles, level_counts
from pipeline.kernels.levels import fill_levels, signals
from pipeline.kernels.masks import Surface
from pipeline.kernels.tally import valid_histograms
from pipeline.scratch import scratch
from pipeline.segmentation.scene import Scene
from pipeline.segmentation.tile import tables_at_once
from pipeline.segmentation.window import covered_planes
from pipeline.settings.recipe import HistogramThreshold, Recipe
from pipeline.storage.keys import other_inputs
from pipeline.storage.volume import Volume

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Survey:
    """Tiles of a slice by themselves.

    Attributes
    ----------
    counts : ndarray
        int64 (levels,): filtered voxels of the slice by grey level.
    levels : ndarray
        float64 (rows, columns): level of each tile, NaN where its histogram has none.
    separability, contrast : ndarray
        float64 (rows, columns): see `kernels.levels.signals`.
    """

    counts: NDArray[np.int64]
    levels: NDArray[np.float64]
    separability: NDArray[np.float64]
    contrast: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TileLevels:
    """Levels that the tiles of a slice get.

    Attributes
    ----------
    levels : ndarray
        float64 (rows, columns); NaN where a tile's mask is empty.
    silent : ndarray
        bool (rows, columns): tiles without signal.
    surface : Surface or None
        What they go over into between the centres of tiles, where they do.
    """

    levels: NDArray[np.float64]
    silent: Flags
    surface: Surface | None = None

    @classmethod
    def constant(cls, level: float, cells: tuple[int, int]) -> TileLevels:
        """The same for all."""
        return cls(np.full(cells, level), np.zeros(cells, np.bool_))


def slice_counts(volume: Volume, recipe: Recipe, z: int, block: Triple) -> NDArray[np.int64]:
    """Count the filtered voxels of a whole slice by grey level, a block's window at a time.

    Parameters
    ----------
    volume : Volume
    recipe : Recipe
    z : int
    block : tuple
        Shape of a block, (z, y, x) in voxels: what fits into the memory.

    Returns
    -------
    ndarray
        int64 (levels,); all 0 where the slice is absent.

    Raises
    ------
    DamageError, UnavailableError
        If a voxel cannot be read: levels are those of complete slices.
    """
    return _slice_counts(volume.path, recipe, z, block, _inputs(volume, recipe, z))


@lru_cache(maxsize=4)  # the blocks of a slice ask one after the other
def _slice_counts(path: Path, recipe: Recipe, z: int, block: Triple, _: bytes) -> NDArray[np.int64]:
    volume = Volume(path)
    counts = np.zeros(1 << 8 * volume.dtype.itemsize, np.int64)
    for box, scene in _scenes(volume, recipe, z, block):
        counts += scene_counts(scene, box)
    counts.flags.writeable = False
    return counts


def scene_counts(scene: Scene, box: Box) -> NDArray[np.int64]:
    """Count the filtered, valid voxels of a box of one slice by grey level."""
    counts = np.zeros(1 << 8 * scene.window.array.dtype.itemsize, np.int64)
    table = scratch.array("tables", (1, 3, counts.size), np.uint32)
    for part in scene.window.array.chunks.parts(box):
        scene.load(part)
        for _, reason in scene.window.lost.parts:
            raise DamageError(f"slice {part.start[0]} has no level, which all of it is needed for: {reason}")
        (filtered,), valid = scene.filtered(part), scene.valid_in(part)
        valid_histograms(filtered, None, valid, max(filtered.shape), 0, table)
        counts += table[0, UNLABELLED]
    return counts


def slice_survey(volume: Volume, recipe: Recipe, z: int, block: Triple, units: Grid) -> Survey:
    """Survey a whole slice, a block's window at a time; see `scene_survey`."""
    return _slice_survey(volume.path, recipe, z, block, units, _inputs(volume, recipe, z))


@lru_cache(maxsize=4)
def _slice_survey(path: Path, recipe: Recipe, z: int, block: Triple, units: Grid, _: bytes) -> Survey:
    volume = Volume(path)
    parts = [scene_survey(scene, box, units) for box, scene in _scenes(volume, recipe, z, block)]
    blocks = Grid(volume.shape, block).cover(Box.of_slice(z, volume.shape)).shape[1:]

    def join(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return np.block([found[row * blocks[1] : (row + 1) * blocks[1]] for row in range(blocks[0])])

    counts = np.sum([part.counts for part in parts], axis=0)
    return Survey(counts, join("levels"), join("separability"), join("contrast"))


def _inputs(volume: Volume, recipe: Recipe, z: int) -> bytes:
    """Digests of what is read to survey a slice: equal ones, equal results."""
    digests, _ = covered_planes(volume, z, recipe.halo[0])
    (others,) = other_inputs(volume, recipe, z, z + 1)
    return digests.tobytes() + others


def scene_survey(scene: Scene, box: Box, units: Grid) -> Survey:
    """Find what the tiles of a box of one slice say by themselves.

    Parameters
    ----------
    scene : Scene
    box : Box
        Whole tiles.
    units : Grid
        Parts that are worked on at once: whole tiles too.
    """
    recipe, threshold = scene.recipe, scene.recipe.threshold
    if not isinstance(threshold, HistogramThreshold):
        raise TypeError(f"threshold: got {threshold.method}, expected a method of histograms")
    tiles = Grid(scene.window.array.shape, (1, recipe.tile, recipe.tile))
    cells = tiles.cover(box)
    counts = np.zeros(1 << 8 * scene.window.array.dtype.itemsize, np.int64)
    found = np.empty((3, *cells.shape[1:]))
    for part in units.parts(box):
        where = tiles.cover(part).relative_to(cells.start).slices[1:]
        values = np.empty((3, count_tiles(part.shape[1:], recipe.tile)))
        for some, tables in _tables(scene, part):
            levels = threshold.levels(tables)
            values[0, some], (values[1, some], values[2, some]) = levels, signals(tables, levels)
            for table in tables:
                counts += level_counts(table)
        found[:, *where] = values.reshape(3, *tiles.cover(part).shape[1:])
    return Survey(counts, *found)


def decide_levels(survey: Survey, recipe: Recipe, volume: Volume, volume_level: float | None) -> TileLevels:
    """Decide which level each tile of a slice gets.

    A tile has no signal where its classes are too near, or it has no level of its own. Where levels are smooth,
    outliers are replaced by what is around them, to which tiles without signal have no say; then those get what was
    asked for, or an empty mask where the slice has no level that they could get.

    Parameters
    ----------
    survey : Survey
    recipe : Recipe
        With a threshold by histograms.
    volume : Volume
    volume_level : float or None
        Where the volume has one level.

    Raises
    ------
    DamageError
        If that is not known.
    """
    threshold = recipe.threshold
    if not isinstance(threshold, HistogramThreshold):
        raise TypeError(f"threshold: got {threshold.method}, expected a method of histograms")
    of_slice, smooth, then = threshold.level(survey.counts), threshold.scope == "smooth", threshold.on_no_signal
    silent = np.zeros(survey.levels.shape, np.bool_)
    if threshold.judges:
        silent = np.isnan(survey.levels) | (survey.separability < (threshold.min_separability or 0))
        silent |= survey.contrast < (threshold.min_contrast or 0)
    if threshold.scope == "volume" and volume_level is None:
        if survey.counts.any():  # they were not there when it was looked for
            raise DamageError("the volume has no level yet; run again")
        volume_level = np.nan  # none of its voxels is valid
    shared = {"slice": of_slice, "volume": volume_level}.get(threshold.scope)
    levels = survey.levels.copy() if shared is None else np.full_like(survey.levels, shared)
    if smooth:
        levels = fill_levels(levels, ~silent if then != "keep" else np.ones_like(silent))
    if smooth and np.isnan(levels).any():  # no tile has a say
        levels[...] = of_slice
    if then == "slice" and np.isnan(of_slice):  # as a tile's own level that is none
        then = "empty"
    empty = silent & (then == "empty")
    if then == "slice":
        levels[silent] = of_slice
    surface = Surface(levels.copy(), empty, recipe.tile, volume.shape[1:]) if smooth else None
    levels[empty] = np.nan
    return TileLevels(levels, silent, surface)


def _scenes(volume: Volume, recipe: Recipe, z: int, block: Triple) -> Iterator[tuple[Box, Scene]]:
    """The blocks of a slice, and what is in them, one at a time; none where the slice is absent."""
    digests, planes = covered_planes(volume, z, recipe.halo[0])
    if planes:
        for box in Grid(volume.shape, block).parts(Box.of_slice(z, volume.shape)):
            yield box, Scene.of(volume, recipe, box, planes, digests)


def _tables(scene: Scene, part: Box) -> Iterator[tuple[slice, NDArray[np.uint32]]]:
    """Joint tables of the valid voxels of a part's tiles, as many at once as the cache holds."""
    (filtered,), valid = scene.filtered(part), scene.valid_in(part)
    side, levels = scene.recipe.tile, 1 << 8 * filtered.dtype.itemsize
    tiles = count_tiles(filtered.shape, side)
    for first in range(0, tiles, tables_at_once(levels)):
        some = slice(first, min(first + tables_at_once(levels), tiles))
        tables = scratch.array("tables", (some.stop - first, 3, levels), np.uint32)
        valid_histograms(filtered, None, valid, side, first, tables)
        yield some, tables
