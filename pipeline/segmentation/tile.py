"""The work on the tiles of one chunk: a pure function of arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import ceil_div
from pipeline.kernels.bins import WINDOWED_LEVELS, rebin
from pipeline.kernels.compiled import kernel
from pipeline.kernels.histogram import counts_above_levels, joint_histograms
from pipeline.kernels.masks import binarize_tiles
from pipeline.kernels.quality import Floats, measure_tables, measure_voxels
from pipeline.kernels.tally import count_mask, seam_pairs, valid_histograms
from pipeline.scratch import scratch
from pipeline.segmentation.denoise import Denoiser

Array = NDArray[Any]

TABLES_BYTES = 1 << 20
"""Joint tables of so many tiles are in work at once: they fit into a core's cache, or are one, of 16 bit."""


@dataclass(frozen=True, slots=True)
class TileRule:
    """How tiles become a mask: plain values, unpacked from a recipe.

    Attributes
    ----------
    side : int
        Of a tile, in voxels.
    denoise : callable
        The filter, on the planes that its window covers.
    levels : callable
        From joint tables, (tiles, 3, levels), to the level of each tile; vessels are above it.
    bins : tuple
        First and last grey level, on the filtered scale, that a histogram of 256 bins resolves.
    """

    side: int
    denoise: Denoiser
    levels: Callable[[NDArray[np.uint32]], NDArray[np.float64]]
    bins: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TileTables:
    """What is known of some tiles, (y, x).

    Attributes
    ----------
    threshold : ndarray
        float64.
    counts : ndarray
        int64 (y, x, 4): TP, FP, FN, TN in voxels.
    histogram : ndarray
        uint32 (y, x, 3, 256): joint tables.
    seam : ndarray
        int64 (y, x, 4): see `kernels.tally.seam_pairs`.
    vessel : ndarray
        int64: voxels of the mask.
    quality : ndarray
        float32 (y, x, len(Measure)): see `kernels.quality`. Of the raw tile, all of it, whatever area is valid;
        contrast and separability of what is thresholded: corrected, filtered, and valid.
    """

    threshold: NDArray[np.float64]
    counts: NDArray[np.int64]
    histogram: NDArray[np.uint32]
    seam: NDArray[np.int64]
    vessel: NDArray[np.int64]
    quality: NDArray[np.float32]


