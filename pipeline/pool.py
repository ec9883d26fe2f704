"""Pooled histograms: what the level of a whole slice, or of the volume, is found from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.errors import DamageError
from pipeline.geometry import Box, Grid, Triple
from pipeline.histogram import UNLABELLED, joint_histogram
from pipeline.median import median_tile
from pipeline.scratch import scratch
from pipeline.volume import Volume
from pipeline.window import Window, covered_planes


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
    counts = np.zeros(1 << 8 * volume.dtype.itemsize, np.int64)
    digests, planes = covered_planes(volume, z, recipe.halo[0])
    if planes:
        for box in Grid(volume.shape, block).parts(Box.of_slice(z, volume.shape)):
            around = box.grow((0, *recipe.halo[1:])) & Box.whole(volume.shape)
            counts += window_counts(Window(volume, around, recipe.halo, planes, digests), box, recipe)
    return counts


def window_counts(window: Window, box: Box, recipe: Recipe) -> NDArray[np.int64]:
    """Count the filtered voxels of a box of one slice, which a window is for, by grey level."""
    dtype, (_, first_row, first_column) = window.values.dtype, window.box.start
    counts = np.zeros(1 << 8 * dtype.itemsize, np.int64)
    table = scratch.array("tables", (3, counts.size), np.uint32)
    for part in window.volume.image.full.chunks.parts(box):
        window.load(part)
        for _, reason in window.lost.parts:
            raise DamageError(f"slice {part.start[0]} has no level, which all of it is needed for: {reason}")
        filtered = scratch.array("filtered", part.shape[1:], dtype)
        start = part.start[1] - first_row, part.start[2] - first_column
        median_tile(window.values, start, recipe.denoise.window, recipe.foreground == "dark", filtered)
        joint_histogram(filtered, None, table)
        counts += table[UNLABELLED]
    return counts