def segment_tiles(
    stack: Array,
    start: tuple[int, int],
    truth: Array | None,
    mask: Array,
    rule: TileRule,
    measures: Floats | None = None,
) -> TileTables:
    """Filter, count, threshold and mask the tiles of a part of a plane.

    A step is made for all of them before the next: a call of compiled code gives the interpreter to other threads and
    waits for it afterwards, which a tile by itself would pay for seven times.

    Parameters
    ----------
    stack : ndarray
        (z, y, x) uint8 or uint16: the planes that the filter's window covers, with the part's halo in the plane unless
        the part lies at the volume's edge, where values reflect.
    start : tuple
        (y, x) of the part in the planes; a tile begins there.
    truth : ndarray or None
        (h, w) uint8: 0 background, 255 vessel, anything else not annotated.
    mask : ndarray
        (h, w) uint8; written: 255 vessel, 0 background.
    rule : TileRule
    measures : ndarray, optional
        Of the raw voxels, where the planes are not raw any more, see `kernels.quality.measure_voxels`; written.

    Returns
    -------
    TileTables
        Valid until the next call of this thread.
    """
    filtered = scratch.array("filtered", mask.shape, stack.dtype)
    rule.denoise(stack, start, filtered)
    rows, columns = (ceil_div(length, rule.side) for length in mask.shape)
    tiles = rows * columns
    table = 3, 1 << 8 * stack.itemsize
    at_once = min(tiles, tables_at_once(table[1]))
    threshold, counts, vessel = np.empty(tiles), np.empty((tiles, 4), np.int64), np.empty(tiles, np.int64)
    if measures is None:
        measures = measure_voxels(stack[len(stack) // 2], start, mask.shape, rule.side)
    histogram = scratch.array("histogram", (tiles, 3, WINDOWED_LEVELS), np.uint32)
    for first in range(0, tiles, at_once):
        some = slice(first, min(first + at_once, tiles))
        tables = scratch.array("tables", (some.stop - first, *table), np.uint32)
        joint_histograms(filtered, truth, rule.side, first, tables)
        threshold[some] = rule.levels(tables)
        counts[some] = counts_above_levels(tables, threshold[some])
        vessel[some] = _voxels_above(tables, threshold[some])
        measure_tables(tables, measures[some])
        rebin(tables, rule.bins, histogram[some])
    levels = threshold.reshape(rows, columns)
    binarize_tiles(filtered, (0, 0), rule.side, levels, mask)
    return TileTables(
        levels,
        counts.reshape(rows, columns, 4),
        histogram.reshape(rows, columns, 3, -1),
        seam_pairs(mask, rule.side).reshape(rows, columns, 4),
        vessel.reshape(rows, columns),
        measures.astype(np.float32).reshape(rows, columns, -1),
    )


class Given(NamedTuple):
    """What is known of drawn tiles before they are counted: levels (y, x), and measures of their raw voxels, (n, 7)."""

    threshold: Floats
    measures: Floats


def count_drawn(
    filtered: Array, mask: Array, truth: Array | None, valid: Array | None, given: Given, rule: TileRule
) -> TileTables:
    """Count the tiles of a part of a plane whose mask was drawn already.

    Parameters
    ----------
    filtered : ndarray
        (h, w) uint8 or uint16; a tile begins at its corner.
    mask : ndarray
        (h, w) uint8: 255 vessel, 0 background.
    truth, valid : ndarray or None
        (h, w) uint8: as in `segment_tiles`; and not 0 where voxels count.
    given : Given
        See `kernels.quality.measure_voxels`; its measures are written.
    rule : TileRule

    Returns
    -------
    TileTables
        Valid until the next call of this thread.
    """
    rows, columns = (ceil_div(length, rule.side) for length in mask.shape)
    tiles, levels = rows * columns, 1 << 8 * filtered.itemsize
    counts = count_mask(mask, truth, valid, rule.side)
    histogram = scratch.array("histogram", (tiles, 3, WINDOWED_LEVELS), np.uint32)
    for first in range(0, tiles, tables_at_once(levels)):
        some = slice(first, min(first + tables_at_once(levels), tiles))
        tables = scratch.array("tables", (some.stop - first, 3, levels), np.uint32)
        valid_histograms(filtered, truth, valid, rule.side, first, tables)
        measure_tables(tables, given.measures[some])
        rebin(tables, rule.bins, histogram[some])
    return TileTables(
        given.threshold,
        counts.reshape(rows, columns, 4),
        histogram.reshape(rows, columns, 3, -1),
        seam_pairs(mask, rule.side).reshape(rows, columns, 4),
        count_vessels(mask, rule.side),
        given.measures.astype(np.float32).reshape(rows, columns, -1),
    )


@kernel
def _voxels_above(tables: NDArray[np.uint32], levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Voxels of each of some joint tables, (tiles, 3, levels), that are above its level; none above NaN."""
    above = np.zeros(levels.size, np.int64)
    for index in range(levels.size):
        for row in range(tables.shape[1]):
            for level in range(tables.shape[2]):
                above[index] += np.int64(tables[index, row, level]) if level > levels[index] else 0
    return above


def count_vessels(mask: Array, side: int) -> NDArray[np.int64]:
    """Voxels of the mask, not 0, of each tile that a plane is cut into, int64 (y, x)."""
    height, width = mask.shape
    return np.array(
        [
            [np.count_nonzero(mask[top : top + side, left : left + side]) for left in range(0, width, side)]
            for top in range(0, height, side)
        ],
        np.int64,
    ).reshape(ceil_div(height, side), ceil_div(width, side))


def tables_at_once(levels: int) -> int:
    """Tiles whose joint tables are in work at once."""
    return max(1, TABLES_BYTES // (4 * 3 * levels))
